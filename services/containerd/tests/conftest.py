"""A containerd of one's own: started in a temporary directory, and gone with everything it started afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

CTR = shutil.which("ctr")
BUSYBOX = shutil.which("busybox")
START_TIMEOUT = 30.0
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Daemon:
    """A running containerd and real ``ctr`` as its client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.state = directory / "state"
        self.socket = directory / "c.sock"
        self.log = directory / "log"
        # The runtime keeps its state by namespace, outside of our directories: ours is one that nobody else uses.
        self.namespace = directory.name
        self.process: subprocess.Popen[bytes] | None = None
        self.program = directory / "bin" / "containerd"
        self.program.parent.mkdir()
        self.program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom containerd.cli import main\n\nsys.exit(main())\n"
        )
        self.program.chmod(0o755)

    def use(self, *programs: str) -> None:
        """Put programs beside the daemon's own: that is where it looks first. Skips the test where one is missing."""
        for program in programs:
            if not os.path.exists(program):
                pytest.skip(f"needs {program}")
            (self.program.parent / os.path.basename(program)).symlink_to(program)

    def start(
        self, *flags: str, environment: dict[str, str] | None = None, inherit: socket.socket | None = None
    ) -> None:
        """Start it and wait until it answers; ``inherit`` is a listening socket that it gets as from systemd."""
        activate = [sys.executable, "-c", ACTIVATE, str(inherit.fileno())] if inherit else []
        argv = [*activate, str(self.program), "--root", str(self.root), "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--address", str(self.socket), "-l", "debug", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                pass_fds=[inherit.fileno()] if inherit else [],
            )
        deadline = time.monotonic() + START_TIMEOUT
        with self.channel() as channel:
            ready = grpc.channel_ready_future(channel)
            while time.monotonic() < deadline:
                try:
                    ready.result(timeout=0.2)
                    return
                except grpc.FutureTimeoutError:
                    assert self.process.poll() is None, self.last_lines()
        raise AssertionError(f"containerd does not answer:\n{self.last_lines()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def channel(self) -> grpc.Channel:
        """Return a channel to it."""
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        return grpc.insecure_channel(f"unix:{self.socket}", options)

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of a ``ctr`` call."""
        assert CTR is not None
        namespace = [] if "-n" in arguments else ["-n", self.namespace]
        return [CTR, "--address", str(self.socket), *namespace, *arguments]

    def ctr(self, *arguments: str, status: int = 0) -> str:
        """Run ``ctr`` and return what it printed, both outputs together."""
        done = subprocess.run(
            self.argv(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
        )
        output = done.stdout.decode()
        assert done.returncode == status, f"ctr {' '.join(arguments)}: {done.returncode}\n{output}\n{self.last_lines()}"
        return output

    def last_lines(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-4000:]

    def bundles(self) -> list[str]:
        """Return the ids of all bundles, in all namespaces."""
        return sorted(path.name for path in (self.state / "io.containerd.runtime.v2.task").glob("*/*"))

    def shims(self, *, templates: bool = False) -> list[int]:
        """Return the shims of this daemon: they name its socket or work in its state directory. Or its templates."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                argv = Path(f"/proc/{name}/cmdline").read_bytes()
                cwd = os.readlink(f"/proc/{name}/cwd")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            mine = self.process is not None and int(name) == self.process.pid
            ours = str(self.socket).encode() in argv or cwd.startswith(f"{self.state}/")
            if (
                ours
                and not mine
                and (b"template" in argv.replace(b"\0", b" ").split()) is templates
                and b"\0ctr" not in argv
            ):
                found.append(int(name))
        return found


@pytest.fixture
def containerd() -> Iterator[Daemon]:
    """A daemon that has not been started: short paths, because sockets have a limit."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = Path(tempfile.gettempdir(), f"gantry-ctd-{uuid.uuid4().hex[:12]}")
    directory.mkdir(mode=0o700)
    daemon = Daemon(directory)
    yield daemon
    if daemon.process is not None:
        daemon.stop()
    left = daemon.shims()
    # A template is meant to outlive its daemon.
    for pid in left + daemon.shims(templates=True):
        os.kill(pid, signal.SIGKILL)
    _remove_runtime_state(f"/run/containerd/runc/{daemon.namespace}")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split()[4] for line in file if str(directory) in line.split()[4]]
    for mount in sorted(mounts, key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(directory)
    assert not mounts, f"mounts were left: {mounts}"
    assert not left, f"processes were left: {left}"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root file system with busybox and nothing else."""
    if BUSYBOX is None:
        pytest.skip("needs busybox")
    root = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for name in ("sh", "echo", "sleep", "cat", "true"):
        (root / "bin" / name).symlink_to("busybox")
    return root


def _remove_runtime_state(directory: str) -> None:
    if not os.path.isdir(directory):
        return
    for name in os.listdir(directory):
        subprocess.run(["/usr/sbin/runc", "--root", directory, "delete", "--force", name], check=False)
    os.rmdir(directory)
    # The runtime removes a container's cgroup, and leaves the one above it, named by the namespace.
    hierarchies = Path("/sys/fs/cgroup")
    name = os.path.basename(directory)
    for cgroup in [*hierarchies.glob(name), *hierarchies.glob(f"*/{name}")]:
        # A runtime that was killed while it made a container leaves an empty one below, too.
        for below, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(below)
