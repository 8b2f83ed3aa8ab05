"""A ttrpc server for a process with one thread and one selector.

Everything that is registered with the selector has a callable as its data; the loop is the owner's:

    for key, events in selector.select():
        key.data(events)
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from gantry.ttrpc.errors import Code, TTRPCError
from gantry.ttrpc.protocol import (
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    Metadata,
    ProtocolError,
    Request,
    Response,
    Type,
    response_frame,
)

_log = logging.getLogger(__name__)
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Call:
    """What came with a request besides its message. `timeout` in seconds, None for ever."""

    service: str
    method: str
    metadata: Metadata = ()
    timeout: float | None = None


class Deferred:
    """An answer that is still to come: a handler returns it and resolves it later, once.

    When the client is gone by then, resolving it does nothing.
    """

    __slots__ = ("_outcome", "_sink")

    def __init__(self) -> None:
        self._outcome: Message | TTRPCError | None = None
        self._sink: Callable[[Message | TTRPCError], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it was resolved."""
        return self._outcome is not None

    def resolve(self, message: Message) -> None:
        """Answers with a message."""
        self._settle(message)

    def fail(self, error: TTRPCError) -> None:
        """Answers with an error."""
        self._settle(error)

    def _settle(self, outcome: Message | TTRPCError) -> None:
        if self._outcome is not None:
            raise RuntimeError("a deferred answer is given once")
        self._outcome = outcome
        if self._sink is not None:
            self._sink(outcome)

    def _deliver_to(self, sink: Callable[[Message | TTRPCError], None]) -> None:
        self._sink = sink
        if self._outcome is not None:
            sink(self._outcome)


Handler = Callable[[Any, Call], Message | Deferred]


@dataclass(frozen=True, slots=True)
class _Method:
    request_type: type[Message]
    handler: Handler


def methods_of(descriptor: ServiceDescriptor, implementation: object) -> dict[tuple[str, str], _Method]:
    """The methods of a service, found as attributes of the same name. AttributeError when one is missing."""
    return {
        (descriptor.full_name, method.name): _Method(
            GetMessageClass(method.input_type), getattr(implementation, method.name)
        )
        for method in descriptor.methods
    }


def peer_is_trusted(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket was opened by root or by this process's own user (SO_PEERCRED)."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())


class Server:
    """Accepts connections on listeners and answers calls of the services that were added.

    A handler is called with the request message and a Call; it returns the response, or a Deferred, or raises
    TTRPCError. Any other exception is logged and answered as UNKNOWN.
    """

    def __init__(self, selector: selectors.BaseSelector, *, trusted: Callable[[socket.socket], bool] = peer_is_trusted):
        self._selector = selector
        self._trusted = trusted
        self._methods: dict[tuple[str, str], _Method] = {}
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()

    def add_service(self, descriptor: ServiceDescriptor, implementation: object) -> None:
        """Serves a service of a generated module, `shim_pb2.DESCRIPTOR.services_by_name["Task"]`."""
        self._methods.update(methods_of(descriptor, implementation))

    def serve(self, listener: socket.socket) -> None:
        """Accepts on a listening socket from now on; the server owns it."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, lambda _events: self._accept(listener))

    def stop_listening(self) -> None:
        """Closes the listeners; connections go on."""
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Closes listeners and connections."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.close()

    def flush(self, timeout: float) -> None:
        """Writes what is queued for the clients, waiting at most `timeout` seconds for each."""
        for connection in list(self._connections):
            connection.flush(timeout)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        if not self._trusted(sock):
            _log.warning("refused a ttrpc connection of another user")
            sock.close()
            return
        self._connections.add(_Connection(self, sock))

    def _dispatch(self, request: Request) -> Message | Deferred:
        method = self._methods.get((request.service, request.method))
        if method is None:
            if not any(service == request.service for service, _ in self._methods):
                raise TTRPCError(Code.UNIMPLEMENTED, f"service {request.service}")
            raise TTRPCError(Code.UNIMPLEMENTED, f"method {request.method}")
        message = method.request_type()
        try:
            message.ParseFromString(request.payload)
        except DecodeError as error:
            raise TTRPCError(Code.INVALID_ARGUMENT, f"unmarshal of {request.method}: {error}") from error
        timeout = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        return method.handler(message, Call(request.service, request.method, request.metadata, timeout))


class _Connection:
    """One client: frames in, answers out in the order in which they become ready."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._decoder = FrameDecoder()
        self._out = bytearray()
        self._last_id = 0
        self._open = True
        sock.setblocking(False)
        server._selector.register(sock, selectors.EVENT_READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ and self._open:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for frame in self._decoder.feed(data):
            if not self._open:
                return
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if frame.oversized:
            self._fail(
                stream_id,
                Code.RESOURCE_EXHAUSTED,
                f"message length {frame.oversized} exceed maximum message size of {MAX_PAYLOAD}",
            )
        elif stream_id % 2 != 1:
            self._fail(stream_id, Code.INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
        elif frame.type != Type.REQUEST:
            self._fail(stream_id, Code.INVALID_ARGUMENT, "only unary requests are served")
        elif stream_id <= self._last_id:
            self._fail(stream_id, Code.INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
        else:
            self._last_id = stream_id
            self._serve(stream_id, frame.payload)

    def _serve(self, stream_id: int, payload: bytes) -> None:
        try:
            outcome = self._server._dispatch(Request.decode(payload))
        except TTRPCError as error:
            self._fail(stream_id, error.code, error.message)
        except ProtocolError as error:
            self._fail(stream_id, Code.INVALID_ARGUMENT, str(error))
        except Exception as error:
            _log.exception("a ttrpc handler failed")
            self._fail(stream_id, Code.UNKNOWN, f"{type(error).__name__}: {error}")
        else:
            if isinstance(outcome, Deferred):
                outcome._deliver_to(lambda result: self._answer(stream_id, result))
            else:
                self._answer(stream_id, outcome)

    def _answer(self, stream_id: int, outcome: Message | TTRPCError) -> None:
        if isinstance(outcome, TTRPCError):
            self._fail(stream_id, outcome.code, outcome.message)
        else:
            self._send(response_frame(stream_id, Response(outcome.SerializeToString())))

    def _fail(self, stream_id: int, code: Code, message: str) -> None:
        self._send(response_frame(stream_id, Response(code=code, message=message)))

    def _send(self, frame: bytes) -> None:
        if not self._open:
            return
        waiting = bool(self._out)
        self._out += frame
        if not waiting:
            self._write()

    def _write(self) -> None:
        try:
            while self._out:
                sent = self._socket.send(self._out)
                del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)
            return
        except OSError:
            self.close()
            return
        self._watch(selectors.EVENT_READ)

    def _watch(self, events: int) -> None:
        if self._server._selector.get_key(self._socket).events != events:
            self._server._selector.modify(self._socket, events, self._ready)

    def flush(self, timeout: float) -> None:
        if self._open and self._out:
            try:
                self._socket.settimeout(timeout)
                self._socket.sendall(self._out)
            except OSError:
                _log.info("a ttrpc client left without taking its last answer")
            self._out.clear()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._server._selector.unregister(self._socket)
            self._server._connections.discard(self)
            self._socket.close()
