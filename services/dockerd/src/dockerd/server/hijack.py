"""Answers that turn a request's connection into a stream: attach and exec."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NoReturn

import flask

from dockerd.server.detached import Detached, Take

__all__ = ["refuse", "upgrade"]


def upgrade(take: Take, *, multiplexed: bool, headers: Iterable[tuple[str, str]] = ()) -> NoReturn:
    """Answer the request by making its connection a raw, two-way stream, and give it to ``take``.

    With an Upgrade header in the request the answer is 101, else 200, as clients of before API 1.20 expect.
    ``multiplexed`` chooses the media type, for clients of API 1.42 or later. ``take`` runs in the worker's thread,
    may block a short while, and owns the socket.
    """
    asked = flask.request.headers.get("Upgrade") is not None
    framed = asked and multiplexed and flask.g.api_version >= (1, 42)
    lines = ["HTTP/1.1 101 UPGRADED" if asked else "HTTP/1.1 200 OK"]
    lines.append(f"Content-Type: application/vnd.docker.{'multiplexed' if framed else 'raw'}-stream")
    if asked:
        lines += ["Connection: Upgrade", "Upgrade: tcp"]
    lines += [f"{name}: {value}" for name, value in headers]
    raise Detached(_behind("\r\n".join(lines) + "\r\n\r\n", take))


def refuse(status: int, phrase: str, message: str) -> NoReturn:
    """Answer a request for a stream with an error, in the form that the real engine has for it: text until the end."""
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n{message}\r\n"

    def take(client: socket.socket, _early: bytes) -> None:
        client.close()

    raise Detached(_behind(head, take))


def _behind(head: str, take: Take) -> Take:
    def start(client: socket.socket, early: bytes) -> None:
        try:
            client.sendall(head.encode("latin-1", "replace"))
        except OSError:
            client.close()  # the client did not wait for the answer
            return
        take(client, early)

    return start
