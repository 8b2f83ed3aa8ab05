"""What happened in the engine: kept for ``docker events --since``, and told to who listens.

An event is a row in the engine's database first and a call of each matching subscriber then, so what a client
sees live it also finds again later. The newest :data:`KEPT` are kept.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gantry.database import Database

__all__ = ["KEPT", "SCHEMA", "Event", "EventLog", "Filters", "matches"]

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

KEPT = 4096
"""How many events are remembered."""

Filters = Mapping[str, Sequence[str]]
"""A query's filters: for each key the values, any of which may match."""

_log = logging.getLogger(__name__)

# These carry a colon and a detail ("exec_create: sh -c ..."), so a filter for the bare word matches by prefix.
_PREFIXED_ACTIONS = frozenset({"health_status", "exec_create", "exec_start"})

_TYPES = ("daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config")


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``time_nano`` is nanoseconds since 1970."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str]
    time_nano: int


def matches(event: Event, filters: Filters) -> bool:
    """Whether ``event`` is one of those that ``filters`` ask for: every key must match, by any of its values."""
    return all(_match(event, key, values) for key, values in filters.items() if values)


def _match(event: Event, key: str, values: Sequence[str]) -> bool:
    if key == "event":
        if _PREFIXED_ACTIONS.intersection(values):
            return any(event.action.startswith(value) for value in values)
        return event.action in values
    if key == "type":
        return event.type in values
    if key == "scope":
        return "local" in values
    if key == "label":
        return _match_labels(event.attributes, values)
    if key == "image":
        name = event.attributes.get("name" if event.type == "image" else "image", "")
        return not {event.actor_id, name, _without_tag(event.actor_id), _without_tag(name)}.isdisjoint(values)
    if key in _TYPES:
        name = event.attributes.get("name", "")
        return any(event.actor_id.startswith(value) or name.startswith(value) for value in values)
    return True  # the real engine lets filters pass that it does not know


def _match_labels(attributes: Mapping[str, str], wanted: Sequence[str]) -> bool:
    for label in wanted:
        key, equals, value = label.partition("=")
        if key not in attributes or (equals and attributes[key] != value):
            return False
    return True


def _without_tag(reference: str) -> str:
    name, colon, tag = reference.partition("@")[0].rpartition(":")
    return name if colon and "/" not in tag else reference


class EventLog:
    """The engine's events. Threads of any part may publish and subscribe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._subscribers: dict[object, tuple[Callable[[Event], None], Filters]] = {}
        self._last_time = 0

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> Event:  # noqa: A002
        """Record an event, and tell every subscriber whose filters match.

        ``type`` and ``action`` are the API's words (``container``, ``start``); ``attributes`` are the actor's: for a
        container its image, name and labels.
        """
        # The database first, as everyone who writes to it does before publishing: the other order would deadlock.
        with self._database.write() as connection, self._lock:
            # Times order events, and a client goes on from the last one that it saw: no two are equal.
            now = self._last_time = max(time.time_ns(), self._last_time + 1)
            event = Event(type, action, actor_id, dict(attributes), now)
            cursor = connection.execute(
                "INSERT INTO events (time_nano, type, action, actor_id, attributes) VALUES (?, ?, ?, ?, ?)",
                (now, type, action, actor_id, json.dumps(event.attributes)),
            )
            sequence = cursor.lastrowid or 0
            if sequence % 64 == 0:
                connection.execute("DELETE FROM events WHERE sequence <= ?", (sequence - KEPT,))
            self._tell(event)
        return event

    @property
    def listeners(self) -> int:
        """How many subscribers there are."""
        return len(self._subscribers)

    def subscribe(
        self,
        callback: Callable[[Event], None],
        filters: Filters | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> Callable[[], None]:
        """Call ``callback`` for every new event that matches; returns how to end it.

        With ``since`` (nanoseconds since 1970), or ``until``, the remembered events between them come first, and none
        is lost or repeated between those and the new ones. The callback runs in the publisher's thread, under the
        log's lock: it must be quick, and must not publish.
        """
        chosen = dict(filters or {})
        token = object()
        if since is None and until is None:
            with self._lock:
                self._subscribers[token] = (callback, chosen)
        else:
            # Nobody publishes while the past is read: the transaction keeps other writers out.
            with self._database.write(), self._lock:
                for event in self.remembered(since, until, chosen):
                    callback(event)
                self._subscribers[token] = (callback, chosen)

        def end() -> None:
            with self._lock:
                self._subscribers.pop(token, None)

        return end

    def remembered(self, since: int | None, until: int | None, filters: Filters) -> Iterator[Event]:
        """The recorded events of a time span, bounds included, oldest first."""
        query = "SELECT * FROM events WHERE time_nano >= ? AND time_nano <= ? ORDER BY sequence"
        with self._database.read() as connection:
            rows = connection.execute(query, (since or 0, (1 << 63) - 1 if until is None else until)).fetchall()
        for row in rows:
            attributes = json.loads(row["attributes"])
            event = Event(row["type"], row["action"], row["actor_id"], attributes, row["time_nano"])
            if matches(event, filters):
                yield event

    def _tell(self, event: Event) -> None:
        for callback, filters in self._subscribers.values():
            if not matches(event, filters):
                continue
            try:
                callback(event)
            except Exception:
                # What happened has happened: a listener's fault is its own.
                _log.exception("a subscriber failed on %s %s", event.type, event.action)
