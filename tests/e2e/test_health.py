"""Health checks: states, log, events, filters, pauses, and engines that come and go meanwhile."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from support.engine import Engine, await_true

QUICK = ("--health-interval", "100ms", "--health-retries", "2")


def health(engine: Engine, name: str) -> dict[str, Any]:
    """State.Health of a container."""
    found: dict[str, Any] = json.loads(engine.out("inspect", "-f", "{{json .State.Health}}", name))
    return found


def await_health(engine: Engine, name: str, status: str) -> None:
    """Wait for a state."""
    await_true(lambda: health(engine, name)["Status"] == status, f"{name} is not {status}", 20)


def test_healthy_and_back(clean: Engine) -> None:
    """Starting, healthy, unhealthy after the retries, healthy again; with log, ps and events."""
    clean.docker(
        "run",
        "-d",
        "--name",
        "checked",
        *QUICK,
        "--health-cmd",
        "echo looked; test -e /good",
        "busybox",
        "sleep",
        "1000",
    )
    events = clean.popen(
        "events",
        "--since",
        clean.out("inspect", "-f", "{{.Created}}", "checked"),
        "-f",
        "event=health_status",
        "--format",
        "{{.Action}}",
    )
    assert events.stdout is not None
    await_health(clean, "checked", "unhealthy")
    assert events.stdout.readline() == b"health_status: unhealthy\n"
    found = health(clean, "checked")
    assert found["FailingStreak"] >= 2
    assert found["Log"][-1]["ExitCode"] == 1
    assert found["Log"][-1]["Output"] == "looked\n"
    assert "(unhealthy)" in clean.out("ps", "--format", "{{.Status}}")
    clean.docker("exec", "checked", "touch", "/good")
    assert events.stdout.readline() == b"health_status: healthy\n"
    await_true(lambda: health(clean, "checked")["Log"][0]["ExitCode"] == 0, "five checks", 20)
    found = health(clean, "checked")
    assert (found["FailingStreak"], len(found["Log"])) == (0, 5)
    assert clean.out("ps", "--filter", "health=healthy", "--format", "{{.Names}}") == "checked"
    assert clean.out("ps", "-q", "--filter", "health=unhealthy") == ""
    events.kill()
    events.communicate()


def test_starting(clean: Engine) -> None:
    """Failures within the start period do not count; a container without a check has no health."""
    clean.docker("run", "-d", "--name", "young", "--health-start-period", "60s", *QUICK, "--health-start-interval",
        "100ms", "--health-cmd", "exit 7", "busybox", "sleep", "1000")  # fmt: skip
    await_true(lambda: len(health(clean, "young")["Log"]) >= 3, "three checks", 20)
    found = health(clean, "young")
    assert (found["Status"], found["FailingStreak"]) == ("starting", 0)
    assert "(health: starting)" in clean.out("ps", "--format", "{{.Status}}")
    clean.docker("run", "-d", "--name", "plain", "busybox", "sleep", "1000")
    assert health(clean, "plain") is None
    assert clean.out("ps", "--filter", "health=none", "--format", "{{.Names}}") == "plain"


def test_a_check_that_hangs(clean: Engine) -> None:
    """It is ended after its time, and counts as failed with what it has written."""
    clean.docker("run", "-d", "--name", "slow", *QUICK, "--health-timeout", "300ms", "--health-cmd",
        "echo waiting; sleep 100", "busybox", "sleep", "1000")  # fmt: skip
    await_health(clean, "slow", "unhealthy")
    last = health(clean, "slow")["Log"][-1]
    assert last["ExitCode"] == -1
    assert last["Output"] == "Health check exceeded timeout (300ms): waiting\n"


def test_a_check_that_cannot_be_run(clean: Engine) -> None:
    """A program that is not there is a failure, and the container runs on."""
    clean.docker("run", "-d", "--name", "bad", *QUICK, "--health-cmd", "/no/such/program", "busybox", "sleep", "1000")
    await_health(clean, "bad", "unhealthy")
    assert health(clean, "bad")["Log"][-1]["ExitCode"] == 127
    assert clean.out("inspect", "-f", "{{.State.Status}}", "bad") == "running"


def test_pause_stop_and_start(clean: Engine) -> None:
    """Unchecked is unhealthy; after unpause and start it is checked again."""
    clean.docker("run", "-d", "--name", "held", *QUICK, "--health-cmd", "true", "busybox", "sleep", "1000")
    await_health(clean, "held", "healthy")
    clean.docker("pause", "held")
    assert health(clean, "held")["Status"] == "unhealthy"
    clean.docker("unpause", "held")
    await_health(clean, "held", "healthy")
    clean.docker("stop", "-t", "0", "held")
    assert health(clean, "held")["Status"] == "unhealthy"
    clean.docker("start", "held")
    await_health(clean, "held", "healthy")


def test_an_images_check(clean: Engine) -> None:
    """It comes with the image; the command line changes parts of it, or turns it off."""
    clean.docker("create", "--name", "with", *QUICK, "--health-cmd", "true", "busybox", "sleep", "1000")
    clean.docker("commit", "with", "checked-image")
    clean.docker("run", "-d", "--name", "inherited", "checked-image")
    await_health(clean, "inherited", "healthy")
    clean.docker("run", "-d", "--name", "off", "--no-healthcheck", "checked-image")
    assert health(clean, "off") is None
    clean.docker("create", "--name", "changed", "--health-retries", "9", "checked-image")
    shown = json.loads(clean.out("inspect", "-f", "{{json .Config.Healthcheck}}", "changed"))
    assert shown == {"Test": ["CMD-SHELL", "true"], "Interval": 100_000_000, "Retries": 9}
    clean.remove_containers()
    clean.docker("rmi", "checked-image")


def test_bad_settings(clean: Engine) -> None:
    """In the real engine's words."""
    done = clean.docker("create", "--health-cmd", "true", "--health-interval", "10us", "busybox", check=False)
    assert "Interval in Healthcheck cannot be less than 1ms" in done.stderr


@pytest.mark.skipif("GANTRY_ENGINE" in os.environ, reason="the engine is not ours to kill")
def test_checks_go_on_with_the_next_engine(clean: Engine) -> None:
    """A killed engine's checks are the next one's."""
    clean.docker("run", "-d", "--name", "kept", *QUICK, "--health-cmd", "test -e /good", "busybox", "sleep", "1000")
    await_health(clean, "kept", "unhealthy")
    clean.dockerd.kill()
    clean.dockerd.start()
    assert health(clean, "kept")["Status"] == "unhealthy"
    clean.docker("exec", "kept", "touch", "/good")
    await_health(clean, "kept", "healthy")
