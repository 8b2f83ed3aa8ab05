"""The log of events."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from dockerd import events
from dockerd.api.events import encode_event
from dockerd.events import SCHEMA, Event, EventLog, matches
from gantry.database import Database


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    """An empty log."""
    return EventLog(Database(tmp_path / "e.db", [SCHEMA]))


START = Event("container", "start", "c0ffee", {"image": "busybox:1", "name": "web", "tier": "front"}, 5)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, True),
        ({"type": ["container"]}, True),
        ({"type": ["image", "network"]}, False),
        ({"event": ["start"]}, True),
        ({"event": ["stop"]}, False),
        ({"container": ["web"]}, True),
        ({"container": ["c0ff"]}, True),
        ({"container": ["other"]}, False),
        ({"image": ["busybox:1"]}, True),
        ({"image": ["busybox"]}, True),
        ({"image": ["alpine"]}, False),
        ({"label": ["tier"]}, True),
        ({"label": ["tier=front"]}, True),
        ({"label": ["tier=back"]}, False),
        ({"label": ["tier=front", "name=web"]}, True),
        ({"label": ["tier=front", "absent"]}, False),
        ({"scope": ["local"]}, True),
        ({"scope": ["swarm"]}, False),
        ({"type": ["container"], "event": ["stop"]}, False),
        ({"unknown": ["x"]}, True),
    ],
)
def test_filters(filters: dict[str, list[str]], expected: bool) -> None:
    """Every key must match, by any of its values; labels by all of theirs."""
    assert matches(START, filters) is expected


def test_events_with_details_match_by_their_first_word() -> None:
    """``exec_create: sh`` is an exec_create."""
    event = Event("container", "exec_create: sh -c ls", "x", {}, 1)
    assert matches(event, {"event": ["exec_create"]})
    assert not matches(event, {"event": ["start"]})


def test_subscribers_hear_what_they_asked_for(log: EventLog) -> None:
    """Until they end it."""
    heard: list[str] = []
    end = log.subscribe(lambda event: heard.append(event.action), {"type": ["container"]})
    log.publish("container", "create", "a", {})
    log.publish("network", "create", "b", {})
    end()
    log.publish("container", "start", "a", {})
    assert heard == ["create"]
    assert log.listeners == 0


def test_the_past_comes_first_and_nothing_twice(log: EventLog) -> None:
    """A subscriber with ``since`` sees remembered events, then new ones, while others publish all the time."""
    stop = threading.Event()
    published: list[int] = []

    def publish() -> None:
        while not stop.is_set():
            published.append(log.publish("container", "tick", "a", {}).time_nano)

    thread = threading.Thread(target=publish)
    thread.start()
    heard: list[int] = []
    try:
        while len(published) < 20:
            pass
        end = log.subscribe(lambda event: heard.append(event.time_nano), None, since=0)
        target = len(published) + 20
        while len(published) < target:
            pass
    finally:
        stop.set()
        thread.join()
    end()
    assert heard == published


def test_only_the_newest_are_kept(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log does not grow without bound."""
    monkeypatch.setattr(events, "KEPT", 100)
    for number in range(300):
        log.publish("container", str(number), "a", {})
    kept = [event.action for event in log.remembered(None, None, {})]
    assert 100 <= len(kept) < 164
    assert kept[-1] == "299"


def test_events_survive_a_restart_of_the_engine(log: EventLog, tmp_path: Path) -> None:
    """They are in the database, in order, with distinct times."""
    log.publish("image", "pull", "busybox", {"name": "busybox"})
    log.publish("container", "start", "a", {})
    again = EventLog(Database(tmp_path / "e.db", [SCHEMA]))
    found = list(again.remembered(0, None, {}))
    assert [event.action for event in found] == ["pull", "start"]
    assert found[0].time_nano < found[1].time_nano
    assert list(again.remembered(found[0].time_nano + 1, None, {})) == [found[1]]


def test_publishing_inside_a_transaction_does_not_deadlock(log: EventLog, tmp_path: Path) -> None:
    """A part that publishes while it writes, and another that only publishes, do not wait for each other for ever."""
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        log.publish("container", "other", "b", {})

    thread = threading.Thread(target=other)
    thread.start()
    with log._database.write():
        inside.set()
        log.publish("container", "mine", "a", {})
    thread.join(10)
    assert not thread.is_alive()


def test_a_subscriber_that_fails_does_not_stop_the_others(log: EventLog) -> None:
    """What happened has happened."""
    heard: list[str] = []

    def fail(_event: Event) -> None:
        raise RuntimeError("broken listener")

    log.subscribe(fail)
    log.subscribe(lambda event: heard.append(event.action))
    log.publish("container", "start", "a", {})
    assert heard == ["start"]


def test_the_wire_form_is_the_real_engines() -> None:
    """Field by field, in the order in which a real engine sends them (captured)."""
    captured = (
        b'{"status":"start","id":"22a9","from":"busybox:latest","Type":"container","Action":"start",'
        b'"Actor":{"ID":"22a9","Attributes":{"image":"busybox:latest","name":"fr1"}},"scope":"local",'
        b'"time":1795503352,"timeNano":1795503352686208176}\n'
    )
    event = Event("container", "start", "22a9", {"name": "fr1", "image": "busybox:latest"}, 1795503352686208176)
    assert encode_event(event) == captured
    network = json.loads(encode_event(Event("network", "connect", "n", {"container": "c"}, 1)))
    assert "status" not in network
