from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from containerd import events as module
from containerd import namespaces
from containerd.anyvalue import AnyValue
from containerd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from containerd.events import Envelope, Exchange, Subscription
from gantry.contracts.containerd.events.container_pb2 import ContainerUpdate
from gantry.contracts.containerd.events.task_pb2 import TaskExit, TaskOOM


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def _take(subscription: Subscription, count: int) -> list[Envelope]:
    found = []
    async for envelope in subscription:
        found.append(envelope)
        if len(found) == count:
            break
    return found


def test_subscribers_get_what_their_filters_match() -> None:
    """Filters see namespace, topic and the fields of the event itself."""

    async def work() -> None:
        exchange = Exchange()
        everything = exchange.subscribe()
        exits = exchange.subscribe(['topic=="/tasks/exit",namespace==a'])
        web = exchange.subscribe(["event.container_id==web"])
        labelled = exchange.subscribe(['event.labels."com.example/x"==1'])
        exchange.publish("/tasks/oom", TaskOOM(container_id="web"), "a")
        exchange.publish("/tasks/exit", TaskExit(container_id="db"), "a")
        exchange.publish("/tasks/exit", TaskExit(container_id="db"), "b")
        exchange.publish("/containers/update", ContainerUpdate(id="x", labels={"com.example/x": "1"}), "a")
        assert [e.topic for e in await _take(everything, 4)][-1] == "/containers/update"
        exits.close()
        web.close()
        labelled.close()
        assert [(e.topic, e.namespace) async for e in exits] == [("/tasks/exit", "a")]
        assert [e.topic async for e in web] == ["/tasks/oom"]
        assert [e.topic async for e in labelled] == ["/containers/update"]

    _run(work())


def test_publishing_stamps_and_forwarding_keeps_the_stamp() -> None:
    """An event's time is when it happened, whoever passes it on; its type has no host in front."""

    async def work() -> None:
        exchange = Exchange()
        subscription = exchange.subscribe()
        with namespaces.enter("a"):
            exchange.publish("/tasks/oom", TaskOOM(container_id="web"))
        exchange.forward(Envelope(123, "b", "/tasks/oom", AnyValue("containerd.events.TaskOOM", b"")))
        first, second = await _take(subscription, 2)
        assert first.timestamp > 1_600_000_000_000_000_000
        assert (first.namespace, first.event.type_url) == ("a", "containerd.events.TaskOOM")
        assert (second.timestamp, second.namespace) == (123, "b")

    _run(work())


@pytest.mark.parametrize("topic", ["", "/", "tasks/exit", "/tasks//exit", "/tasks/-x"])
def test_bad_topics_are_refused(topic: str) -> None:
    """A topic is a path of identifiers."""

    async def work() -> None:
        with pytest.raises(InvalidArgument, match="envelope topic"):
            Exchange().publish(topic, TaskOOM(), "a")

    _run(work())


def test_events_without_origin_are_refused() -> None:
    """A published event needs the request's namespace, a forwarded one its own, and its time."""

    async def work() -> None:
        exchange = Exchange()
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            exchange.publish("/tasks/oom", TaskOOM())
        with pytest.raises(InvalidArgument, match="invalid namespace"):
            exchange.forward(Envelope(1, "", "/tasks/oom", AnyValue("t", b"")))
        with pytest.raises(InvalidArgument, match="timestamp must be set"):
            exchange.forward(Envelope(0, "a", "/tasks/oom", AnyValue("t", b"")))

    _run(work())


def test_a_subscriber_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue has a bound: what fitted is delivered, then the subscription ends with an error."""
    monkeypatch.setattr(module, "QUEUE_LENGTH", 3)

    async def work() -> None:
        exchange = Exchange()
        slow = exchange.subscribe()
        for _ in range(5):
            exchange.publish("/tasks/oom", TaskOOM(), "a")
        found = []
        with pytest.raises(ResourceExhausted, match="subscribe again"):
            async for envelope in slow:
                found.append(envelope)
        assert len(found) == 3

    _run(work())


def test_a_thread_may_publish() -> None:
    """Stores work in threads, and their events arrive in the loop."""

    async def work() -> None:
        exchange = Exchange()
        subscription = exchange.subscribe()
        threading.Thread(target=exchange.publish, args=("/tasks/oom", TaskOOM(), "a")).start()
        assert [e.topic for e in await _take(subscription, 1)] == ["/tasks/oom"]

    _run(work())


def test_exits_reported_at_the_start_wait_for_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who subscribes soon after the daemon's start hears of exits from before; later nobody does."""

    async def work() -> None:
        exchange = Exchange()
        exchange.publish("/tasks/exit", TaskExit(container_id="web"), "a")
        exchange.publish("/tasks/oom", TaskOOM(), "a")
        early = exchange.subscribe(['topic=="/tasks/exit"'])
        early.close()
        assert len([e async for e in early]) == 1
        monkeypatch.setattr(exchange, "_catch_up_ends", 0.0)
        late = exchange.subscribe()
        late.close()
        assert [e async for e in late] == []

    _run(work())


def test_listeners_come_first() -> None:
    """Who waits inside the daemon is told before any subscriber is."""

    async def work() -> None:
        exchange = Exchange()
        heard: list[str] = []
        exchange.listen(lambda envelope: heard.append(envelope.topic))
        exchange.publish("/tasks/oom", TaskOOM(), "a")
        assert heard == ["/tasks/oom"]

    _run(work())
