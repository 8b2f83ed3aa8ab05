"""containerd, shim and runc, each ours or the real one: every combination passes one suite driven by the real ctr."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import programs
from support.engine import Daemon, answers, await_true, busybox_tar, running, stop_template, unmount_below
from support.machine import MARK

OURS, REAL = "ours", "real"


class Stack:
    """A containerd in a directory of its own, and ctr pointed at it with a chosen shim and runc."""

    def __init__(self, directory: Path, token: str, containerd: str, shim: str, runc: str) -> None:
        self.directory = directory
        self.env = programs.environment(**{MARK: token})
        self.address = directory / "s"
        # a directory with one make of each program, first in PATH: real and ours look there before anywhere else
        programs_directory = directory / "bin"
        programs_directory.mkdir()
        for name, make in (("containerd", containerd), ("containerd-shim-runc-v2", shim), ("runc", runc)):
            (programs_directory / name).symlink_to(_path(make, name))
        self.env["PATH"] = f"{programs_directory}{os.pathsep}{self.env['PATH']}"
        config = directory / "config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        self.daemon = Daemon(
            [
                _path(containerd, "containerd"),
                "--config",
                str(config),
                "--address",
                str(self.address),
                "--log-level",
                "debug",
            ]
            + ["--root", str(directory / "root"), "--state", str(directory / "state")],
            directory / "log",
            self.env,
            lambda: answers(self.address),
        )
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir()
        subprocess.run(["tar", "-xf", "-", "-C", str(self.rootfs)], input=busybox_tar(), check=True)

    def ctr(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run the real ctr in the namespace ``contract``."""
        argv = [programs.real("REAL_CTR", "ctr"), "--address", str(self.address), "--namespace", "contract", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False, env=self.env)
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{out}{err}\n{self.daemon.tail()}"
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def run(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """``ctr run`` of the busybox root file system: options, then the id and the command."""
        options = list(itertools.takewhile(lambda a: a.startswith("-"), arguments))
        name, *command = arguments[len(options) :]
        return self.ctr(
            "run",
            *options,
            "--env",
            "PATH=/bin",
            "--rootfs",
            str(self.rootfs),
            name,
            *command,
            check=check,
            stdin=stdin,
        )

    def close(self) -> None:
        """Remove tasks and containers, stop the daemon, leave nothing."""
        for line in self.ctr("tasks", "ls", "-q", check=False).stdout.split():
            self.ctr("tasks", "kill", "-s", "KILL", line, check=False)
            self.ctr("tasks", "rm", "-f", line, check=False)
        for line in self.ctr("containers", "ls", "-q", check=False).stdout.split():
            self.ctr("containers", "rm", line, check=False)
        self.daemon.stop()
        stop_template(self.directory / "state" / "io.gantry.shim.template.v1" / "runc-v2.sock", self.env)
        unmount_below(self.directory)


def _path(make: str, name: str) -> str:
    return programs.ours(name) if make == OURS else programs.real(f"REAL_{VARIABLE[name]}", name)


VARIABLE = {"containerd": "CONTAINERD", "containerd-shim-runc-v2": "SHIM", "runc": "RUNC"}


@pytest.fixture(
    scope="module",
    params=list(itertools.product((OURS, REAL), repeat=3)),
    ids="-".join,
)
def stack(request: pytest.FixtureRequest, machine: str, short_directory: Callable[[], Path]) -> Iterator[Stack]:
    """One combination of makes."""
    made = Stack(short_directory(), machine, *request.param)
    made.daemon.start()
    try:
        yield made
    finally:
        made.close()


def test_run_output_and_status(stack: Stack) -> None:
    """Output, input and exit status pass through all layers."""
    done = stack.run("--rm", "box", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert done.returncode == 7
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert stack.run("--rm", "box", "head", "-n", "1", stdin=b"through\n").stdout == "through\n"
    assert stack.ctr("containers", "ls", "-q").stdout == ""


def test_missing_program(stack: Stack) -> None:
    """runc's wording reaches the caller, and nothing is left."""
    done = stack.run("--rm", "box", "no-such-program", check=False)
    assert done.returncode != 0
    assert 'exec: "no-such-program": executable file not found in $PATH' in done.stderr
    assert stack.ctr("tasks", "ls", "-q").stdout == ""
    stack.ctr("containers", "rm", "box", check=False)
    assert stack.ctr("containers", "ls", "-q").stdout == ""


def test_detached_exec_kill(stack: Stack) -> None:
    """A task in the background: list, exec, pause, kill, delete."""
    stack.run("-d", "box", "sleep", "1000")
    row = next(line.split() for line in stack.ctr("tasks", "ls").stdout.splitlines() if line.startswith("box"))
    pid = int(row[1])
    assert row[2] == "RUNNING"
    done = stack.ctr("tasks", "exec", "--exec-id", "one", "box", "sh", "-c", "echo inside; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "inside\n")
    stack.ctr("tasks", "pause", "box")
    assert "PAUSED" in stack.ctr("tasks", "ls").stdout
    stack.ctr("tasks", "resume", "box")
    assert str(pid) in stack.ctr("tasks", "ps", "box").stdout
    assert "memory" in stack.ctr("tasks", "metrics", "box").stdout.lower()
    stack.ctr("tasks", "kill", "-s", "KILL", "box")
    await_true(lambda: not running(pid), "not killed")
    await_true(lambda: "STOPPED" in stack.ctr("tasks", "ls").stdout, "not stopped")
    stack.ctr("tasks", "rm", "box", check=False)
    stack.ctr("containers", "rm", "box")
    assert stack.ctr("tasks", "ls", "-q").stdout == ""


def test_daemon_killed_and_started(stack: Stack) -> None:
    """A task outlives SIGKILL of the daemon, is found again, and its end is noticed."""
    stack.run("-d", "box", "sleep", "1000")
    row = next(line.split() for line in stack.ctr("tasks", "ls").stdout.splitlines() if line.startswith("box"))
    stack.daemon.kill()
    assert running(int(row[1]))
    stack.daemon.start()
    assert "RUNNING" in stack.ctr("tasks", "ls").stdout
    done = stack.ctr("tasks", "exec", "--exec-id", "two", "box", "echo", "again")
    assert done.stdout == "again\n"
    stack.ctr("tasks", "kill", "-s", "KILL", "box")
    await_true(lambda: "STOPPED" in stack.ctr("tasks", "ls").stdout, "not stopped")
    stack.ctr("tasks", "rm", "box", check=False)
    stack.ctr("containers", "rm", "box")
