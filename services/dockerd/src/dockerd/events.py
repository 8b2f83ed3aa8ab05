"""What happened in the engine: kept for ``docker events --since``, and told to who listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gantry.database import Database

__all__ = ["SCHEMA", "Event", "EventLog", "Filters"]

SCHEMA = """
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    time_nano INTEGER NOT NULL,
    type TEXT NOT NULL,
    action TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    attributes TEXT NOT NULL
);
CREATE INDEX events_by_time ON events (time_nano);
"""

Filters = Mapping[str, Sequence[str]]
"""A query's filters: for each key the values, any of which may match."""


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``time_nano`` is nanoseconds since 1970."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str]
    time_nano: int


class EventLog:
    """The engine's events. Threads of any part may publish and subscribe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> Event:  # noqa: A002
        """Record an event, and tell every subscriber whose filters match."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Event], None], filters: Filters | None = None) -> Callable[[], None]:
        """Call ``callback`` (in the publisher's thread: it must be quick) for every new event; returns how to end it."""
        raise NotImplementedError
