"""gantry.stdio.v1, served: clients' connections arrive as descriptors and become sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from google.protobuf.message import DecodeError

from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.stdio import detachkeys
from gantry.ttrpc.errors import Code
from shim import packets
from shim.errors import InvalidArgument, NotFound, ShimError
from shim.loop import Loop
from shim.streams.session import Session, SessionSpec


class Sessions(Protocol):
    """What the attach socket needs of a container."""

    def attach(self, descriptor: int, spec: SessionSpec) -> None:
        """Takes over a connection. On an error it is still the sender's."""

    def sessions(self) -> Iterable[Session]:
        """All open sessions."""


def spec_of(message: stdio_pb2.Session) -> SessionSpec:
    """A session as the sender describes it. InvalidArgument names what is wrong."""
    if not message.id:
        raise InvalidArgument("session without an id")
    if message.framing not in (stdio_pb2.FRAMING_RAW, stdio_pb2.FRAMING_MULTIPLEXED):
        raise InvalidArgument("framing unspecified")
    try:
        keys = detachkeys.parse(message.detach_keys)
    except detachkeys.InvalidDetachKeys as error:
        raise InvalidArgument(str(error)) from None
    return SessionSpec(
        id=message.id,
        exec_id=message.exec_id,
        stdin=message.stdin,
        stdout=message.stdout,
        stderr=message.stderr,
        multiplexed=message.framing == stdio_pb2.FRAMING_MULTIPLEXED,
        detach_keys=keys,
        early_input=message.early_input,
        close_stdin_on_eof=message.close_stdin_on_eof,
    )


def only_descriptor(descriptors: list[int]) -> int:
    """The one descriptor that has to come with a connection. InvalidArgument otherwise."""
    if len(descriptors) != 1:
        raise InvalidArgument(f"{len(descriptors)} descriptors came where exactly one is needed")
    return descriptors[0]


class AttachServer:
    """Listens at one container's attach socket."""

    def __init__(self, loop: Loop, path: str, sessions: Sessions) -> None:
        self.path = path
        self._sessions = sessions
        self._server = packets.PacketServer(loop, packets.listen(path), self._handle)

    def _handle(self, data: bytes | None, descriptors: list[int]) -> tuple[bytes, bool]:
        reply = stdio_pb2.Reply(code=Code.OK)
        goes_on = True
        try:
            request = _parse(data)
        except InvalidArgument as error:
            reply.code, reply.message = error.code, str(error)
            return reply.SerializeToString(), False
        actions: dict[str | None, Callable[[], None]] = {
            "attach": lambda: self._attach(request.attach, descriptors),
            "detach": lambda: self._detach(request.detach.session_id),
            "status": lambda: reply.sessions.extend(_status(session) for session in self._sessions.sessions()),
        }
        action = actions.get(request.WhichOneof("action"))
        try:
            if action is None:
                reply.code, reply.message = Code.UNIMPLEMENTED, "an action that this shim does not know"
            else:
                action()
        except ShimError as error:
            reply.code, reply.message = error.code, str(error)
        return reply.SerializeToString(), goes_on

    def _attach(self, attach: stdio_pb2.Attach, descriptors: list[int]) -> None:
        spec = spec_of(attach.session)
        self._sessions.attach(only_descriptor(descriptors), spec)
        # It is the session's now, not to be closed with the packet.
        descriptors.clear()

    def _detach(self, session_id: str) -> None:
        for session in self._sessions.sessions():
            if session.spec.id == session_id:
                session.end()
                return
        raise NotFound(f"session {session_id} not found")

    def close(self) -> None:
        """Stops listening and removes the socket."""
        self._server.close()
        packets.remove(self.path)


def _parse(data: bytes | None) -> stdio_pb2.Request:
    if data is None:
        raise InvalidArgument(f"packet longer than {packets.LONGEST} bytes")
    request = stdio_pb2.Request()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"packet is not a request: {error}") from None
    return request


def _status(session: Session) -> stdio_pb2.SessionStatus:
    return stdio_pb2.SessionStatus(
        id=session.spec.id,
        exec_id=session.spec.exec_id,
        bytes_in=session.bytes_in,
        bytes_out=session.bytes_out,
    )
