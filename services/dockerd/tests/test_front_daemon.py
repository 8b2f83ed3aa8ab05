"""The daemon as a process of the machine: claims, sockets, its own containerd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockerd import containerd_process, daemon
from dockerd.config import Config
from dockerd.daemon import DaemonError, PidFile
from dockerd.server.reactor import Reactor


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """In the real daemon's words, by the pid file and by the data root alone."""
    path = str(tmp_path / "docker.pid")
    first = PidFile(path, str(tmp_path))
    assert Path(path).read_text() == str(os.getpid())
    words = f"failed to start daemon, ensure docker is not running or delete {path}: "
    words += f"process with PID {os.getpid()} is still running"
    with pytest.raises(DaemonError) as raised:
        PidFile(path, str(tmp_path), patience=0)
    assert str(raised.value) == words
    (tmp_path / "other").mkdir()
    with pytest.raises(DaemonError, match="is still running"):
        PidFile(path, str(tmp_path / "other"), patience=0)
    with pytest.raises(DaemonError, match="is still running"):
        PidFile(str(tmp_path / "other.pid"), str(tmp_path), patience=0)
    first.remove()
    assert not os.path.exists(path)
    PidFile(path, str(tmp_path), patience=0).remove()


def test_a_stale_pid_file_is_taken_over(tmp_path: Path) -> None:
    """After kill -9 its pid may belong to anyone."""
    path = tmp_path / "docker.pid"
    path.write_text("1")
    PidFile(str(path), str(tmp_path), patience=0).remove()
    path.write_text("not a number")
    PidFile(str(path), str(tmp_path), patience=0).remove()


def test_a_daemon_that_does_not_lock_its_pid_file_is_respected(tmp_path: Path) -> None:
    """The real dockerd writes its pid and no more."""
    program = tmp_path / "dockerd"
    program.symlink_to("/bin/sleep")
    other = subprocess.Popen([str(program), "60"])
    while b"dockerd" not in Path(f"/proc/{other.pid}/cmdline").read_bytes():  # empty in the middle of execve
        time.sleep(0.01)
    path = tmp_path / "docker.pid"
    path.write_text(str(other.pid))
    try:
        with pytest.raises(DaemonError, match=f"process with PID {other.pid} is still running"):
            PidFile(str(path), str(tmp_path), patience=0)
    finally:
        other.kill()
        other.wait()


def test_directories_have_the_real_engines_modes(tmp_path: Path) -> None:
    """Whatever they were before."""
    config = Config(data_root=str(tmp_path / "d"), exec_root=str(tmp_path / "e"), pidfile=str(tmp_path / "run" / "p"))
    (tmp_path / "d").mkdir(mode=0o777)
    daemon.make_directories(config)
    assert os.stat(config.data_root).st_mode & 0o7777 == 0o710
    assert os.stat(config.exec_root).st_mode & 0o7777 == 0o700
    assert (tmp_path / "run").is_dir()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """Nor is anything that is no socket."""
    path = str(tmp_path / "s.sock")
    daemon.listen(path, None).close()
    assert os.path.exists(path)
    listener = daemon.listen(path, None)
    assert os.stat(path).st_mode & 0o777 == 0o660
    with pytest.raises(OSError, match="another process listens on it"):
        daemon.listen(path, None)
    listener.close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="is not a socket"):
        daemon.listen(str(tmp_path / "file"), None)
    assert (tmp_path / "file").read_text() == "precious"


def test_socket_activation_needs_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """fd:// without systemd is an error that says so."""
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(OSError, match="no sockets found via socket activation"):
        daemon.open_listeners(Config(hosts=("fd://",)))


CONTAINERD = """#!{python}
import os, signal, socket, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open({directory!r} + "/started", "a") as file:
    file.write("x")
if os.path.exists({directory!r} + "/broken"):
    sys.exit(3)
path = arguments["--address"]
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
signal.signal(signal.SIGTERM, lambda *_: (os.unlink(path), os._exit(0)))
while True:
    listener.accept()[0].close()
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A machine with a containerd that listens and does nothing."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "containerd"
    program.write_text(CONTAINERD.format(python=sys.executable, directory=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "dockerd")])
    config = Config(data_root=str(tmp_path / "d"), exec_root=str(tmp_path / "e"))
    yield config
    address = os.path.join(config.own_containerd()[1], "containerd.sock")
    pid = containerd_process.peer_pid(address)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "started").read_text())


def test_an_own_containerd_is_started_found_again_and_stopped(world: Config, tmp_path: Path) -> None:
    """Found by its socket: whoever started it. It is in a session of its own."""
    address = containerd_process.ensure(world)
    pid = containerd_process.peer_pid(address)
    assert pid is not None
    assert os.getsid(pid) == pid
    assert containerd_process.ensure(world) == address
    assert starts(tmp_path) == 1
    containerd_process.stop(address)
    os.waitpid(pid, 0)
    assert containerd_process.peer_pid(address) is None
    containerd_process.stop(address)  # nothing to do


def test_a_containerd_that_fails_is_an_error(world: Config, tmp_path: Path) -> None:
    """With its status; nothing is left running."""
    (tmp_path / "broken").write_text("")
    with pytest.raises(containerd_process.StartError, match="ended with status 3"):
        containerd_process.ensure(world)


def test_a_missing_containerd_is_an_error(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That names the flag to use instead."""
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "bin" / "containerd").unlink()
    with pytest.raises(containerd_process.StartError, match="--containerd"):
        containerd_process.ensure(world)


def test_a_containerd_that_dies_is_started_again(world: Config, tmp_path: Path) -> None:
    """By the worker that watches it."""
    address = containerd_process.ensure(world)
    pid = containerd_process.peer_pid(address)
    assert pid is not None
    reactor = Reactor()
    reactor.start()
    supervisor = containerd_process.Supervisor(world, reactor)
    supervisor.start()
    settled = threading.Event()
    reactor.call_soon(settled.set)
    assert settled.wait(10)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (again := containerd_process.peer_pid(address)) in (None, pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert starts(tmp_path) == 2
    supervisor.close()
    reactor.close()
    assert again is not None
    os.kill(again, signal.SIGKILL)


def test_a_unix_socket_without_a_listener_has_no_process(tmp_path: Path) -> None:
    """Nor has a path that does not exist."""
    path = str(tmp_path / "s")
    assert containerd_process.peer_pid(path) is None
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert containerd_process.peer_pid(path) is None
