"""The restart monitor: what the labels mean, and containers that come back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from containerd.errors import InvalidArgument
from containerd.restart import Action, Begun, Policy, decide, output
from containerd.tasks import ProcessState
from gantry.contracts.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from gantry.contracts.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

Daemon = typing.Any  # conftest.Daemon
STATUS = "containerd.io/restart.status"
POLICY = "containerd.io/restart.policy"
COUNT = "containerd.io/restart.count"
STOPPED = "containerd.io/restart.explicitly-stopped"


def _ended(status: int) -> ProcessState:
    return ProcessState("c", "c", 1, 3, exit_status=status)


@pytest.mark.parametrize(
    ("policy", "other", "state", "action"),
    [
        ("", {}, _ended(0), Action.START),
        ("always", {}, None, Action.START),
        ("no", {}, _ended(1), Action.NOTHING),
        ("on-failure", {}, _ended(0), Action.NOTHING),
        ("on-failure", {}, _ended(3), Action.START),
        ("on-failure", {}, None, Action.NOTHING),
        ("on-failure:2", {COUNT: "1"}, _ended(3), Action.START),
        ("on-failure:2", {COUNT: "2"}, _ended(3), Action.NOTHING),
        ("unless-stopped", {}, _ended(0), Action.START),
        ("unless-stopped", {STOPPED: "true"}, _ended(0), Action.NOTHING),
        ("unless-stopped", {STOPPED: "false"}, _ended(0), Action.START),
        ("always", {STOPPED: "true"}, _ended(0), Action.START),
        ("always", {}, ProcessState("c", "c", 1, 2), Action.NOTHING),
        ("always", {}, ProcessState("c", "c", 1, 4), Action.NOTHING),
        ("always", {}, ProcessState("c", "c", 1, 0), Action.NOTHING),
    ],
)
def test_a_policy_decides_by_how_the_task_is(
    policy: str, other: dict[str, str], state: ProcessState | None, action: Action
) -> None:
    """Each policy starts what it says, and never what runs, is paused, or does not answer."""
    assert decide({STATUS: "running", POLICY: policy, **other}, state) is action


def test_a_restart_that_was_begun_is_finished() -> None:
    """A task that went away because it was being restarted counts as failed; an earlier daemon's is counted already."""
    labels = {STATUS: "running", POLICY: "on-failure:2", COUNT: "2"}
    assert decide(labels, None, Begun.RESUMED) is Action.START
    assert decide(labels, None, Begun.FAILED) is Action.NOTHING
    assert decide({**labels, COUNT: "1"}, None, Begun.FAILED) is Action.START


def test_a_container_that_is_to_be_stopped_is_stopped() -> None:
    """The label's other value, which is no policy's business; and without the label nothing is done."""
    assert decide({STATUS: "stopped"}, ProcessState("c", "c", 1, 2)) is Action.STOP
    assert decide({STATUS: "stopped"}, _ended(0)) is Action.NOTHING
    assert decide({STATUS: "stopped"}, None) is Action.NOTHING
    assert decide({POLICY: "always"}, None) is Action.NOTHING


@pytest.mark.parametrize("text", ["sometimes", "always:3", "on-failure:x", "on-failure:"])
def test_a_policy_that_does_not_exist_is_refused(text: str) -> None:
    """The message names the policy or its count."""
    with pytest.raises(InvalidArgument):
        Policy.parse(text)


def test_output_goes_where_the_labels_say() -> None:
    """A URI wins over a path; a terminal has one stream."""
    path, uri = "containerd.io/restart.logpath", "containerd.io/restart.loguri"
    assert output({path: "/a b"}, terminal=False).stdout == "file:///a%20b"
    both = output({path: "/x", uri: "file:///y"}, terminal=True)
    assert (both.stdout, both.stderr, both.terminal) == ("file:///y", "", True)
    with pytest.raises(InvalidArgument):
        output({uri: "/y"}, terminal=False)


@pytest.fixture
def daemon(containerd: Daemon) -> Daemon:
    """A daemon that looks ten times a second, over our shim and the real runc."""
    containerd.use(
        "/usr/bin/ctr", "/usr/sbin/runc", os.path.join(os.path.dirname(sys.executable), "containerd-shim-runc-v2")
    )
    config = containerd.directory / "config.toml"
    config.write_text('version = 2\n[plugins."io.containerd.internal.v1.restart"]\n  interval = "100ms"\n')
    containerd.flags = ("--config", str(config))
    containerd.start(*containerd.flags)
    return containerd


