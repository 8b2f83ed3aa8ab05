"""Connections that leave HTTP: attach, exec, and every response that outlives its view.

A view that wants the client's connection raises :class:`Detached`, from anywhere below Flask. It is a BaseException,
so that no error handler on the way takes it for a failure. The worker then calls :attr:`Detached.take` with the
socket and the bytes that the client had already sent, and forgets the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["Detached", "Take"]

Take = Callable[[socket.socket, bytes], None]


class Detached(BaseException):
    """The connection leaves HTTP.

    ``take`` owns the socket from its call on; ``abandon`` is called instead when the connection is broken.
    """

    def __init__(self, take: Take, abandon: Callable[[], None] | None = None) -> None:
        super().__init__("the connection was handed over")
        self.take = take
        self.abandon = abandon or (lambda: None)
