"""Our dockerd over the real containerd, shim and runc: streams are pumped, everything else is the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from support import programs
from support.engine import Engine, await_true
from support.terminal import on_terminal, read_until


@pytest.fixture(scope="module")
def docker(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """One engine over the real containerd."""
    return make_engine(containerd=programs.real("REAL_CONTAINERD", "containerd"))  # type: ignore[return-value]


def test_run(clean: Engine) -> None:
    """Output on both streams, input, exit status, removal."""
    done = clean.docker(
        "run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo err >&2; exit 5", stdin="in\n", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "err\n")
    assert clean.out("ps", "-aq") == ""


def test_terminal(clean: Engine) -> None:
    """docker run -it."""
    process, terminal = on_terminal(clean, "run", "--rm", "-it", "busybox", "sh")
    read_until(terminal, b"# ")
    os.write(terminal, b"stty size; exit 5\n")
    read_until(terminal, b"33 101")
    assert process.wait(20) == 5
    os.close(terminal)


def test_detached(clean: Engine) -> None:
    """-d, logs, exec, stop, restart of dockerd, start again."""
    clean.docker("run", "-d", "--name", "box", "busybox", "sh", "-c", "echo up; exec sleep 1000")
    await_true(lambda: clean.out("logs", "box") == "up", "no log")
    assert clean.out("exec", "box", "echo", "in") == "in"
    clean.dockerd.kill()
    clean.dockerd.start()
    assert clean.out("exec", "box", "echo", "again") == "again"
    clean.docker("stop", "-t", "0", "box")
    assert clean.out("inspect", "-f", "{{.State.ExitCode}}", "box") == "137"
    clean.docker("start", "box")
    assert clean.out("ps", "--format", "{{.Names}}") == "box"


def test_missing_program_is_127(clean: Engine) -> None:
    """The real runc's text gives the same status."""
    done = clean.docker("run", "--rm", "busybox", "no-such-program", check=False)
    assert done.returncode == 127
    assert "executable file not found in $PATH" in done.stderr


def test_pull_names_what_is_missing(clean: Engine) -> None:
    """A containerd without the transfer service cannot pull, and the error says so."""
    done = clean.docker("pull", "127.0.0.1:1/x", check=False)
    assert done.returncode == 1
    assert "transfer" in done.stderr
