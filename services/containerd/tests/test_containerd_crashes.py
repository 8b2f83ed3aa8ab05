"""kill -9 of the daemon in the middle of everything, again and again: what is known and what runs stay one."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root
CTR = "/usr/bin/ctr"
RUNC = "/usr/sbin/runc"
ROUNDS = 5
AT_ONCE = 4


def _state(daemon: Any) -> dict[str, set[str]]:
    """Return the names of the containers as each party sees them."""
    runtime = subprocess.run(
        [RUNC, "--root", f"/run/containerd/runc/{daemon.namespace}", "list", "--quiet"], capture_output=True, check=True
    )
    shims = set()
    for pid in daemon.shims():
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        shims |= set(re.findall(r" -id (\w+)", argv))
    work = daemon.root / "io.containerd.runtime.v2.task" / daemon.namespace
    return {
        "tasks": set(re.findall(r"^(c\d+)", daemon.ctr("tasks", "ls"), re.MULTILINE)),
        "bundles": set(daemon.bundles()),
        "work": set(os.listdir(work)) if work.exists() else set(),
        "runtime": set(runtime.stdout.decode().split()),
        "shims": shims,
    }


@pytest.mark.parametrize("shim", ["/usr/bin/containerd-shim-runc-v2", "template"])
def test_nothing_is_lost_or_left_by_crashes(containerd: Any, rootfs: Path, shim: str) -> None:
    """After each crash every task has a bundle, a shim and a container, and there is no other of any of them."""
    beside = os.path.join(os.path.dirname(sys.executable), "containerd-shim-runc-v2")
    containerd.use(CTR, RUNC, beside if shim == "template" else shim)
    moments = random.Random(7)
    containerd.start()
    names = [f"c{number}" for number in range(ROUNDS * AT_ONCE)]
    for round_ in range(ROUNDS):
        clients = []
        for name in names[round_ * AT_ONCE : (round_ + 1) * AT_ONCE]:
            run = ["run", "--detach", "--runc-binary", RUNC, "--rootfs", str(rootfs), name, "/bin/sleep", "1000"]
            clients.append(
                subprocess.Popen(containerd.argv(*run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        time.sleep(moments.uniform(0, 0.4))
        containerd.stop(signal.SIGKILL)
        for client in clients:
            client.wait(30)
        containerd.start()
        deadline = time.monotonic() + 20
        while len({frozenset(found) for found in _state(containerd).values()}) > 1:
            assert time.monotonic() < deadline, _state(containerd)
            time.sleep(0.1)
    alive = sorted(_state(containerd)["tasks"])
    for name in alive:
        # Not checked: a process whose start was cut short by a crash has ended already.
        subprocess.run(
            containerd.argv("tasks", "kill", "-s", "SIGKILL", name), capture_output=True, timeout=30, check=False
        )
        subprocess.run(containerd.argv("tasks", "rm", "--force", name), check=True, capture_output=True, timeout=30)
    deadline = time.monotonic() + 20
    while any(_state(containerd).values()):
        assert time.monotonic() < deadline, _state(containerd)
        time.sleep(0.1)
    assert os.listdir(containerd.state / "s") == []
