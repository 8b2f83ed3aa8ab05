"""podman drives our runc."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import programs
from support.engine import await_true, busybox_tar, unmount_below
from support.machine import MARK


class Podman:
    """podman with directories of its own and a chosen runtime."""

    def __init__(self, directory: Path, token: str, runtime: str) -> None:
        self.env = programs.environment(**{MARK: token})
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir()
        subprocess.run(["tar", "-xf", "-", "-C", str(self.rootfs)], input=busybox_tar(), check=True)
        self.prefix = [
            programs.real("PODMAN", "podman"),
            "--root",
            str(directory / "root"),
            "--runroot",
            str(directory / "run"),
        ]
        self.prefix += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        self.prefix += ["--runtime", runtime, "--tmpdir", str(directory / "tmp")]

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.prefix, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.env,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman run`` of the root file system, options first; ``--`` ends them."""
        split = arguments.index("--")
        options, command = arguments[:split], arguments[split + 1 :]
        return self(
            "run",
            "--network",
            "none",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
            *options,
            "--rootfs",
            str(self.rootfs),
            *command,
            check=check,
        )


def remove_monitor_cgroups() -> None:
    """podman leaves the groups of its monitors, which are empty once the monitors have ended.

    For controllers that the machine has not mounted it makes plain directories and files of the same names.
    """
    root = Path("/sys/fs/cgroup")

    def removed() -> bool:
        for path in [*root.glob("*/libpod_parent/conmon/*"), *root.glob("*/libpod_parent/*")]:
            with contextlib.suppress(OSError):
                path.unlink()
        for name in ("libpod_parent/conmon", "libpod_parent"):
            for group in [root / name, *root.glob(f"*/{name}"), *root.glob(f"*/*/*/{name}")]:
                with contextlib.suppress(OSError):
                    group.rmdir()
        return not any(root.glob("**/libpod_parent"))

    await_true(removed, "podman's monitors do not end", 10)
    for name in ("hugetlb", "net_cls", "net_prio", "perf_event"):
        with contextlib.suppress(OSError):
            (root / name).rmdir()  # a plain directory: where the controller is mounted this fails


@pytest.fixture(params=["ours", "real"])
def podman(request: pytest.FixtureRequest, machine: str, short_directory: Callable[[], Path]) -> Iterator[Podman]:
    """podman over our runc, and over the real one to prove the test."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    runtime = programs.ours("runc") if request.param == "ours" else programs.real("REAL_RUNC", "runc")
    directory = short_directory()
    made = Podman(directory, machine, runtime)
    yield made
    made("rm", "-f", "-a", check=False)
    unmount_below(directory)
    remove_monitor_cgroups()


def test_run(podman: Podman) -> None:
    """Output and exit status; --rm leaves nothing."""
    done = podman.run("--rm", "--", "sh", "-c", "echo from podman; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "from podman\n")
    assert podman("ps", "-aq").stdout == ""


def test_detached(podman: Podman) -> None:
    """Detached, exec, top, stop, logs."""
    podman.run("-d", "--name", "box", "--", "sh", "-c", "echo started; exec sleep 1000")
    assert podman("exec", "box", "sh", "-c", "echo $((4*4))").stdout == "16\n"
    assert podman("exec", "box", "sh", "-c", "exit 9", check=False).returncode == 9
    assert "sleep 1000" in podman("top", "box").stdout
    assert podman("logs", "box").stdout == "started\n"
    podman("stop", "-t", "0", "box")
    assert podman("inspect", "-f", "{{.State.Status}}", "box").stdout == "exited\n"


def test_missing_program_is_127(podman: Podman) -> None:
    """podman reads runc's text and gives 127."""
    assert podman.run("--rm", "--", "no-such-program", check=False).returncode == 127
