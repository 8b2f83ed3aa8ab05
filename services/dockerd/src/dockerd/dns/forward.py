"""Asking other servers what is no container's name: by datagram, or by stream for whoever asked so."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Sequence

from dockerd.dns import message

__all__ = ["Forwarder", "HostServers", "take_frame"]

_PATIENCE = 3.0
"""How long one server may take, in seconds."""
_MOST = 1000
_MOST_OF_ONE = 100
_RESOLV_CONF = "/etc/resolv.conf"

Reply = Callable[[bytes | None], None]


class _Exchange:
    """A question on its way: to which servers it still can go, and who waits."""

    def __init__(
        self, asker: str, query: message.Query, data: bytes, servers: Sequence[str], stream: bool, reply: Reply
    ) -> None:
        self.asker = asker
        self.query = query
        self.data = data
        self.servers = list(servers)
        self.stream = stream
        self.reply = reply
        self.id = 0
        self.socket: socket.socket | None = None
        self.output = b""
        self.input = bytearray()
        self.deadline = 0.0


class Forwarder:
    """All questions that are under way. Belongs to the one thread of the selector."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._exchanges: dict[_Exchange, None] = {}  # in the order of their deadlines

    def ask(
        self, asker: str, query: message.Query, data: bytes, servers: Sequence[str], stream: bool, reply: Reply
    ) -> None:
        """Ask one server after the other; ``reply`` gets the answer under the asker's number, or None."""
        mine = sum(1 for exchange in self._exchanges if exchange.asker == asker)
        if len(self._exchanges) >= _MOST or mine >= _MOST_OF_ONE:
            reply(None)
            return
        self._next(_Exchange(asker, query, data, servers[:5], stream, reply))

    def forget(self, asker: str) -> None:
        """Whoever asked is gone."""
        for exchange in [one for one in self._exchanges if one.asker == asker]:
            self._drop(exchange)

    def expire(self) -> float | None:
        """Give up on servers that took too long; returns the seconds until the next may have, None without any."""
        now = time.monotonic()
        for exchange in list(self._exchanges):
            if exchange.deadline > now:
                return exchange.deadline - now
            self._drop(exchange)
            self._next(exchange)
        return None

    def _next(self, exchange: _Exchange) -> None:
        while exchange.servers:
            server = exchange.servers.pop(0)
            try:
                self._send(exchange, server)
                return
            except (OSError, ValueError):
                self._drop(exchange)
        exchange.reply(None)

    def _send(self, exchange: _Exchange, server: str) -> None:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if exchange.stream else socket.SOCK_DGRAM
        exchange.socket = own = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # A number and a port that nobody can guess: an answer that was not asked for is not taken.
        exchange.id = secrets.randbelow(1 << 16)
        exchange.input.clear()
        data = message.with_id(exchange.data, exchange.id)
        with contextlib.suppress(BlockingIOError):
            own.connect((server, 53))
        if exchange.stream:
            exchange.output = len(data).to_bytes(2, "big") + data
            self._selector.register(own, selectors.EVENT_READ | selectors.EVENT_WRITE, (self._stream, exchange))
        else:
            own.send(data)
            self._selector.register(own, selectors.EVENT_READ, (self._datagram, exchange))
        exchange.deadline = time.monotonic() + _PATIENCE
        self._exchanges[exchange] = None

    def _datagram(self, exchange: _Exchange, _events: int) -> None:
        assert exchange.socket is not None
        try:
            data = exchange.socket.recv(65535)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._drop(exchange)
            self._next(exchange)
            return
        if message.is_reply_to(data, exchange.id, exchange.query):
            self._finish(exchange, data)

    def _stream(self, exchange: _Exchange, events: int) -> None:
        own = exchange.socket
        assert own is not None
        try:
            if events & selectors.EVENT_WRITE and exchange.output:
                exchange.output = exchange.output[own.send(exchange.output) :]
                if not exchange.output:
                    self._selector.modify(own, selectors.EVENT_READ, (self._stream, exchange))
            if events & selectors.EVENT_READ:
                received = own.recv(65537)
                exchange.input += received
                data = take_frame(exchange.input)
                if data is not None and message.is_reply_to(data, exchange.id, exchange.query):
                    self._finish(exchange, data)
                    return
                if data is not None or not received:
                    raise ConnectionError
        except BlockingIOError:
            return
        except OSError:
            self._drop(exchange)
            self._next(exchange)

    def _finish(self, exchange: _Exchange, data: bytes) -> None:
        self._drop(exchange)
        exchange.reply(message.with_id(data, exchange.query.id))

    def _drop(self, exchange: _Exchange) -> None:
        self._exchanges.pop(exchange, None)
        if exchange.socket is not None:
            with contextlib.suppress(KeyError):  # it failed before it was registered
                self._selector.unregister(exchange.socket)
            exchange.socket.close()
            exchange.socket = None


def take_frame(buffer: bytearray) -> bytes | None:
    """Take the first message off what a stream has brought, None while it is not whole (RFC 1035, 4.2.2)."""
    if len(buffer) < 2:
        return None
    size = int.from_bytes(buffer[:2], "big")
    if len(buffer) < 2 + size:
        return None
    frame = bytes(buffer[2 : 2 + size])
    del buffer[: 2 + size]
    return frame


class HostServers:
    """The host's name servers, read again when the file has changed."""

    def __init__(self, path: str = _RESOLV_CONF) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._servers: list[str] = []

    def current(self) -> list[str]:
        """Their addresses; none when there is no file."""
        try:
            status = os.stat(self._path)
            if self._stamp != (status.st_mtime_ns, status.st_ino):
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    words = [line.split() for line in file.read(1 << 16).splitlines()]
                self._servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
                self._stamp = (status.st_mtime_ns, status.st_ino)
        except OSError:
            self._stamp, self._servers = None, []
        return self._servers
