"""The whole daemon, driven by the real ctr, with the real shim and runc below it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from gantry.contracts.containerd.events.task_pb2 import TaskOOM
from gantry.contracts.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

pytestmark = pytest.mark.root
CTR = "/usr/bin/ctr"
REAL_SHIM = "/usr/bin/containerd-shim-runc-v2"
RUNC = "/usr/sbin/runc"
Daemon = typing.Any  # conftest.Daemon: a conftest cannot be imported by name


@pytest.fixture(params=["real shim", "template"])
def daemon(request: pytest.FixtureRequest, containerd: Daemon) -> Daemon:
    """A running daemon over the real shim, and over one that is forked from a template; runc is the real one."""
    if request.param == "real shim":
        containerd.use(CTR, RUNC, REAL_SHIM)
    else:
        containerd.use(CTR, RUNC, os.path.join(os.path.dirname(sys.executable), "containerd-shim-runc-v2"))
    containerd.start()
    return containerd


def _run(rootfs: Path, name: str, *command: str, detached: bool = False) -> list[str]:
    mode = "--detach" if detached else "--rm"
    return ["run", mode, "--runc-binary", RUNC, "--rootfs", str(rootfs), name, *command]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


class Events:
    """``ctr events`` in the background."""

    def __init__(self, daemon: Daemon) -> None:
        self._path = daemon.directory / f"events-{time.monotonic_ns()}"
        with self._path.open("wb") as output:
            self._process = subprocess.Popen(daemon.argv("events"), stdout=output, stderr=subprocess.DEVNULL)
        # The subscription stands as soon as its own marker arrives.
        _until(lambda: bool(daemon.ctr("namespaces", "create", f"m{time.monotonic_ns()}")) or bool(self.text()))

    def text(self) -> str:
        return self._path.read_text()

    def topics(self, name: str) -> list[str]:
        return [line.split()[5] for line in self.text().splitlines() if f'"{name}"' in line]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def test_ctr_knows_what_it_talks_to(daemon: Daemon) -> None:
    """Version, plugins and the server's identity, which a restart keeps."""
    assert re.search(r"Server:\n +Version: +v\d+\.\d+\.\d+\+gantry", daemon.ctr("version"))
    plugins = daemon.ctr("plugins", "ls")
    assert re.search(r"io\.containerd\.runtime\.v2 +task +linux/\w+ +ok", plugins)

    def server() -> introspection_pb2.ServerResponse:
        with daemon.channel() as channel:
            return introspection_pb2_grpc.IntrospectionStub(channel).Server(Empty(), wait_for_ready=True, timeout=20)

    before = server()
    assert daemon.process is not None
    assert before.pid == daemon.process.pid
    assert before.pidns == os.stat("/proc/self/ns/pid").st_ino
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    daemon.start()
    assert server().uuid == before.uuid


def test_namespaces_and_containers_by_ctr(daemon: Daemon, rootfs: Path) -> None:
    """Metadata as a user handles it, with the real texts for what goes wrong."""
    daemon.ctr("namespaces", "create", "prod", "a=1")
    daemon.ctr("namespaces", "label", "prod", "b=2")
    assert re.search(r"prod +a=1,b=2", daemon.ctr("namespaces", "ls"))
    create = ["-n", "prod", "containers", "create", "--label", "x=y"]
    daemon.ctr(*create, "--rootfs", str(rootfs), "web", "/bin/true")
    assert 'container "web": already exists' in daemon.ctr(
        *create, "--rootfs", str(rootfs), "web", "/bin/true", status=1
    )
    assert daemon.ctr("-n", "prod", "containers", "ls", "-q", "labels.x==y").split() == ["web"]
    assert daemon.ctr("-n", "prod", "containers", "ls", "-q", "labels.x==z").split() == []
    assert '"x": "y"' in daemon.ctr("-n", "prod", "containers", "info", "web")
    assert 'container "nope" in namespace "prod": not found' in daemon.ctr(
        "-n", "prod", "containers", "info", "nope", status=1
    )
    assert "it still has containers: failed precondition" in daemon.ctr("namespaces", "rm", "prod", status=1)
    assert "no running task found" in daemon.ctr("-n", "prod", "tasks", "rm", "web", status=1)
    daemon.ctr("-n", "prod", "containers", "rm", "web")
    daemon.ctr("namespaces", "rm", "prod")


