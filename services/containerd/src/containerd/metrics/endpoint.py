"""A small HTTP server in the event loop: GET of a few paths, one request for each connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Endpoint", "Page"]

_log = logging.getLogger(__name__)

REQUEST_LIMIT = 16 << 10
"""Bytes of a request's head."""
TIMEOUT = 30.0
"""Seconds for a request and its answer."""

Page = Callable[[], Awaitable[tuple[str, str]]]
"""Gives (content type, text)."""


class Endpoint:
    """Serves ``pages``, by path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> None:
        """Answer at ``HOST:PORT``. Raises OSError and ValueError for an address that cannot be used."""
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise ValueError(f"{address!r} is not HOST:PORT")
        self._server = await asyncio.start_server(self._serve, host.strip("[]") or None, int(port), limit=REQUEST_LIMIT)

    async def listen_unix(self, path: str, uid: int, gid: int) -> None:
        """Answer at a unix socket with mode 0660. Raises OSError."""
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        os.chown(path, uid, gid)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_LIMIT)

    @property
    def port(self) -> int:
        """The TCP port that is listened at."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that sends nonsense, stalls or leaves is its own problem.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        writer.close()

    async def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request", "text/plain; charset=utf-8", "400 Bad Request\n")
        method, path = words[0], words[1].partition("?")[0]
        page = self._pages.get(path)
        if page is None:
            return _response("404 Not Found", "text/plain; charset=utf-8", "404 page not found\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain; charset=utf-8", "405 method not allowed\n")
        try:
            kind, text = await page()
        except Exception:
            _log.exception("page failed", extra={"path": path})
            return _response("500 Internal Server Error", "text/plain; charset=utf-8", "see the daemon's log\n")
        return _response("200 OK", kind, text, body=method == "GET")


def _response(status: str, kind: str, text: str, *, body: bool = True) -> bytes:
    data = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + (data if body else b"")
