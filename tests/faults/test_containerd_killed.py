"""kill -9 of containerd at random moments under a workload: what was acknowledged is there, and nothing else stays."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from contract.suites.peer import ROOT, Peer
from support import programs
from support.engine import Daemon, answers, await_true, busybox_tar, stop_template, unmount_below
from support.machine import MARK

from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.contracts.containerd.services.leases.v1 import leases_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2

NAMESPACE = f"faults-{secrets.token_hex(4)}"
"""Of this run alone: the runtime's directory and the cgroups are named after it, outside of its daemon."""
RUNTIME = Path("/run/containerd/runc") / NAMESPACE
ROUNDS = 3
SEED = 4


class Workload:
    """Clients that write blobs, make snapshots and run containers, and remember what they were told is done."""

    def __init__(self, peer: Peer, argv: list[str], rootfs: Path, env: dict[str, str]) -> None:
        self.peer, self.argv, self.rootfs, self.env = peer, argv, rootfs, env
        self.blobs: dict[str, bytes] = {}
        self.snapshots: set[str] = set()
        self.running: set[str] = set()
        self._numbers = iter(range(10**6))

    def go(self, ended: threading.Event) -> list[threading.Thread]:
        """Begin; each client ends at its first failure after ``ended``."""
        threads = [threading.Thread(target=self._loop, args=(work, ended)) for work in (self._blob, self._snapshot)]
        threads.append(threading.Thread(target=self._loop, args=(self._run, ended)))
        for thread in threads:
            thread.start()
        return threads

    @staticmethod
    def _loop(work: Callable[[], None], ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                work()
            except (grpc.RpcError, subprocess.CalledProcessError):
                ended.wait(0.05)  # the daemon is gone, or about to be

    def _blob(self) -> None:
        data = os.urandom(200_000)
        self.blobs[self.peer.write(data)] = data

    def _snapshot(self) -> None:
        name = f"s{next(self._numbers)}"
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"{name}-active", labels=ROOT)
        self.peer.call(self.peer.snapshots.Prepare, prepare)
        commit = snapshots_pb2.CommitSnapshotRequest(
            snapshotter="overlayfs", name=name, key=f"{name}-active", labels=ROOT
        )
        self.peer.call(self.peer.snapshots.Commit, commit)
        self.snapshots.add(name)

    def _run(self) -> None:
        name = f"c{next(self._numbers)}"
        run = ["run", "-d", "--rootfs", str(self.rootfs), name, "/bin/sleep", "1000"]
        subprocess.run([*self.argv, *run], check=True, capture_output=True, env=self.env, timeout=30)
        self.running.add(name)


@pytest.fixture
def directory(short_directory: Callable[[], Path]) -> Path:
    """Where the daemon lives."""
    return short_directory()


@pytest.fixture
def daemon(machine: str, directory: Path) -> Iterator[Daemon]:
    """Our containerd."""
    config = directory / "config.toml"
    config.write_text("version = 2\n")
    env = programs.environment(**{MARK: machine})
    argv = [programs.ours("containerd"), "--config", str(config), "--address", str(directory / "s")]
    argv += ["--root", str(directory / "root"), "--state", str(directory / "state")]
    made = Daemon(argv, directory / "log", env, lambda: answers(directory / "s"))
    made.start()
    yield made
    made.stop()
    stop_template(directory / "state" / "io.gantry.shim.template.v1" / "runc-v2.sock", env)
    unmount_below(directory)
    for left in (RUNTIME, *Path("/sys/fs/cgroup").glob(NAMESPACE), *Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}")):
        if left.is_dir() and not left.is_symlink():
            # Only directories are in a cgroup that can be removed, and a runtime that was killed may leave one below.
            for below, _, _ in os.walk(left, topdown=False):
                os.rmdir(below)