def test_a_container_runs_and_is_gone(daemon: Daemon, rootfs: Path) -> None:
    """Output and exit status come back, and nothing of the task is left."""
    assert daemon.ctr(*_run(rootfs, "web", "/bin/sh", "-c", "echo out; exit 3"), status=3) == "out\n"
    _until(lambda: daemon.bundles() == [] and daemon.shims() == [])
    failure = daemon.ctr(*_run(rootfs, "web", "/nope"), status=1)
    assert "failed to create shim task: OCI runtime create failed:" in failure
    assert 'exec: "/nope"' in failure
    _until(lambda: daemon.bundles() == [] and daemon.shims() == [])


def test_a_tasks_life(daemon: Daemon, rootfs: Path) -> None:
    """Exec, pause, ps, kill and delete; the events tell it in order."""
    events = Events(daemon)
    daemon.ctr(*_run(rootfs, "web", "/bin/sleep", "1000", detached=True))
    assert daemon.ctr("tasks", "exec", "--exec-id", "e1", "web", "/bin/echo", "inside") == "inside\n"
    daemon.ctr("tasks", "exec", "--exec-id", "e2", "web", "/bin/sh", "-c", "exit 7", status=7)
    daemon.ctr("tasks", "pause", "web")
    assert re.search(r"web +\d+ +PAUSED", daemon.ctr("tasks", "ls"))
    daemon.ctr("tasks", "resume", "web")
    assert len(daemon.ctr("tasks", "ps", "web").splitlines()) == 2
    assert "memory" in daemon.ctr("tasks", "metrics", "web")
    assert "task must be stopped before deletion" in daemon.ctr("tasks", "rm", "web", status=1)
    assert "already exists" in daemon.ctr("tasks", "start", "web", status=1)
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "web")
    _until(lambda: "STOPPED" in daemon.ctr("tasks", "ls"))
    daemon.ctr("tasks", "rm", "web")
    daemon.ctr("containers", "rm", "web")
    _until(lambda: "/containers/delete" in events.topics("web"))
    assert events.topics("web") == [
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ]
    events.close()
    _until(lambda: daemon.bundles() == [] and daemon.shims() == [])


def test_a_killed_daemon_finds_its_containers_again(daemon: Daemon, rootfs: Path) -> None:
    """SIGKILL, start: what runs goes on, what ended is reported, what died or was half-made is cleaned up."""
    for name in ("runs", "ends", "dies"):
        daemon.ctr(*_run(rootfs, name, "/bin/sleep", "1000", detached=True))
    pids = {name: int(pid) for name, pid in re.findall(r"(\w+) +(\d+) +RUNNING", daemon.ctr("tasks", "ls"))}
    with daemon.channel() as channel:
        waiting = tasks_pb2_grpc.TasksStub(channel).Wait.future(
            tasks_pb2.WaitRequest(container_id="runs"), metadata=(("containerd-namespace", daemon.namespace),)
        )
        time.sleep(0.2)
        daemon.stop(signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            waiting.result(timeout=10)
    os.kill(pids["ends"], signal.SIGKILL)
    tasks = daemon.state / "io.containerd.runtime.v2.task" / daemon.namespace
    for pid in daemon.shims():
        if b"\0dies\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    (tasks / "half" / "rootfs").mkdir(parents=True)
    (tasks / ".old" / "rootfs").mkdir(parents=True)

    daemon.start()
    events = Events(daemon)
    _until(lambda: events.topics("ends") == ["/tasks/exit"] and events.topics("dies") == ["/tasks/exit"])
    assert daemon.bundles() == ["ends", "runs"]
    assert dict(re.findall(r"(\w+) +\d+ +(RUNNING|STOPPED)", daemon.ctr("tasks", "ls"))) == {
        "runs": "RUNNING",
        "ends": "STOPPED",
    }
    _until(lambda: not os.path.exists(f"/proc/{pids['dies']}"))
    # It stays for a moment: under load ctr now and then prints nothing of a process that is gone at once.
    lasting = ("/bin/sh", "-c", "echo again; sleep 0.3")
    assert daemon.ctr("tasks", "exec", "--exec-id", "e1", "runs", *lasting) == "again\n"
    events.close()

    daemon.stop(signal.SIGKILL)
    daemon.start()
    events = Events(daemon)
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "runs")
    _until(lambda: "/tasks/exit" in events.topics("runs"))
    assert events.topics("ends") == [], "an exit was reported a second time"
    events.close()
    for name in ("runs", "ends"):
        daemon.ctr("tasks", "rm", name)
    _until(lambda: daemon.bundles() == [] and daemon.shims() == [])


