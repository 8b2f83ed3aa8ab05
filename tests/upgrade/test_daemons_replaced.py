"""Daemons are killed and started again while containers run: nothing of the containers' life is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from support.engine import Daemon, Engine, await_true
from support.terminal import on_terminal, read_until

COUNT = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"


@pytest.fixture(params=["dockerd", "containerd", "both"])
def replace(request: pytest.FixtureRequest, clean: Engine) -> Callable[[], None]:
    """SIGKILL a daemon (or both) and start it again."""

    def kill_and_start() -> None:
        daemons: list[Daemon] = {
            "dockerd": [clean.dockerd],
            "containerd": [clean.containerd],
            "both": [clean.containerd, clean.dockerd],
        }[request.param]
        for daemon in daemons:
            daemon.kill()
        for daemon in daemons:
            daemon.start()
        await_true(lambda: clean.docker("ps", "-a", check=False).returncode == 0, "the engine does not answer")

    return kill_and_start


def lines(docker: Engine, name: str) -> list[str]:
    """The container's log."""
    return docker.docker("logs", name).stdout.splitlines()


def test_container_goes_on(clean: Engine, replace: Callable[[], None]) -> None:
    """A counting container keeps its process, loses no line of its log, and can be used afterwards."""
    clean.docker("run", "-d", "--name", "count", "busybox", "sh", "-c", COUNT)
    pid = clean.out("inspect", "-f", "{{.State.Pid}}", "count")
    await_true(lambda: len(lines(clean, "count")) > 10, "no lines")
    before = len(lines(clean, "count"))
    replace()
    assert clean.out("inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "count") == f"{pid} true"
    await_true(lambda: len(lines(clean, "count")) > before + 20, "no more lines")
    seen = lines(clean, "count")
    assert seen == [f"line {n}" for n in range(1, len(seen) + 1)]
    assert clean.out("exec", "count", "echo", "still here") == "still here"
    assert clean.docker("exec", "-i", "count", "cat", stdin="x").stdout == "x"
    clean.docker("stop", "-t", "0", "count")
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "count") == "exited 137"
    clean.docker("start", "count")
    assert clean.out("inspect", "-f", "{{.State.Running}}", "count") == "true"


def test_exit_while_the_daemon_is_away(clean: Engine, replace: Callable[[], None]) -> None:
    """A container that ends while nobody looks has its true status afterwards, and --rm is still honoured."""
    script = "read x < /go; exit 11"
    for name, options in (("stays", ()), ("goes", ("--rm",))):
        clean.docker("run", "-d", "--name", name, *options, "busybox", "sh", "-c", f"mkfifo /go; echo up; {script}")
        await_true(lambda name=name: "up" in clean.docker("logs", name).stdout, "not up")
    pids = [int(clean.out("inspect", "-f", "{{.State.Pid}}", name)) for name in ("stays", "goes")]
    clean.dockerd.kill()
    for pid in pids:
        with open(f"/proc/{pid}/root/go", "w") as gate:
            gate.write("go\n")
    await_true(lambda: not any(os.path.exists(f"/proc/{pid}/root/go") for pid in pids), "not ended")
    clean.dockerd.start()
    replace()
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "stays") == "exited 11"
    await_true(lambda: clean.out("ps", "-aq", "--filter", "name=goes") == "", "not removed")


def test_interactive_session_never_notices(clean: Engine, replace: Callable[[], None]) -> None:
    """An open docker run -it over the unix socket goes on as if nothing had happened."""
    process, terminal = on_terminal(clean, "run", "--name", "session", "-it", "busybox", "sh")
    read_until(terminal, b"# ")
    os.write(terminal, b"x=before\n")
    read_until(terminal, b"# ")
    replace()
    assert process.poll() is None
    os.write(terminal, b"echo $x-and-after\n")
    read_until(terminal, b"before-and-after")
    os.write(terminal, b"exit 6\n")
    assert process.wait(20) == 6
    os.close(terminal)
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "session") == "exited 6"


def test_network_and_restart_policy_hold(clean: Engine, replace: Callable[[], None]) -> None:
    """A published port answers before and after; a container with a restart policy comes back."""
    clean.docker(
        "run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "httpd", "-f", "-p", "80", "-h", "/data"
    )
    port = clean.out("port", "web", "80")
    clean.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "sh", "-c", "sleep 0.3")
    replace()
    assert clean.out("port", "web", "80") == port
    assert clean.docker("exec", "web", "wget", "-qO-", "127.0.0.1/shipped").stdout == "from the image\n"
    count = int(clean.out("inspect", "-f", "{{.RestartCount}}", "again"))
    await_true(lambda: int(clean.out("inspect", "-f", "{{.RestartCount}}", "again")) > count, "no restart")
    address = json.loads(clean.out("inspect", "web"))[0]["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    other = clean.out("run", "--rm", "busybox", "hostname", "-i").split()
    assert address not in other


def test_clean_stop_leaves_containers(clean: Engine) -> None:
    """An ordinary stop of both daemons leaves containers running; a start finds them."""
    clean.docker("run", "-d", "--name", "count", "busybox", "sh", "-c", COUNT)
    pid = clean.out("inspect", "-f", "{{.State.Pid}}", "count")
    assert clean.dockerd.stop() == 0
    assert clean.containerd.stop() == 0
    assert os.path.exists(f"/proc/{pid}/root/bin/busybox")
    clean.containerd.start()
    clean.dockerd.start()
    assert clean.out("inspect", "-f", "{{.State.Pid}}", "count") == pid
    assert clean.out("exec", "count", "echo", "found") == "found"
