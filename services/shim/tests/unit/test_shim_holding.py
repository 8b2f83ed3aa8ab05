"""Connections that wait for an answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shim.errors import InvalidArgument
from shim.holding import Holding
from shim.loop import Loop

KEY = ("moby", "box")


@pytest.fixture
def holding() -> Iterator[Holding]:
    """An empty one."""
    made = Holding(Loop())
    yield made
    made.close()
    made.loop.close()


def held(holding: Holding, condition: str) -> socket.socket:
    """Hold one end of a connection, return the client's."""
    client, server = socket.socketpair()
    client.settimeout(5)
    holding.hold(KEY, condition, server.detach())
    return client


def test_the_answer_goes_to_who_waits_for_it(holding: Holding) -> None:
    """Only the conditions named are answered, and their connections end."""
    exits, removed = held(holding, "next-exit"), held(holding, "removed")
    holding.answer(KEY, ["not-running", "next-exit"], b"done")
    assert (exits.recv(99), exits.recv(99)) == (b"done", b"")
    assert holding.count() == 1
    holding.answer(("moby", "other"), ["removed"], b"not for you")
    holding.answer(KEY, ["removed"], b"gone")
    assert (removed.recv(99), removed.recv(99)) == (b"gone", b"")
    assert holding.count() == 0
    exits.close()
    removed.close()


def test_a_client_that_hangs_up_is_let_go(holding: Holding) -> None:
    """Its descriptor is closed, and answering later does no harm."""
    held(holding, "removed").close()
    while holding.count():
        holding.loop.run_once()
    holding.answer(KEY, ["removed"], b"late")


def test_an_unknown_condition_is_refused(holding: Holding) -> None:
    """The caller keeps the connection."""
    client, server = socket.socketpair()
    with client, server, pytest.raises(InvalidArgument, match="no such condition: 'tomorrow'"):
        holding.hold(KEY, "tomorrow", server.fileno())
