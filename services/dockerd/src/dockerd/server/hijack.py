"""Connections that stop being HTTP: attach, exec, and every response that outlives its view.

A view that wants the client's connection raises :class:`Detached`, from anywhere below Flask. It is a BaseException, so that
no error handler on the way takes it for a failure. The worker then calls :attr:`Detached.take` with the socket and the bytes
that the client had already sent, and forgets the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NoReturn

import flask

__all__ = ["Detached", "upgrade"]

Take = Callable[[socket.socket, bytes], None]


class Detached(BaseException):
    """The connection leaves HTTP. ``take`` owns the socket from its call on; ``abandon`` is called when that cannot be."""

    def __init__(self, take: Take, abandon: Callable[[], None] | None = None) -> None:
        super().__init__("the connection was handed over")
        self.take = take
        self.abandon = abandon or (lambda: None)


def upgrade(take: Take, *, multiplexed: bool) -> NoReturn:
    """Answer the request by making its connection a raw, two-way stream, and give it to ``take``.

    With ``Connection: Upgrade`` and ``Upgrade: tcp`` in the request the answer is 101, else 200 (clients before
    API 1.20). ``take`` runs in the worker's thread, may block a short while, and owns the socket.
    """
    request = flask.request
    kind = "multiplexed" if multiplexed else "raw"
    fields = f"Content-Type: application/vnd.docker.{kind}-stream\r\n"
    if request.headers.get("Upgrade"):
        head = f"HTTP/1.1 101 UPGRADED\r\n{fields}Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\n{fields}\r\n"

    def start(client: socket.socket, early: bytes) -> None:
        try:
            client.sendall(head.encode("latin-1"))
        except OSError:
            client.close()
            return
        take(client, early)

    raise Detached(start)
