"""The reactor, and the responses that it carries."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockerd.server import streaming
from dockerd.server.reactor import READ, Reactor
from dockerd.server.streaming import ResponseStream
from dockerd.stdio.inotify import DirectoryWatcher


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A running loop."""
    made = Reactor()
    made.start()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the server's."""
    client, server = socket.socketpair()
    client.settimeout(10)
    yield client, server
    client.close()
    server.close()


def receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


def receive_all(client: socket.socket) -> bytes:
    return receive(client, 1 << 62)


def test_calls_run_in_order_in_one_thread(reactor: Reactor) -> None:
    """Whoever asks, and while the loop sleeps too."""
    ran: list[tuple[int, str]] = []
    done = threading.Event()
    for number in range(100):
        reactor.call_soon(lambda number=number: ran.append((number, threading.current_thread().name)))
    reactor.call_soon(done.set)
    assert done.wait(10)
    assert ran == [(number, "reactor") for number in range(100)]


def test_no_wake_up_is_missed(reactor: Reactor) -> None:
    """A call from another thread never waits for the next event."""
    for _ in range(2000):
        done = threading.Event()
        reactor.call_soon(done.set)
        assert done.wait(5)


def test_timers_fire_in_order_and_can_be_cancelled(reactor: Reactor) -> None:
    """Not before they are due."""
    fired: list[str] = []
    done = threading.Event()
    begun = time.monotonic()
    reactor.call_later(0.06, done.set)
    reactor.call_later(0.03, lambda: fired.append("second"))
    reactor.call_later(0.01, lambda: fired.append("first"))
    reactor.call_later(0.02, lambda: fired.append("never")).cancel()
    assert done.wait(10)
    assert time.monotonic() - begun >= 0.06
    assert fired == ["first", "second"]


def test_a_failing_callback_does_not_end_the_loop(reactor: Reactor) -> None:
    """Everyone else's streams depend on it."""
    done = threading.Event()
    reactor.call_soon(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    reactor.call_soon(done.set)
    assert done.wait(10)


def test_watched_descriptors(reactor: Reactor) -> None:
    """Called when readable, not after unwatch."""
    read, write = os.pipe()
    got: list[bytes] = []
    done = threading.Event()

    def readable(_events: int) -> None:
        got.append(os.read(read, 100))
        reactor.unwatch(read)
        done.set()

    reactor.call_soon(lambda: reactor.watch(read, READ, readable))
    os.write(write, b"x")
    assert done.wait(10)
    os.write(write, b"y")
    assert got == [b"x"]
    os.close(read)
    os.close(write)


def test_a_stream_is_chunked_and_ended(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    """What was written before the connection came is sent too."""
    client, server = pair
    stream = ResponseStream(reactor, b"HEAD\r\n\r\n", chunked=True)
    stream.write(b"early")
    stream.adopt(server)
    stream.write(b"late")
    stream.close()
    assert receive_all(client) == b"HEAD\r\n\r\n5\r\nearly\r\n4\r\nlate\r\n0\r\n\r\n"


def test_a_raw_stream_ends_with_the_connection(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    """As HTTP/1.0 has it."""
    client, server = pair
    stream = ResponseStream(reactor, b"HEAD\r\n\r\n", chunked=False)
    stream.write(b"data")
    stream.adopt(server)
    stream.close()
    assert receive_all(client) == b"HEAD\r\n\r\ndata"


def test_a_client_that_leaves_is_noticed(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    """Without anything being written to it."""
    client, server = pair
    stream = ResponseStream(reactor, b"HEAD", chunked=True)
    gone = threading.Event()
    stream.on_close(gone.set)
    stream.adopt(server)
    receive(client, 4)
    client.close()
    assert gone.wait(10)
    assert stream.closed
    assert stream.write(b"x") is False
    late = threading.Event()
    stream.on_close(late.set)
    assert late.wait(10)


def test_a_slow_client_pauses_its_producer(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    """What it does not read is not produced, and all of it arrives when it reads."""
    client, server = pair
    produced = 0

    def produce() -> bytes | None:
        nonlocal produced
        if produced == 200:
            stream.close()
            return None
        produced += 1
        return b"x" * 100_000

    stream = ResponseStream(reactor, b"", chunked=False)
    stream.adopt(server)
    stream.produce(produce)
    settled = -1
    while settled != produced:
        settled = produced
        time.sleep(0.05)
    assert settled < 50
    assert len(receive_all(client)) == 200 * 100_000


def test_a_client_that_never_reads_is_dropped(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that cannot pause (events) does not fill the memory."""
    monkeypatch.setattr(streaming, "OVERFLOW", 1 << 20)
    _client, server = pair
    stream = ResponseStream(reactor, b"", chunked=True)
    gone = threading.Event()
    stream.on_close(gone.set)
    stream.adopt(server)
    while not stream.closed:
        stream.write(b"x" * 65536)
    assert gone.wait(10)


def test_closing_inside_the_producer_sends_the_end(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    """The last chunk is not lost when the producer itself ends the stream."""
    client, server = pair
    stream = ResponseStream(reactor, b"", chunked=True)
    stream.produce(lambda: stream.close())  # type: ignore[func-returns-value]
    stream.adopt(server)
    stream.wake()
    assert receive_all(client) == b"0\r\n\r\n"


def test_directories_are_watched_by_one_descriptor(reactor: Reactor, tmp_path: Path) -> None:
    """Each callback hears of its own directory, until it has had enough."""
    watcher = DirectoryWatcher(reactor)
    heard = {"a": threading.Event(), "b": threading.Event()}
    for name in heard:
        (tmp_path / name).mkdir()
    ready = threading.Event()

    def begin() -> None:
        for name, event in heard.items():
            watcher.watch(str(tmp_path / name), event.set)
        ready.set()

    reactor.call_soon(begin)
    assert ready.wait(10)
    (tmp_path / "a" / "file").write_text("x")
    assert heard["a"].wait(10)
    assert not heard["b"].is_set()
    ended = threading.Event()
    reactor.call_soon(lambda: (watcher.unwatch(heard["b"].set), ended.set()))  # type: ignore[arg-type, return-value]
    assert ended.wait(10)
    (tmp_path / "b" / "file").write_text("x")
    (tmp_path / "a" / "file2").write_text("x")
    assert not heard["b"].is_set()