def test_nothing_is_lost_and_nothing_leaks(daemon: Daemon, directory: Path) -> None:
    """Kills under load: blobs, snapshots and containers that were promised are there; then all of it goes."""
    ctr = [programs.real("REAL_CTR", "ctr"), "--address", str(directory / "s"), "--namespace", NAMESPACE]
    rootfs = directory / "rootfs"
    rootfs.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(rootfs)], input=busybox_tar(), check=True)
    options = [("grpc.default_authority", "localhost"), ("grpc.max_reconnect_backoff_ms", 100)]
    moments = random.Random(SEED)
    with grpc.insecure_channel(f"unix:{directory}/s", [*options, ("grpc.initial_reconnect_backoff_ms", 50)]) as channel:
        peer = Peer(channel, NAMESPACE, real=False)
        load = Workload(peer, ctr, rootfs, daemon.env)
        for _ in range(ROUNDS):
            ended = threading.Event()
            threads = load.go(ended)
            before = len(load.running)
            await_true(lambda before=before: len(load.running) > before, "no container was started", 20)
            time.sleep(moments.uniform(0, 0.5))
            daemon.kill()
            ended.set()
            for thread in threads:
                thread.join()
            daemon.start()
            grpc.channel_ready_future(channel).result(timeout=20)
            _all_there(load)
        assert load.blobs
        assert load.snapshots
        assert load.running
        _remove_everything(load)
        _nothing_left(directory)


def _ctr(load: Workload, *arguments: str, check: bool = True) -> list[str]:
    done = subprocess.run([*load.argv, *arguments], capture_output=True, check=check, env=load.env, timeout=30)
    return done.stdout.decode().split()


def _all_there(load: Workload) -> None:
    """Every promise holds."""
    for digest, data in load.blobs.items():
        replies = load.peer.listed(load.peer.content.Read, content_pb2.ReadContentRequest(digest=digest))
        assert b"".join(reply.data for reply in replies) == data
    for name in load.snapshots:
        stat = snapshots_pb2.StatSnapshotRequest(snapshotter="overlayfs", key=name)
        assert load.peer.call(load.peer.snapshots.Stat, stat).info.kind == snapshots_pb2.COMMITTED
    assert load.running <= set(_ctr(load, "tasks", "ls", "-q"))


def _remove_everything(load: Workload) -> None:
    for name in _ctr(load, "tasks", "ls", "-q"):
        _ctr(load, "tasks", "kill", "-s", "KILL", name, check=False)
        _ctr(load, "tasks", "rm", "--force", name)
    for name in _ctr(load, "containers", "ls", "-q"):
        _ctr(load, "containers", "rm", name)
    for reply in load.peer.listed(load.peer.content.List, content_pb2.ListContentRequest()):
        for info in reply.info:
            load.peer.call(load.peer.content.Delete, content_pb2.DeleteContentRequest(digest=info.digest))
    for status in load.peer.call(load.peer.content.ListStatuses, content_pb2.ListStatusesRequest()).statuses:
        load.peer.call(load.peer.content.Abort, content_pb2.AbortRequest(ref=status.ref))
    for reply in load.peer.listed(
        load.peer.snapshots.List, snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
    ):
        for info in reply.info:
            request = snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=info.name)
            load.peer.call(load.peer.snapshots.Remove, request)
    # A collection, and its end is waited for.
    load.peer.call(load.peer.leases.Create, leases_pb2.CreateRequest(id="last"))
    load.peer.call(load.peer.leases.Delete, leases_pb2.DeleteRequest(id="last", sync=True))


def _nothing_left(directory: Path) -> None:
    """Neither bytes, nor directories of snapshots, nor bundles, nor shims."""
    content = directory / "root" / "io.containerd.content.v1.content"
    files = [path for path in content.rglob("*") if path.is_file() and path.stat().st_size >= 1000]
    assert files == []
    assert list((directory / "root" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots").iterdir()) == []
    bundles = directory / "state" / "io.containerd.runtime.v2.task"
    await_true(lambda: not list(bundles.glob("*/*")), "bundles are left", 10)
    await_true(lambda: not list((directory / "state" / "s").iterdir()), "shims are left", 10)
    assert not RUNTIME.exists() or list(RUNTIME.iterdir()) == []
