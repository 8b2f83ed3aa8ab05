"""Replies that come when something is done: at once where it is quick, else on a connection that left HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable

import flask
import pytest

from dockerd.api import later
from dockerd.errors import Conflict, EngineError
from dockerd.server.detached import Detached

Done = Callable[[EngineError | None], None]


def begin(result: EngineError | None, at_once: bool) -> tuple[Done | None, flask.Response | None, Detached | None]:
    """Reply to something that is done at once, or later by the function that comes back."""
    kept: list[Done] = []

    def start(done: Done) -> None:
        kept.append(done)
        if at_once:
            done(result)

    with flask.Flask("test").test_request_context():
        try:
            return kept[0] if kept else None, later.reply_when_done(start), None
        except Detached as detached:
            return kept[0], None, detached


def test_what_is_done_at_once_is_an_ordinary_reply() -> None:
    """204 or the error, and the connection stays."""
    _, response, _ = begin(None, at_once=True)
    assert response is not None
    assert response.status_code == 204
    with pytest.raises(Conflict):
        begin(Conflict("no"), at_once=True)


@pytest.mark.parametrize("first", ["take", "done"])
@pytest.mark.parametrize(
    ("result", "head", "body"),
    [(None, b"HTTP/1.1 204 No Content", b""), (Conflict("no"), b"HTTP/1.1 409 Conflict", b'{"message":"no"}\n')],
)
def test_what_takes_longer_is_answered_on_the_connection(
    monkeypatch: pytest.MonkeyPatch, first: str, result: EngineError | None, head: bytes, body: bytes
) -> None:
    """Whichever comes first, the end or the connection."""
    monkeypatch.setattr(later, "_AT_ONCE", 0)
    done, _, detached = begin(result, at_once=False)
    assert done is not None
    assert detached is not None
    ours, theirs = socket.socketpair()
    steps = [lambda: detached.take(theirs, b""), lambda: done(result)]
    for step in steps if first == "take" else reversed(steps):
        step()
    answer = b""
    while piece := ours.recv(4096):
        answer += piece
    ours.close()
    assert answer.startswith(head + b"\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == body
