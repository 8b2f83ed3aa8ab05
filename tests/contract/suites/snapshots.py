"""The snapshots service, with the overlayfs snapshotter."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.suites.peer import ROOT, Peer, fails

from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2 as messages
from gantry.contracts.containerd.types.mount_pb2 import Mount

SNAPSHOTTER = "overlayfs"


@contextmanager
def mounted(mounts: Iterable[Mount], directory: Path) -> Iterator[Path]:
    """What a snapshot shows, at a directory."""
    (mount,) = mounts
    directory.mkdir(exist_ok=True)
    options = ",".join(mount.options)
    subprocess.run(["mount", "-t", mount.type, "-o", options, mount.source, str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


class SnapshotsSuite:
    """What every snapshotter does."""

    def test_layers_are_seen_through(self, peer: Peer, tmp_path: Path) -> None:
        """What is written below is seen above, what is changed above is not seen below."""
        with mounted(self._prepare(peer, "one-active"), tmp_path / "m") as root:
            (root / "a").write_text("one")
        self._commit(peer, "one", "one-active")
        with mounted(self._prepare(peer, "two-active", "one"), tmp_path / "m") as root:
            assert (root / "a").read_text() == "one"
            (root / "a").write_text("two")
            (root / "b").write_text("two")
        self._commit(peer, "two", "two-active")
        for name, parent, expected in (("v1", "one", "one"), ("v2", "two", "two")):
            view = messages.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key=name, parent=parent, labels=ROOT)
            with mounted(peer.call(peer.snapshots.View, view).mounts, tmp_path / "m") as root:
                assert (root / "a").read_text() == expected
                assert (root / "b").exists() is (parent == "two")

    def test_a_view_is_read_only(self, peer: Peer) -> None:
        """Its mounts say so, and it cannot be committed."""
        self._prepare(peer, "a")
        self._commit(peer, "base", "a")
        view = messages.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key="v", parent="base", labels=ROOT)
        (mount,) = peer.call(peer.snapshots.View, view).mounts
        assert "ro" in mount.options
        with fails("FAILED_PRECONDITION"):
            self._commit(peer, "x", "v")

    def test_kinds_parents_and_times(self, peer: Peer) -> None:
        """Stat follows a snapshot from active to committed."""
        self._prepare(peer, "a")
        info = self._stat(peer, "a")
        assert (info.kind, info.parent, info.name) == (messages.ACTIVE, "", "a")
        self._commit(peer, "base", "a", {"x": "y"})
        assert self._stat(peer, "base").kind == messages.COMMITTED
        assert dict(self._stat(peer, "base").labels) == {**ROOT, "x": "y"}
        with fails("NOT_FOUND"):
            self._stat(peer, "a")
        self._prepare(peer, "b", "base")
        assert self._stat(peer, "b").parent == "base"

    def test_names_are_taken_once(self, peer: Peer) -> None:
        """A key, and the name of a commit."""
        self._prepare(peer, "a")
        with fails("ALREADY_EXISTS"):
            self._prepare(peer, "a")
        self._commit(peer, "base", "a")
        self._prepare(peer, "b")
        with fails("ALREADY_EXISTS"):
            self._commit(peer, "base", "b")

    def test_what_is_not_there(self, peer: Peer) -> None:
        """Every call says so: a parent, a key; and an active snapshot is nobody's parent."""
        with fails("NOT_FOUND"):
            self._prepare(peer, "a", "missing")
        for call, request in (
            (peer.snapshots.Mounts, messages.MountsRequest(snapshotter=SNAPSHOTTER, key="missing")),
            (peer.snapshots.Usage, messages.UsageRequest(snapshotter=SNAPSHOTTER, key="missing")),
            (peer.snapshots.Remove, messages.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key="missing")),
            (peer.snapshots.Commit, messages.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name="n", key="missing")),
        ):
            with fails("NOT_FOUND"):
                peer.call(call, request)
        self._prepare(peer, "active")
        with fails("INVALID_ARGUMENT"):
            self._prepare(peer, "b", "active")

    def test_a_parent_stays(self, peer: Peer) -> None:
        """It can be removed only when nothing is on it any more."""
        self._prepare(peer, "a")
        self._commit(peer, "base", "a")
        self._prepare(peer, "b", "base")
        with fails("FAILED_PRECONDITION"):
            self._remove(peer, "base")
        self._remove(peer, "b")
        self._remove(peer, "base")
        assert self._list(peer) == set()

    def test_mounts_are_those_of_prepare(self, peer: Peer) -> None:
        """A committed snapshot has none."""
        mounts = list(self._prepare(peer, "a"))
        request = messages.MountsRequest(snapshotter=SNAPSHOTTER, key="a")
        assert list(peer.call(peer.snapshots.Mounts, request).mounts) == mounts
        self._commit(peer, "base", "a")
        request = messages.MountsRequest(snapshotter=SNAPSHOTTER, key="base")
        with fails("FAILED_PRECONDITION"):
            peer.call(peer.snapshots.Mounts, request)

    def test_usage_counts_what_was_written(self, peer: Peer, tmp_path: Path) -> None:
        """In the upper layer only, in bytes and inodes."""
        with mounted(self._prepare(peer, "a"), tmp_path / "m") as root:
            (root / "file").write_bytes(b"x" * 100_000)
        usage = peer.call(peer.snapshots.Usage, messages.UsageRequest(snapshotter=SNAPSHOTTER, key="a"))
        assert 100_000 <= usage.size < 200_000
        assert usage.inodes >= 2
        self._commit(peer, "base", "a")
        committed = peer.call(peer.snapshots.Usage, messages.UsageRequest(snapshotter=SNAPSHOTTER, key="base"))
        assert committed.size == usage.size
        self._prepare(peer, "b", "base")
        above = peer.call(peer.snapshots.Usage, messages.UsageRequest(snapshotter=SNAPSHOTTER, key="b"))
        assert above.size < 100_000

    def test_labels_and_filters(self, peer: Peer) -> None:
        """Labels change by field mask; filters know kind, name, parent and labels."""
        self._prepare(peer, "a")
        self._commit(peer, "base", "a", {"x": "1"})
        self._prepare(peer, "b", "base")
        request = messages.UpdateSnapshotRequest(
            snapshotter=SNAPSHOTTER, info=messages.Info(name="b", labels={"y": "2"})
        )
        request.update_mask.paths.append("labels.y")
        assert dict(peer.call(peer.snapshots.Update, request).info.labels) == {**ROOT, "y": "2"}
        request.update_mask.paths[:] = ["kind"]
        with fails("INVALID_ARGUMENT"):
            peer.call(peer.snapshots.Update, request)
        for chosen, expected in (
            ("kind==committed", {"base"}),
            ("name==b", {"b"}),
            ("parent==base", {"b"}),
            ("labels.x==1", {"base"}),
            ("labels.y", {"b"}),
        ):
            assert self._list(peer, chosen) == expected, chosen

    def test_a_snapshotter_that_does_not_exist(self, peer: Peer) -> None:
        """And one without a name."""
        for name in ("none", ""):
            with fails("INVALID_ARGUMENT"):
                peer.call(peer.snapshots.Prepare, messages.PrepareSnapshotRequest(snapshotter=name, key="k"))

    @staticmethod
    def _prepare(peer: Peer, key: str, parent: str = "") -> list[Mount]:
        request = messages.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent, labels=ROOT)
        return list(peer.call(peer.snapshots.Prepare, request).mounts)

    @staticmethod
    def _commit(peer: Peer, name: str, key: str, labels: dict[str, str] | None = None) -> None:
        labels = {**ROOT, **(labels or {})}
        request = messages.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name=name, key=key, labels=labels)
        peer.call(peer.snapshots.Commit, request)

    @staticmethod
    def _stat(peer: Peer, key: str) -> messages.Info:
        request = messages.StatSnapshotRequest(snapshotter=SNAPSHOTTER, key=key)
        info: messages.Info = peer.call(peer.snapshots.Stat, request).info
        return info

    @staticmethod
    def _remove(peer: Peer, key: str) -> None:
        peer.call(peer.snapshots.Remove, messages.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key))

    @staticmethod
    def _list(peer: Peer, *filters: str) -> set[str]:
        request = messages.ListSnapshotsRequest(snapshotter=SNAPSHOTTER, filters=filters)
        return {info.name for reply in peer.listed(peer.snapshots.List, request) for info in reply.info}