def test_a_shim_that_dies_is_reported(daemon: Daemon, rootfs: Path) -> None:
    """The container dies with its shim, who waits is told, and the name is free again."""
    daemon.ctr(*_run(rootfs, "web", "/bin/sleep", "1000", detached=True))
    (shim,) = daemon.shims()[:1]
    with daemon.channel() as channel:
        waiting = tasks_pb2_grpc.TasksStub(channel).Wait.future(
            tasks_pb2.WaitRequest(container_id="web"), metadata=(("containerd-namespace", daemon.namespace),)
        )
        time.sleep(0.2)
        for pid in daemon.shims():
            if b"-id" in Path(f"/proc/{pid}/cmdline").read_bytes():
                shim = pid
        os.kill(shim, signal.SIGKILL)
        assert waiting.result(timeout=20).exit_status == 137
    _until(lambda: daemon.bundles() == [])
    assert "web" not in daemon.ctr("tasks", "ls")
    daemon.ctr("containers", "rm", "web")
    assert daemon.ctr(*_run(rootfs, "web", "/bin/echo", "again")) == "again\n"
    _until(lambda: daemon.shims() == [])


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    """Two daemons on one directory would tear it apart: the second says so and leaves the first one's socket alone."""
    argv = [str(daemon.program), "--root", str(daemon.root), "--state", str(daemon.state)]
    second = subprocess.run([*argv, "--address", str(daemon.socket)], capture_output=True, timeout=30, check=False)
    assert second.returncode == 1
    assert b"is in use by another containerd" in second.stderr
    daemon.ctr("version")


def test_an_event_is_published_by_the_command(daemon: Daemon) -> None:
    """What a shim without ttrpc does: the event arrives with its topic and namespace; a bad topic is refused."""
    events = Events(daemon)
    event = Any(type_url="containerd.events.TaskOOM", value=TaskOOM(container_id="web").SerializeToString())
    argv = [str(daemon.program), "--address", str(daemon.socket), "publish", "--namespace", "prod", "--topic"]
    subprocess.run([*argv, "/tasks/oom"], input=event.SerializeToString(), check=True, timeout=30)
    _until(lambda: events.topics("web") == ["/tasks/oom"])
    assert " prod /tasks/oom " in events.text()
    bad = subprocess.run([*argv, "oom"], input=b"", capture_output=True, timeout=30, check=False)
    assert bad.returncode == 1
    assert b"must start with '/'" in bad.stderr
    events.close()


def test_systemd_is_told(containerd: Daemon) -> None:
    """READY=1 comes when the socket answers, STOPPING=1 at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(containerd.directory / "notify"))
        notify.settimeout(30)
        containerd.start(environment={"NOTIFY_SOCKET": str(containerd.directory / "notify")})
        assert notify.recv(64) == b"READY=1"
        containerd.stop()
        assert notify.recv(64) == b"STOPPING=1"


def test_an_inherited_socket_is_answered_and_kept(containerd: Daemon) -> None:
    """Socket activation: a connection made before the start is served, and the socket outlives the daemon."""
    containerd.use(CTR)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(containerd.socket))
        listener.listen()
        early = subprocess.Popen(containerd.argv("version"), stdout=subprocess.PIPE)
        for _ in range(2):
            containerd.start(inherit=listener)
            assert "gantry" in containerd.ctr("version")
            containerd.ctr("namespaces", "create", f"n{time.monotonic_ns()}")
            assert containerd.stop() == 0
            assert containerd.socket.exists()
        output, _ = early.communicate(timeout=20)
        assert b"gantry" in output


def test_a_stop_does_not_wait_for_those_who_wait(daemon: Daemon, rootfs: Path) -> None:
    """A client that waits for a container's end is told to ask the next daemon, and the container goes on."""
    client = subprocess.Popen(daemon.argv(*_run(rootfs, "c", "/bin/sleep", "1000")), stderr=subprocess.PIPE)
    _until(lambda: "RUNNING" in daemon.ctr("tasks", "ls"))
    time.sleep(0.3)
    begun = time.monotonic()
    daemon.stop()
    assert time.monotonic() - begun < 1.0
    assert b"code = Unavailable" in client.communicate(timeout=10)[1]
    daemon.start()
    assert "RUNNING" in daemon.ctr("tasks", "ls")
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "c")
    _until(lambda: "STOPPED" in daemon.ctr("tasks", "ls"))
    daemon.ctr("tasks", "rm", "c")
    daemon.ctr("containers", "rm", "c")
