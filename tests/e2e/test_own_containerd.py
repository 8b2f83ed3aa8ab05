"""One command gives a working engine: dockerd without --containerd."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import programs
from support.engine import LoneEngine, await_true, import_busybox, running
from support.machine import MARK


@pytest.fixture
def lone(machine: str, short_directory: Callable[[], Path]) -> Iterator[LoneEngine]:
    """A dockerd with a containerd of its own."""
    made = LoneEngine(short_directory(), machine)
    try:
        made.start()
        import_busybox(made)
        yield made
    finally:
        made.close()


def test_own_containerd_is_found_again(lone: LoneEngine) -> None:
    """It outlives SIGKILL of dockerd and is used by the next one; a clean stop ends both and leaves containers."""
    assert lone.out("run", "--rm", "busybox", "echo", "one command") == "one command"
    [containerd] = lone.containerd_pids()
    lone.docker("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    pid = int(lone.out("inspect", "-f", "{{.State.Pid}}", "stays"))
    lone.dockerd.kill()
    assert running(containerd)
    lone.dockerd.start()
    assert lone.containerd_pids() == [containerd]
    assert lone.out("exec", "stays", "echo", "there") == "there"
    assert lone.dockerd.stop() == 0
    await_true(lambda: not lone.containerd_pids(), "containerd goes on")
    assert running(pid)
    lone.dockerd.start()
    assert lone.out("inspect", "-f", "{{.State.Pid}}", "stays") == str(pid)


def test_containerd_that_dies_is_started_again(lone: LoneEngine) -> None:
    """dockerd looks after its own containerd."""
    [containerd] = lone.containerd_pids()
    os.kill(containerd, 9)
    await_true(lambda: lone.containerd_pids() not in ([], [containerd]), "not started again")
    await_true(lambda: lone.docker("run", "--rm", "busybox", "true", check=False).returncode == 0, "does not work")


def test_socket_activation(machine: str, short_directory: Callable[[], Path]) -> None:
    """-H fd:// takes the listening socket that the service manager has opened, and leaves it alone at the end."""
    directory = short_directory()
    path = directory / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        places = ["--data-root", str(directory / "docker"), "--exec-root", str(directory / "d")]
        places += ["--pidfile", str(directory / "docker.pid"), "--bridge", "none"]
        command = 'exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" </dev/null'
        daemon = subprocess.Popen(
            ["sh", "-c", command, "sh", programs.ours("dockerd"), "-H", "fd://", *places],
            stdin=listener,
            stdout=subprocess.DEVNULL,
            stderr=(directory / "log").open("wb"),
            env=programs.environment(**{MARK: machine}),
            start_new_session=True,
        )
        version = [programs.docker(), "--host", f"unix://{path}", "version"]
        try:
            done = subprocess.run(version, capture_output=True, text=True, timeout=30, check=False)
            assert re.search("Server: .*Engine:", done.stdout, re.DOTALL), done.stderr + (directory / "log").read_text()
        finally:
            daemon.terminate()
            daemon.wait(20)
        assert path.exists()
    subprocess.run([programs.ours("dockerd"), "remove-network", *places], check=True, capture_output=True)
    template = directory / "d" / "containerd" / "io.gantry.shim.template.v1" / "runc-v2.sock"
    subprocess.run([programs.ours("containerd-shim-runc-v2"), "-socket", str(template), "template-stop"], check=True)