def _run(daemon: Daemon, rootfs: Path, labels: dict[str, str], *command: str) -> None:
    flags = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
    daemon.ctr("run", "-d", "--runc-binary", "/usr/sbin/runc", "--rootfs", *flags, str(rootfs), "c", *command)


def _pid(daemon: Daemon) -> int:
    with daemon.channel() as channel:
        try:
            request = tasks_pb2.GetRequest(container_id="c")
            process = tasks_pb2_grpc.TasksStub(channel).Get(request, metadata=_metadata(daemon)).process
        except grpc.RpcError:
            return 0
    return process.pid if process.status == 2 else 0


def _labels(daemon: Daemon) -> dict[str, str]:
    with daemon.channel() as channel:
        request = containers_pb2.GetContainerRequest(id="c")
        stub = containers_pb2_grpc.ContainersStub(channel)
        return dict(stub.Get(request, metadata=_metadata(daemon)).container.labels)


def _metadata(daemon: Daemon) -> list[tuple[str, str]]:
    return [("containerd-namespace", daemon.namespace)]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def _remove(daemon: Daemon) -> None:
    daemon.ctr("containers", "label", "c", f"{STATUS}=stopped")
    _until(lambda: _pid(daemon) == 0)
    with contextlib.suppress(AssertionError):  # one that the monitor has stopped is removed already
        daemon.ctr("tasks", "rm", "--force", "c")
    daemon.ctr("containers", "rm", "c")


@pytest.mark.root
def test_a_killed_container_comes_back(daemon: Daemon, rootfs: Path) -> None:
    """Its restarts are counted, its output is appended to the log; and the other status ends it."""
    log = daemon.directory / "out.log"
    labels = {STATUS: "running", "containerd.io/restart.logpath": str(log)}
    _run(daemon, rootfs, labels, "/bin/sh", "-c", "echo here; exec sleep 1000")
    first = _pid(daemon)
    assert first > 1
    os.kill(first, signal.SIGKILL)
    _until(lambda: _pid(daemon) not in (0, first))
    _until(lambda: log.exists() and log.read_text() == "here\n")
    assert _labels(daemon)[COUNT] == "1"
    _remove(daemon)


@pytest.mark.root
def test_what_ended_while_no_daemon_ran_comes_back(daemon: Daemon, rootfs: Path) -> None:
    """The daemon is killed, the container and then its shim too: the next daemon starts it at once."""
    _run(daemon, rootfs, {STATUS: "running", POLICY: "unless-stopped"}, "/bin/sleep", "1000")
    first = _pid(daemon)
    assert first > 1
    daemon.stop(signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    daemon.start(*daemon.flags)
    _until(lambda: _pid(daemon) not in (0, first))
    second = _pid(daemon)
    assert second > 1
    daemon.stop(signal.SIGKILL)
    for shim in daemon.shims():
        os.kill(shim, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    daemon.start(*daemon.flags)
    _until(lambda: _pid(daemon) not in (0, second))
    daemon.ctr("containers", "label", "c", f"{STOPPED}=true")
    third = _pid(daemon)
    assert third > 1  # 0 would be this very process group
    os.kill(third, signal.SIGKILL)
    _until(lambda: _pid(daemon) == 0)
    time.sleep(0.5)  # five looks
    assert _pid(daemon) == 0
    _remove(daemon)


@pytest.mark.root
def test_failures_are_bounded_and_spaced(daemon: Daemon, rootfs: Path) -> None:
    """Three restarts of one that fails at once: each pause is longer, and the fourth does not come."""
    labels = {STATUS: "running", POLICY: "on-failure:3"}
    begun = time.monotonic()
    _run(daemon, rootfs, labels, "/bin/sh", "-c", "exit 7")
    _until(lambda: _labels(daemon).get(COUNT) == "3")
    assert time.monotonic() - begun > 0.3  # 100 ms before the second, 200 ms before the third
    time.sleep(1)  # the next pause would be 400 ms
    assert _labels(daemon)[COUNT] == "3"
    _remove(daemon)


@pytest.mark.root
def test_a_container_without_labels_is_left_alone(daemon: Daemon, rootfs: Path) -> None:
    """And clients can ask which policies there are."""
    _run(daemon, rootfs, {}, "/bin/true")
    _until(lambda: _pid(daemon) == 0)
    time.sleep(0.3)
    assert COUNT not in _labels(daemon)
    with daemon.channel() as channel:
        stub = introspection_pb2_grpc.IntrospectionStub(channel)
        (plugin,) = stub.Plugins(introspection_pb2.PluginsRequest(filters=["id==restart"])).plugins
    assert set(plugin.capabilities) == {"no", "always", "on-failure", "unless-stopped"}
    _remove(daemon)
