"""Replies to requests that take their time (stop, restart): the connection waits, no thread does."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import flask

from dockerd.api.headers import common_headers
from dockerd.api.request import encode_json, no_content
from dockerd.errors import EngineError
from dockerd.server.detached import Detached

__all__ = ["reply_when_done"]

_log = logging.getLogger(__name__)

_AT_ONCE = 0.2
"""Seconds within which most things are done: their connections stay for further requests."""


def reply_when_done(begin: Callable[[Callable[[EngineError | None], None]], None]) -> flask.Response:
    """Call ``begin`` with what is to be told the end, and answer 204 or the error then; also after the view."""
    reply = _Reply()
    begin(reply.settle)
    if reply.settled.wait(_AT_ONCE):
        if reply.error is not None:
            raise reply.error
        return no_content()
    raise Detached(reply.take)


class _Reply:
    def __init__(self) -> None:
        self.settled = threading.Event()
        self.error: EngineError | None = None
        self._lock = threading.Lock()
        self._client: socket.socket | None = None

    def settle(self, error: EngineError | None) -> None:
        """It is done. Called once, in any thread."""
        with self._lock:
            self.error = error
            self.settled.set()
            client = self._client
        if client is not None:
            self._send(client)

    def take(self, client: socket.socket, _early: bytes) -> None:
        """The view has gone, its connection stays."""
        with self._lock:
            self._client = client
            settled = self.settled.is_set()
        if settled:
            self._send(client)

    def _send(self, client: socket.socket) -> None:
        # A few hundred bytes, the first on this connection for a while: they fit into its buffer.
        client.setblocking(False)
        try:
            client.sendall(_response(self.error))
        except OSError as error:
            _log.debug("a client did not wait for its answer: %s", error)
        finally:
            client.close()


def _response(error: EngineError | None) -> bytes:
    status = error.status if error is not None else 204
    body = encode_json({"message": str(error)}) if error is not None else b""
    fields = [*common_headers(), ("Date", formatdate(usegmt=True)), ("Connection", "close")]
    if error is not None:
        _log.error("%s", error)
        fields += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
