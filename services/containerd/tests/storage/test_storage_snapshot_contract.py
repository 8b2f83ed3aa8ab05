"""What every snapshotter has to do: one suite, run over each of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from containerd.diff.temporary import mounted
from containerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from containerd.labels import SNAPSHOT_REF
from containerd.mounts import Mount
from containerd.scope import Scope
from containerd.snapshots import Kind

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]


@pytest.fixture(params=["overlayfs", "native"])
def snapshotter(request: pytest.FixtureRequest, world: Any) -> Any:
    """Each implementation in turn."""
    return world.snapshotters[request.param]


def write(mounts: Any, **files: str) -> None:
    """Write files through the mounts."""
    with mounted(mounts) as directory:
        for name, text in files.items():
            Path(directory, name).write_text(text)


def read(mounts: Any) -> dict[str, str]:
    """Return the files that the mounts show."""
    with mounted(mounts) as directory:
        return {path.name: path.read_text() for path in Path(directory).iterdir() if path.is_file()}


def layer(snapshotter: Any, scope: Scope, name: str, parent: str = "", **files: str) -> None:
    """Commit a snapshot that adds files."""
    write(snapshotter.prepare(scope, f"{name}-active", parent), **files)
    snapshotter.commit(scope, name, f"{name}-active")


def test_layers_add_up(world: Any, snapshotter: Any) -> None:
    """What is committed is seen by its children, and changes of a child are its own."""
    layer(snapshotter, world.scope, "one", a="1", b="1")
    layer(snapshotter, world.scope, "two", "one", b="2")
    assert read(snapshotter.prepare(world.scope, "c1", "two")) == {"a": "1", "b": "2"}
    write(snapshotter.mounts(world.scope, "c1"), c="3")
    assert read(snapshotter.prepare(world.scope, "c2", "two")) == {"a": "1", "b": "2"}
    assert read(snapshotter.mounts(world.scope, "c1")) == {"a": "1", "b": "2", "c": "3"}
    assert read(snapshotter.view(world.scope, "v", "one")) == {"a": "1", "b": "1"}


def test_a_deletion_hides_the_parents_file(world: Any, snapshotter: Any) -> None:
    """A file that is removed in a child stays in its parent."""
    layer(snapshotter, world.scope, "one", a="1", b="1")
    mounts = snapshotter.prepare(world.scope, "active", "one")
    with mounted(mounts) as directory:
        Path(directory, "a").unlink()
    snapshotter.commit(world.scope, "two", "active")
    assert read(snapshotter.view(world.scope, "v2", "two")) == {"b": "1"}
    assert read(snapshotter.view(world.scope, "v1", "one")) == {"a": "1", "b": "1"}


def test_a_view_cannot_be_written_to(world: Any, snapshotter: Any) -> None:
    """Its mounts are read-only, with one parent, with two and with none."""
    layer(snapshotter, world.scope, "one", a="1")
    layer(snapshotter, world.scope, "two", "one", b="1")
    for key, parent in (("v0", ""), ("v1", "one"), ("v2", "two")):
        mounts = snapshotter.view(world.scope, key, parent)
        with pytest.raises(OSError, match="Read-only file system"):
            write(mounts, x="1")


def test_a_view_cannot_be_committed(world: Any, snapshotter: Any) -> None:
    """Only active snapshots become committed ones."""
    snapshotter.view(world.scope, "v")
    with pytest.raises(FailedPrecondition, match='snapshot "v" is not active'):
        snapshotter.commit(world.scope, "name", "v")


def test_keys_are_unique(world: Any, snapshotter: Any) -> None:
    """Active and committed snapshots share one name space; other namespaces have their own."""
    layer(snapshotter, world.scope, "one")
    snapshotter.prepare(world.scope, "active")
    for key in ("one", "active"):
        with pytest.raises(AlreadyExists, match=f'snapshot "{key}": already exists'):
            snapshotter.prepare(world.scope, key)
    with pytest.raises(AlreadyExists, match='snapshot "one": already exists'):
        snapshotter.commit(world.scope, "one", "active")
    assert snapshotter.stat(world.scope, "active").kind is Kind.ACTIVE
    other = Scope("other")
    snapshotter.prepare(other, "active")
    with pytest.raises(NotFound):
        snapshotter.stat(other, "one")
    assert len(list(snapshotter.directory.iterdir())) == 3


def test_parents_must_be_committed(world: Any, snapshotter: Any) -> None:
    """An active snapshot is no parent, and neither is one that does not exist."""
    snapshotter.prepare(world.scope, "active")
    with pytest.raises(InvalidArgument, match='parent "active" is not committed'):
        snapshotter.prepare(world.scope, "child", "active")
    with pytest.raises(NotFound, match="parent snapshot none does not exist: not found"):
        snapshotter.prepare(world.scope, "child", "none")
    assert [info.key for info in snapshotter.list(world.scope)] == ["active"]


def test_removal_is_from_the_top(world: Any, snapshotter: Any) -> None:
    """A parent cannot be removed before its children; directories are gone after a clean-up."""
    layer(snapshotter, world.scope, "one", a="1")
    layer(snapshotter, world.scope, "two", "one")
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        snapshotter.remove(world.scope, "one")
    snapshotter.remove(world.scope, "two")
    snapshotter.remove(world.scope, "one")
    with pytest.raises(NotFound, match="snapshot one does not exist: not found"):
        snapshotter.remove(world.scope, "one")
    assert world.dirty == 2
    snapshotter.cleanup()
    assert list(snapshotter.directory.iterdir()) == []


def test_mounts_only_of_what_can_be_mounted(world: Any, snapshotter: Any) -> None:
    """A committed snapshot has no mounts of its own."""
    layer(snapshotter, world.scope, "one")
    with pytest.raises(FailedPrecondition, match="requested snapshot one not active or view"):
        snapshotter.mounts(world.scope, "one")
    with pytest.raises(NotFound):
        snapshotter.mounts(world.scope, "none")


def test_mounts_are_the_same_every_time(world: Any, snapshotter: Any) -> None:
    """Asking again gives what prepare gave."""
    layer(snapshotter, world.scope, "one")
    assert snapshotter.prepare(world.scope, "a", "one") == snapshotter.mounts(world.scope, "a")


def test_stat_and_list(world: Any, snapshotter: Any) -> None:
    """Kind, parent and labels are told, and can be filtered by."""
    layer(snapshotter, world.scope, "one")
    snapshotter.prepare(world.scope, "a", "one", {"x": "1"})
    snapshotter.view(world.scope, "v", "one")
    info = snapshotter.stat(world.scope, "a")
    assert (info.kind, info.parent, info.labels) == (Kind.ACTIVE, "one", {"x": "1"})
    assert [item.key for item in snapshotter.list(world.scope)] == ["a", "one", "v"]
    assert [item.key for item in snapshotter.list(world.scope, ["kind==committed"])] == ["one"]
    assert [item.key for item in snapshotter.list(world.scope, ["parent==one,labels.x==1", "name==v"])] == ["a", "v"]


def test_labels_change_and_are_replaced_by_a_commit(world: Any, snapshotter: Any) -> None:
    """An update sets one label; a commit gives the snapshot those it names."""
    snapshotter.prepare(world.scope, "a", "", {"x": "1"})
    assert snapshotter.update(world.scope, "a", {"y": "2"}, ["labels.y"]).labels == {"x": "1", "y": "2"}
    with pytest.raises(InvalidArgument):
        snapshotter.update(world.scope, "a", {}, ["parent"])
    snapshotter.commit(world.scope, "one", "a", {"z": "3"})
    assert snapshotter.stat(world.scope, "one").labels == {"z": "3"}


def test_a_snapshot_reference_that_exists_is_found(world: Any, snapshotter: Any) -> None:
    """Preparing for a chain id that is unpacked already says so, and leaves nothing behind."""
    layer(snapshotter, world.scope, "sha256:chain")
    with pytest.raises(AlreadyExists, match='target snapshot "sha256:chain": already exists'):
        snapshotter.prepare(world.scope, "extract-1", "", {SNAPSHOT_REF: "sha256:chain"})
    assert [info.key for info in snapshotter.list(world.scope)] == ["sha256:chain"]
    assert len(list(snapshotter.directory.iterdir())) == 1


def test_a_parent_can_be_given_at_the_commit(world: Any, snapshotter: Any) -> None:
    """What was prepared on nothing is put on its parent in the end, or that is refused; never anything in between."""
    layer(snapshotter, world.scope, "one", a="1")
    write(snapshotter.prepare(world.scope, "x"), b="2")
    if not snapshotter.rebases:
        with pytest.raises(InvalidArgument, match='cannot change parent of active snapshot "x"'):
            snapshotter.commit(world.scope, "two", "x", parent="one")
        return
    snapshotter.commit(world.scope, "two", "x", parent="one")
    assert read(snapshotter.view(world.scope, "v", "two")) == {"a": "1", "b": "2"}


def test_usage_is_of_the_layer_alone(world: Any, snapshotter: Any) -> None:
    """A large file counts where it was written."""
    write(snapshotter.prepare(world.scope, "a"), big="x" * 300_000)
    before = snapshotter.usage(world.scope, "a")
    assert before.size > 300_000
    snapshotter.commit(world.scope, "one", "a")
    assert snapshotter.usage(world.scope, "one") == before
    snapshotter.view(world.scope, "v", "one")
    assert snapshotter.usage(world.scope, "v").size < 300_000


def test_owner_and_mode_of_the_root_are_kept(world: Any, snapshotter: Any) -> None:
    """A child's root directory looks like its parent's."""
    with mounted(snapshotter.prepare(world.scope, "a")) as directory:
        os.chown(directory, 7, 8)
        os.chmod(directory, 0o711)
    snapshotter.commit(world.scope, "one", "a")
    with mounted(snapshotter.prepare(world.scope, "b", "one")) as directory:
        status = os.stat(directory)
    assert (status.st_uid, status.st_gid) == (7, 8)


def test_special_files_survive(world: Any, snapshotter: Any) -> None:
    """Links, devices, FIFOs, attributes and times are the same seen from a child."""
    with mounted(snapshotter.prepare(world.scope, "a")) as directory:
        Path(directory, "file").write_text("x")
        os.link(f"{directory}/file", f"{directory}/hard")
        os.symlink("/nowhere", f"{directory}/soft")
        os.mkfifo(f"{directory}/fifo", 0o640)
        os.mknod(f"{directory}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.setxattr(f"{directory}/file", "user.note", b"value")
        os.utime(f"{directory}/file", (1, 2))
    snapshotter.commit(world.scope, "one", "a")
    with mounted(snapshotter.prepare(world.scope, "b", "one")) as directory:
        file = os.stat(f"{directory}/file")
        assert (file.st_ino, file.st_nlink) == (os.stat(f"{directory}/hard").st_ino, 2)
        assert file.st_mtime == 2
        assert os.readlink(f"{directory}/soft") == "/nowhere"
        assert stat.S_ISFIFO(os.stat(f"{directory}/fifo").st_mode)
        assert os.stat(f"{directory}/null").st_rdev == os.makedev(1, 3)
        assert os.getxattr(f"{directory}/file", "user.note") == b"value"


def test_a_killed_creation_is_cleaned_up(world: Any, snapshotter: Any) -> None:
    """Directories without a row disappear at the next start, also one that has the number of the next snapshot."""
    snapshotter.prepare(world.scope, "a")
    (snapshotter.directory / "new-x" / "fs").mkdir(parents=True)
    number = int(next(snapshotter.directory.glob("[0-9]*")).name) + 1
    (snapshotter.directory / str(number) / "fs").mkdir(parents=True)
    (snapshotter.directory / str(number) / "fs" / "leftover").touch()
    assert read(snapshotter.prepare(world.scope, "b")) == {}
    snapshotter.recover()
    assert sorted(path.name for path in snapshotter.directory.iterdir()) == sorted(
        str(snapshotter.stat(world.scope, key).id) for key in ("a", "b")
    )


def test_leases_follow_the_key(world: Any, snapshotter: Any) -> None:
    """What is prepared under a lease is in it, and so is what it is committed as."""
    world.leases.create("test", "l", {})
    leased = Scope("test", "l")
    snapshotter.prepare(leased, "a")
    assert [(item.type, item.id) for item in world.leases.resources("test", "l")] == [
        (f"snapshots/{snapshotter.name}", "a")
    ]
    snapshotter.commit(leased, "one", "a")
    assert [item.id for item in world.leases.resources("test", "l")] == ["one"]


def test_overlay_mounts_are_containerds(world: Any) -> None:
    """Clients read the directories out of the options, so their form and order matter."""
    snapshotter = world.snapshotters["overlayfs"]
    base = f"{snapshotter.directory}"
    assert snapshotter.prepare(world.scope, "a") == [Mount("bind", f"{base}/1/fs", ("rw", "rbind"))]
    snapshotter.commit(world.scope, "one", "a")
    assert snapshotter.prepare(world.scope, "b", "one") == [
        Mount("overlay", "overlay", (f"workdir={base}/2/work", f"upperdir={base}/2/fs", f"lowerdir={base}/1/fs"))
    ]
    snapshotter.commit(world.scope, "two", "b")
    assert snapshotter.view(world.scope, "v1", "one") == [Mount("bind", f"{base}/1/fs", ("ro", "rbind"))]
    assert snapshotter.view(world.scope, "v2", "two") == [
        Mount("overlay", "overlay", (f"lowerdir={base}/2/fs:{base}/1/fs",))
    ]
