"""containerd's Transfer service, and the streams that go with a transfer: progress, credentials, archives."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message

from dockerd import errors
from dockerd.containerd_client import Client
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2
from gantry.contracts.containerd.services.transfer.v1 import transfer_pb2
from gantry.contracts.containerd.types.transfer import progress_pb2, registry_pb2
from gantry.contracts.containerd.types.transfer import streaming_pb2 as data_pb2

__all__ = [
    "Credentials",
    "Stream",
    "Upload",
    "answer_credentials",
    "in_background",
    "open_stream",
    "receive_bytes",
    "run",
    "send_bytes",
]

_WINDOW = 4 << 20
"""Bytes of an archive that may be under way before the reader says that it can take more."""

_PIECE = 1 << 20


@dataclass(frozen=True)
class Credentials:
    """What the client knows about a registry: name and password, or an identity token, or a ready-made token."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class Stream:
    """One stream of containerd's Streaming service, opened by us under an id of our choice."""

    def __init__(self, containerd: Client) -> None:
        self.id = f"dockerd-{secrets.token_hex(16)}"
        self._outgoing: queue.SimpleQueue[any_pb2.Any | None] = queue.SimpleQueue()
        self._outgoing.put(pack(streaming_pb2.StreamInit(id=self.id)))
        self._call: Any = containerd.streaming.Stream(iter(self._outgoing.get, None))
        next(self._call)  # containerd knows the stream from here on

    def send(self, message: Message) -> None:
        """Send a message."""
        self._outgoing.put(pack(message))

    def end(self) -> None:
        """Say that no more is sent."""
        self._outgoing.put(None)

    def cancel(self) -> None:
        """End the stream both ways."""
        self.end()
        self._call.cancel()

    def __iter__(self) -> Iterator[any_pb2.Any]:
        """What containerd sends, until it ends the stream or the stream is cancelled."""
        try:
            yield from self._call
        except errors.EngineError:
            return


def pack(message: Message) -> any_pb2.Any:
    """A message with its bare name as type, as containerd writes it."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def run(
    containerd: Client, source: Message, destination: Message, metadata: tuple[tuple[str, str], ...] = ()
) -> Iterator[progress_pb2.Progress]:
    """Run a transfer to its end, and yield its progress.

    Raises the transfer's error. A generator that is closed cancels the transfer.
    """
    with open_stream(containerd) as progress:
        options = transfer_pb2.TransferOptions(progress_stream=progress.id)
        request = transfer_pb2.TransferRequest(source=pack(source), destination=pack(destination), options=options)
        call = containerd.transfer.Transfer.future(request, metadata=metadata)
        arrived: queue.SimpleQueue[progress_pb2.Progress | None] = queue.SimpleQueue()

        def read() -> None:
            for value in progress:
                message = progress_pb2.Progress()
                if value.type_url.rpartition("/")[2] == message.DESCRIPTOR.full_name:
                    message.ParseFromString(value.value)
                    arrived.put(message)
            arrived.put(None)

        def end() -> None:
            # The stream ends with the transfer: what was sent before is still read. A peer that leaves it open must
            # not keep us.
            progress.end()
            threading.Timer(2.0, arrived.put, (None,)).start()

        reader = threading.Thread(target=read, name="transfer-progress", daemon=True)
        reader.start()
        call.on_end(end)
        try:
            yield from iter(arrived.get, None)
            call.result()
        finally:
            call.cancel()


@contextmanager
def open_stream(containerd: Client) -> Iterator[Stream]:
    """Give a new stream, which ends with the block."""
    stream = Stream(containerd)
    try:
        yield stream
    finally:
        stream.cancel()


@contextmanager
def answer_credentials(containerd: Client, credentials: Credentials | None) -> Iterator[str]:
    """Give the id of a stream on which containerd gets the credentials that it asks for; empty without any."""
    if credentials is None:
        yield ""
        return
    with open_stream(containerd) as stream:
        answer = _answer(credentials)

        def work() -> None:
            for _ in stream:
                stream.send(answer)

        threading.Thread(target=work, name="transfer-credentials", daemon=True).start()
        yield stream.id


def _answer(credentials: Credentials) -> registry_pb2.AuthResponse:
    if credentials.registry_token:
        return registry_pb2.AuthResponse(authType=registry_pb2.HEADER, secret=f"Bearer {credentials.registry_token}")
    if credentials.identity_token:
        return registry_pb2.AuthResponse(authType=registry_pb2.REFRESH, secret=credentials.identity_token)
    if credentials.username or credentials.password:
        return registry_pb2.AuthResponse(
            authType=registry_pb2.CREDENTIALS, username=credentials.username, secret=credentials.password
        )
    return registry_pb2.AuthResponse(authType=registry_pb2.NONE)


class Upload:
    """Sends an archive as containerd asks for it. ``error`` is what reading the archive raised."""

    def __init__(self, stream: Stream, pieces: Iterable[bytes]) -> None:
        self.error: Exception | None = None
        self.id = stream.id
        self._stream = stream
        self._pieces = pieces
        threading.Thread(target=self._work, name="transfer-upload", daemon=True).start()

    def _work(self) -> None:
        try:
            self._send_all()
        except StopIteration:  # containerd wants no more
            self._stream.end()
        except Exception as error:
            self.error = error
            self._stream.cancel()  # so that containerd does not take what came for the whole
        else:
            self._stream.end()

    def _send_all(self) -> None:
        window = 0
        grants = _grants(self._stream)
        for piece in self._pieces:
            view = memoryview(piece)
            while view:
                while window <= 0:
                    window += next(grants)
                part = view[: min(window, _PIECE)]
                self._stream.send(data_pb2.Data(data=bytes(part)))
                window -= len(part)
                view = view[len(part) :]


@contextmanager
def send_bytes(containerd: Client, pieces: Iterable[bytes]) -> Iterator[Upload]:
    """Give a stream on which ``pieces`` are sent. What is taken from them is taken in a thread of its own."""
    with open_stream(containerd) as stream:
        yield Upload(stream, pieces)


def _grants(stream: Stream) -> Iterator[int]:
    for value in stream:
        update = data_pb2.WindowUpdate()
        update.ParseFromString(value.value)
        yield update.update


def receive_bytes(stream: Stream) -> Iterator[bytes]:
    """Yield the bytes that containerd writes to ``stream``, and let it send as much as was taken."""
    stream.send(data_pb2.WindowUpdate(update=_WINDOW))
    taken = 0
    for value in stream:
        message = data_pb2.Data()
        message.ParseFromString(value.value)
        yield message.data
        taken += len(message.data)
        if taken >= _WINDOW // 2:
            stream.send(data_pb2.WindowUpdate(update=taken))
            taken = 0


@contextmanager
def in_background(containerd: Client, source: Message, destination: Message) -> Iterator[Callable[[], None]]:
    """Run a transfer beside the block, and give what waits for its end and raises its error.

    A block that is left before that cancels the transfer.
    """
    request = transfer_pb2.TransferRequest(source=pack(source), destination=pack(destination))
    call = containerd.transfer.Transfer.future(request)
    try:
        yield call.result
    finally:
        call.cancel()
