"""The streams of a transfer: archives within windows, credentials, progress, cancelling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import any_pb2

from dockerd import errors
from dockerd.images import transfer
from dockerd.images.transfer import Credentials
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2
from gantry.contracts.containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2
from gantry.contracts.containerd.types.transfer import streaming_pb2 as data_pb2


class Peer:
    """containerd's side of one stream."""

    def __init__(self, requests: Iterator[any_pb2.Any]) -> None:
        self.requests = requests
        self.outgoing: queue.SimpleQueue[any_pb2.Any | None] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.outgoing.put(any_pb2.Any(type_url="google.protobuf.Empty"))
        self.id = streaming_pb2.StreamInit.FromString(next(requests).value).id

    def send(self, message: Any) -> None:
        self.outgoing.put(transfer.pack(message))

    def receive(self, kind: Any) -> Any:
        return kind.FromString(next(self.requests).value)

    def received(self) -> bytes:
        return b"".join(data_pb2.Data.FromString(value.value).data for value in self.requests)

    # What grpc's call object is to us.

    def __iter__(self) -> Peer:
        return self

    def __next__(self) -> any_pb2.Any:
        value = self.outgoing.get()
        if value is None:
            raise StopIteration
        return value

    def cancel(self) -> None:
        self.cancelled.set()
        self.outgoing.put(None)


class Containerd:
    """Hands out peers."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.streaming = SimpleNamespace(Stream=self._stream)
        self.call: Any = None
        self.transfer = SimpleNamespace(Transfer=SimpleNamespace(future=self._future))

    def _stream(self, requests: Iterator[any_pb2.Any]) -> Peer:
        self.peers.append(Peer(requests))
        return self.peers[-1]

    def _future(self, request: Any, metadata: Any = ()) -> Any:
        self.request = request
        return self.call


@pytest.fixture
def containerd() -> Any:
    return Containerd()


def test_an_archive_is_sent_within_the_window(containerd: Any) -> None:
    """Never more than was granted, and everything in the end."""
    with transfer.send_bytes(containerd, [b"0123456789", b"abcdef"]) as upload:
        (peer,) = containerd.peers
        assert upload.id == peer.id
        peer.send(data_pb2.WindowUpdate(update=4))
        assert peer.receive(data_pb2.Data).data == b"0123"
        peer.send(data_pb2.WindowUpdate(update=3))
        assert peer.receive(data_pb2.Data).data == b"456"
        peer.send(data_pb2.WindowUpdate(update=100))
        assert peer.received() == b"789abcdef"
    assert upload.error is None
    assert peer.cancelled.is_set()


def test_an_archive_that_cannot_be_read(containerd: Any) -> None:
    """The stream is cancelled rather than ended, so that what came is not taken for the whole."""

    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the client went away")

    with transfer.send_bytes(containerd, pieces()) as upload:
        (peer,) = containerd.peers
        peer.send(data_pb2.WindowUpdate(update=100))
        assert peer.received() == b"some"
        assert peer.cancelled.wait(5)
        assert str(upload.error) == "the client went away"


def test_a_peer_that_wants_no_more(containerd: Any) -> None:
    """Sending ends when containerd closes its side."""
    with transfer.send_bytes(containerd, [b"x" * 100]) as upload:
        (peer,) = containerd.peers
        peer.send(data_pb2.WindowUpdate(update=10))
        peer.outgoing.put(None)
        assert peer.received() == b"x" * 10
    assert upload.error is None


def test_an_archive_is_taken_piece_by_piece(containerd: Any) -> None:
    """containerd may send as much as was taken, and a first window."""
    with transfer.open_stream(containerd) as stream:
        (peer,) = containerd.peers
        pieces = transfer.receive_bytes(stream)
        half = 2 << 20
        for _ in range(2):
            peer.send(data_pb2.Data(data=b"x" * half))
        peer.outgoing.put(None)
        assert [len(piece) for piece in pieces] == [half, half]
        assert peer.receive(data_pb2.WindowUpdate).update == 4 << 20
        assert peer.receive(data_pb2.WindowUpdate).update == half


@pytest.mark.parametrize(
    ("credentials", "answer"),
    [
        (
            Credentials("me", "pass"),
            registry_pb2.AuthResponse(authType=registry_pb2.CREDENTIALS, username="me", secret="pass"),
        ),
        (
            Credentials(identity_token="t"),
            registry_pb2.AuthResponse(authType=registry_pb2.REFRESH, secret="t"),
        ),
        (
            Credentials(registry_token="t"),
            registry_pb2.AuthResponse(authType=registry_pb2.HEADER, secret="Bearer t"),
        ),
    ],
)
def test_credentials_are_given_when_asked_for(containerd: Any, credentials: Credentials, answer: Any) -> None:
    """Each kind in its form, and not before containerd asks."""
    with transfer.answer_credentials(containerd, credentials) as stream:
        (peer,) = containerd.peers
        assert stream == peer.id
        peer.send(registry_pb2.AuthRequest(host="h"))
        assert peer.receive(registry_pb2.AuthResponse) == answer


def test_no_credentials_no_stream(containerd: Any) -> None:
    """containerd then goes on anonymously."""
    with transfer.answer_credentials(containerd, None) as stream:
        assert (stream, containerd.peers) == ("", [])


class Call:
    """A transfer under way."""

    def __init__(self, error: errors.EngineError | None = None) -> None:
        self.error = error
        self.cancelled = False
        self.callback: Any = None
        self.begun = threading.Event()

    def on_end(self, callback: Any) -> None:
        self.callback = callback
        self.begun.set()

    def result(self) -> None:
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled = True


def play(containerd: Any, events: list[str]) -> None:
    """Be containerd: send progress, end the stream, end the call."""

    def work() -> None:
        assert containerd.call.begun.wait(5)
        for event in events:
            containerd.peers[0].send(progress_pb2.Progress(event=event))
        containerd.peers[0].outgoing.put(None)
        containerd.call.callback()

    threading.Thread(target=work).start()


def run(containerd: Any) -> Iterator[str]:
    steps = transfer.run(containerd, registry_pb2.OCIRegistry(reference="r"), imagestore_pb2.ImageStore(name="n"))
    return (step.event for step in steps)


def test_progress_is_yielded_to_the_end(containerd: Any) -> None:
    """What was sent before the end is not lost."""
    containerd.call = Call()
    play(containerd, ["one", "two"])
    assert list(run(containerd)) == ["one", "two"]
    assert containerd.request.source.type_url == "containerd.types.transfer.OCIRegistry"
    assert containerd.request.options.progress_stream == containerd.peers[0].id


def test_a_failed_transfer_raises_after_its_progress(containerd: Any) -> None:
    """The error is the call's own."""
    containerd.call = Call(errors.NotFound("nothing there"))
    play(containerd, ["one"])
    steps = run(containerd)
    assert next(steps) == "one"
    with pytest.raises(errors.NotFound, match="nothing there"):
        next(steps)


def test_a_transfer_that_nobody_waits_for_is_cancelled(containerd: Any) -> None:
    """A client that goes away ends it."""
    containerd.call = Call()
    play(containerd, ["one", "two"])
    steps = transfer.run(containerd, registry_pb2.OCIRegistry(), imagestore_pb2.ImageStore())
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert containerd.call.cancelled
    assert containerd.peers[0].cancelled.is_set()
