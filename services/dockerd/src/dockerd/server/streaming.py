"""Responses that go on: events, wait, logs -f, stats.

A view opens a stream, arranges for someone to write to it, and detaches::

    stream = open_stream(content_type="application/json")
    stream.on_close(events.subscribe(lambda event: stream.write(encode(event)), filters))
    stream.detach()

``detach`` raises: the worker then gives the connection to the reactor, and its thread is free for the next request.
The writer may be any thread, before or after that moment.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import NoReturn

import flask

from dockerd.server.detached import Detached
from dockerd.server.reactor import HANGUP, READ, WRITE, Reactor

__all__ = ["ResponseStream", "open_stream"]

HIGH_WATER = 1 << 20
"""Bytes kept for a client that reads slowly before :meth:`ResponseStream.write` says to pause."""

TURNS = 4
"""Pieces that one response produces before the loop looks at the others."""

OVERFLOW = 64 << 20
"""Bytes kept for a client whose writer cannot pause, before it is dropped."""


class ResponseStream:
    """One long response. ``write``, ``close`` and ``on_close`` may be called from any thread."""

    def __init__(self, reactor: Reactor, head: bytes, *, chunked: bool) -> None:
        self.head = head
        self.chunked = chunked
        self._reactor = reactor
        self._lock = threading.Lock()
        self._buffer: deque[bytes] = deque([head])
        self._buffered = len(head)
        self._ended = False  # nothing more will be written
        self._gone = False  # nothing more can be sent
        self._socket: socket.socket | None = None
        self._flushing = False
        self._writable = False
        self._producer: Callable[[], bytes | None] | None = None
        self._close_callbacks: list[Callable[[], None]] = []

    @property
    def closed(self) -> bool:
        """Whether nothing that is written from now on can arrive."""
        return self._ended or self._gone

    def write(self, data: bytes) -> bool:
        """Queue ``data`` as one chunk. False when the client is behind: the writer should pause, if it can."""
        if not data:
            return self._buffered < HIGH_WATER
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data
        with self._lock:
            if self._ended or self._gone:
                return False
            self._buffer.append(chunk)
            self._buffered += len(chunk)
            overflow = self._buffered > OVERFLOW
        if overflow:
            self._reactor.call_soon(self._finish)
            return False
        self._schedule()
        return self._buffered < HIGH_WATER

    def produce(self, producer: Callable[[], bytes | None]) -> None:
        """Let ``producer`` be asked, in the loop, whenever the client has read enough.

        It returns the next piece, or None when there is none now; :meth:`wake` makes it be asked again.
        """
        self._producer = producer
        self._schedule()

    def wake(self) -> None:
        """There may be something new to produce."""
        self._schedule()

    def close(self) -> None:
        """End the response after what was written, and close the connection."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self.chunked and not self._gone:
                self._buffer.append(b"0\r\n\r\n")
                self._buffered += 5
        self._schedule()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in the loop, when the response has ended or the client has gone away."""
        with self._lock:
            if not self._gone:
                self._close_callbacks.append(callback)
                return
        self._reactor.call_soon(callback)

    def detach(self) -> NoReturn:
        """Leave the view: the worker hands the connection over to the reactor."""
        raise Detached(lambda client, _early: self.adopt(client), self.abandon)

    def adopt(self, client: socket.socket, head_sent: bool = False) -> None:
        """Take the connection over (in a worker's thread); ``head_sent``: all but the body is out already."""
        client.setblocking(False)
        if head_sent:
            with self._lock:
                self._buffer.popleft()
                self._buffered -= len(self.head)
        self._reactor.call_soon(lambda: self._attach(client))

    def abandon(self) -> None:
        """There will be no connection."""
        self._reactor.call_soon(self._finish)

    def _attach(self, client: socket.socket) -> None:
        if self._gone:
            client.close()
            return
        self._socket = client
        self._reactor.watch(client.fileno(), READ, self._on_events)
        self._flush()

    def _schedule(self) -> None:
        with self._lock:
            if self._flushing or self._socket is None:
                return
            self._flushing = True
        self._reactor.call_soon(self._flush)

    def _on_events(self, events: int) -> None:
        if events & HANGUP or (events & READ and self._client_left()):
            self._finish()
            return
        if events & WRITE:
            self._flush()

    def _client_left(self) -> bool:
        assert self._socket is not None
        try:
            return not self._socket.recv(4096)  # what a client says after its request has no meaning here
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _flush(self) -> None:
        with self._lock:
            self._flushing = False
        if self._socket is None or self._gone:
            return
        try:
            drained = self._send_produced(self._socket)
        except OSError:
            self._finish()
            return
        with self._lock:
            done = self._ended and not self._buffer
        if done:
            self._finish()
        else:
            self._want_write(self._socket, not drained)

    def _send_produced(self, client: socket.socket) -> bool:
        """Send what is queued, and what the producer has, until there is nothing (True) or the client is behind."""
        # A bounded number of turns: other connections have their share of the loop.
        for _ in range(TURNS):
            if not self._send_buffered(client):
                return False
            if self._producer is None or self._ended:
                return True
            piece = self._producer()
            if piece:
                self.write(piece)
            elif not self._ended:
                return True
        self._schedule()
        return True

    def _send_buffered(self, client: socket.socket) -> bool:
        """Send until nothing is left (True) or the client's buffer is full (False)."""
        while self._buffer:
            piece = self._buffer[0]
            try:
                sent = client.send(piece)
            except BlockingIOError:
                return False
            with self._lock:
                self._buffered -= sent
                if sent == len(piece):
                    self._buffer.popleft()
                else:
                    self._buffer[0] = piece[sent:]
        return True

    def _want_write(self, client: socket.socket, wanted: bool) -> None:
        if wanted != self._writable:
            self._writable = wanted
            self._reactor.rewatch(client.fileno(), READ | WRITE if wanted else READ)

    def _finish(self) -> None:
        with self._lock:
            if self._gone:
                return
            self._gone = True
            self._buffer.clear()
            self._buffered = 0
            callbacks, self._close_callbacks = self._close_callbacks, []
        client, self._socket = self._socket, None
        if client is not None:
            self._reactor.unwatch(client.fileno())
            client.close()
        for callback in callbacks:
            callback()


def open_stream(
    status: int = 200,
    content_type: str = "application/json",
    raw: bool = False,
    headers: Iterable[tuple[str, str]] = (),
) -> ResponseStream:
    """Begin a long response to the current request; the head goes out when the view has detached.

    ``raw``: the body ends with the connection instead of being chunked, as it always is for HTTP/1.0.
    """
    from dockerd.api.headers import common_headers

    engine_reactor: Reactor = flask.current_app.extensions["engine"].reactor
    chunked = not raw and flask.request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    fields = [*common_headers(), ("Content-Type", content_type), *headers, ("Date", formatdate(usegmt=True))]
    lines += [f"{name}: {value}" for name, value in fields]
    lines += ["Connection: close"]
    if chunked:
        lines += ["Transfer-Encoding: chunked"]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return ResponseStream(engine_reactor, head, chunked=chunked)
