"""What the networks' store remembers between writes: listings read it for every container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dockerd.networks.store import NetworkStore
from dockerd.store import open_database
from gantry.database import Database


class Counting:
    """A database that counts its reads; ``meanwhile`` runs once, in the middle of the next one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0
        self.meanwhile: Any = None
        self.write = database.write

    def read(self) -> Any:
        """Count, and read."""
        self.reads += 1
        meanwhile, self.meanwhile = self.meanwhile, None
        inner = self._database.read()
        if meanwhile is not None:
            rows = inner.__enter__()
            meanwhile()
            inner.__exit__(None, None, None)
            del rows
            return self._database.read()
        return inner


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Counting]:
    """A database with the engine's tables."""
    made = open_database(str(tmp_path))
    yield Counting(made)
    made.close()


def test_what_was_read_is_read_once(database: Counting) -> None:
    """And again after any write."""
    store = NetworkStore(database)  # type: ignore[arg-type]
    store.ensure_predefined()
    for _ in range(3):
        assert [network.name for network in store.networks()] == ["bridge", "host", "none"]
        assert store.endpoints_of("c1") == []
    assert database.reads == 2
    store.set_bridge("bridge", "10.0.0.1/24", {})
    assert next(network for network in store.networks() if network.name == "bridge").gateway == "10.0.0.1"
    assert database.reads == 3


def test_a_read_that_a_write_overtakes_is_not_remembered(database: Counting) -> None:
    """What came from before the write is not given to those who ask after it."""
    store = NetworkStore(database)  # type: ignore[arg-type]
    store.ensure_predefined()
    database.meanwhile = lambda: store.set_bridge("bridge", "10.0.0.1/24", {})
    store.networks()
    reads = database.reads
    store.networks()
    assert database.reads == reads + 1


def test_callers_cannot_change_what_is_remembered(database: Counting) -> None:
    """Every list is the caller's own."""
    store = NetworkStore(database)  # type: ignore[arg-type]
    store.ensure_predefined()
    store.networks().clear()
    assert len(store.networks()) == 3
