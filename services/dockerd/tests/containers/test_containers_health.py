"""Health checks: what follows from a result, when the next is due, and checks that run as execs of a fake."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dockerd.containers import health, timestamps
from dockerd.containers.create import parse
from dockerd.containers.health_monitor import _Run
from dockerd.containers.model import Container, Health, HealthConfig, HealthResult
from dockerd.server.reactor import Reactor

from .conftest import TIMEOUT, World

SECOND = 1_000_000_000
STARTED = "2026-01-01T00:00:00Z"


def container(status: str = "starting", streak: int = 0, **settings: Any) -> Container:
    """A container that is checked."""
    made = Container(
        id="c",
        name="c",
        created=0,
        image="i",
        image_id="i",
        chain_id="",
        config=parse({"Image": "i", "Healthcheck": {"Test": ["CMD", "true"]}}).config,
        host_config=parse({"Image": "i"}).host_config,
        path="",
        args=[],
        snapshotter="overlayfs",
        root="",
    )
    config = msgspec.structs.replace(made.config, healthcheck=HealthConfig(test=["CMD", "true"], **settings))
    made = msgspec.structs.replace(made, config=config)
    return made.with_state(health=Health(status=status, failing_streak=streak), started_at=STARTED)


def result(code: int, second: int = 100) -> HealthResult:
    """A result that came some seconds after the start."""
    moment = timestamps.from_nanoseconds(timestamps.to_nanoseconds(STARTED) + second * SECOND)
    return HealthResult(start=moment, end=moment, exit_code=code, output="")


@pytest.mark.parametrize(
    ("before", "code", "settings", "status", "streak"),
    [
        (("starting", 0), 0, {}, "healthy", 0),
        (("unhealthy", 9), 0, {}, "healthy", 0),
        (("starting", 0), 1, {}, "starting", 1),
        (("healthy", 1), 1, {}, "healthy", 2),
        (("healthy", 2), -1, {}, "unhealthy", 3),
        (("healthy", 0), 1, {"retries": 1}, "unhealthy", 1),
        (("starting", 0), 1, {"retries": 1, "start_period": 200 * SECOND}, "starting", 0),
        (("healthy", 0), 1, {"retries": 1, "start_period": 200 * SECOND}, "unhealthy", 1),
    ],
)
def test_what_follows_from_a_result(
    before: tuple[str, int], code: int, settings: dict[str, int], status: str, streak: int
) -> None:
    """A success resets, failures add up to the retries, and do not count while a container is young."""
    now = health.after(container(*before, **settings), result(code))
    assert (now.status, now.failing_streak) == (status, streak)
    assert now.log[-1].exit_code == code


def test_the_log_has_five_entries() -> None:
    """The oldest goes."""
    checked = container()
    for code in range(7):
        checked = checked.with_state(health=health.after(checked, result(code)))
    assert checked.state.health is not None
    assert [one.exit_code for one in checked.state.health.log] == [2, 3, 4, 5, 6]


def test_when_the_next_check_is_due() -> None:
    """More often while a container is starting, by default after half a minute."""
    young = timestamps.to_nanoseconds(STARTED) + SECOND
    assert health.delay(container(), young) == 30 * SECOND
    assert health.delay(container(start_period=2 * SECOND), young) == 5 * SECOND
    assert health.delay(container(start_period=2 * SECOND, start_interval=SECOND), young) == SECOND
    assert health.delay(container("healthy", start_period=2 * SECOND, interval=7 * SECOND), young) == 7 * SECOND
    assert health.delay(container(start_period=2 * SECOND, interval=7 * SECOND), young + SECOND) == 7 * SECOND


def test_what_is_run() -> None:
    """CMD as it is, CMD-SHELL by the shell, nothing for NONE and for kinds that nobody knows."""

    def command(*test: str) -> list[str] | None:
        made = container()
        config = msgspec.structs.replace(made.config, healthcheck=HealthConfig(test=list(test)))
        return health.command(msgspec.structs.replace(made, config=config))

    assert command("CMD", "a", "b") == ["a", "b"]
    assert command("CMD-SHELL", "a b") == ["/bin/sh", "-c", "a b"]
    assert command("NONE") is None
    assert command("OTHER", "a") is None
    assert command() is None


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (30 * SECOND, "30s"),
        (90 * SECOND, "1m30s"),
        (3600 * SECOND, "1h0m0s"),
        (300_000_000, "300ms"),
        (1, "0.000001ms"),
    ],
)
def test_durations_as_the_real_engine_writes_them(nanoseconds: int, text: str) -> None:
    """In the message of a check that took too long."""
    assert health.go_duration(nanoseconds) == text


class Reports:
    """Takes the one report of a run."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.found: list[tuple[int, str]] = []
        self.killed = threading.Event()

    def __call__(self, code: int, output: str) -> None:
        self.found.append((code, output))
        self.come.set()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A running loop."""
    made = Reactor()
    made.start()
    yield made
    made.close()


def test_a_run_ends_with_its_process_and_its_output(reactor: Reactor) -> None:
    """In either order; what is beyond four KiB is cut."""
    for first in ("exit", "end of file"):
        ours, theirs = socket.socketpair()
        reports = Reports()
        run = _Run(reactor, ours, reports, 10 * SECOND, reports.killed.set)
        run.begin()
        theirs.sendall(b"x" * 5000)
        if first == "exit":
            run.ended(3)
            theirs.close()
        else:
            theirs.close()
            run.ended(3)
        assert reports.come.wait(TIMEOUT)
        assert reports.found == [(3, "x" * 4096 + "...")]


def test_a_run_that_takes_too_long_is_killed(reactor: Reactor) -> None:
    """It is reported once, whatever comes later."""
    ours, theirs = socket.socketpair()
    reports = Reports()
    run = _Run(reactor, ours, reports, 10_000_000, reports.killed.set)
    run.begin()
    assert reports.come.wait(TIMEOUT)
    assert reports.killed.is_set()
    assert reports.found == [(-1, "Health check exceeded timeout (10ms)")]
    run.ended(137)
    theirs.close()
    done = threading.Event()
    reactor.call_later(0.01, done.set)
    assert done.wait(TIMEOUT)
    assert len(reports.found) == 1


def test_a_started_container_begins_as_starting(world: World) -> None:
    """A check that is turned off leaves it without health."""
    world.service.create({"Image": "busybox", "Healthcheck": {"Test": ["CMD", "true"]}}, "c1")
    world.service.start_container("c1")
    state = world.service.get("c1").state
    assert state.health == Health(status="starting")
    world.service.create({"Image": "busybox", "Healthcheck": {"Test": ["NONE"]}}, "c2")
    world.service.start_container("c2")
    assert world.service.get("c2").state.health is None
