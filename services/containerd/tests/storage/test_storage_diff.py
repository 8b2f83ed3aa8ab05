"""Layers applied out of the content store, and layers made of the difference between snapshots."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from containerd.archive.compression import compressor, decompress
from containerd.archive.reader import TarReader
from containerd.descriptors import DOCKER_LAYER, OCI_LAYER, Descriptor
from containerd.diff.temporary import mounted
from containerd.errors import InvalidArgument, NotFound, Unimplemented
from containerd.labels import UNCOMPRESSED
from containerd.mounts import Mount

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]


def store(world: Any, data: bytes, media_type: str, compression: str) -> Descriptor:
    """Put a layer into the content store."""
    packer = compressor(compression)
    packed = packer.compress(data) + packer.flush()
    return Descriptor(media_type, world.put(packed), len(packed))


def names(world: Any, layer: Descriptor) -> list[str]:
    """Return the names of a stored layer's members."""
    reader, found = TarReader(), []
    for piece in decompress(world.content.chunks(world.scope, layer.digest), "unknown"):
        found += [event.name.decode() for event in reader.feed(piece) if not isinstance(event, memoryview)]
    return found


def tree(directory: str | Path) -> dict[str, Any]:
    """Describe everything below a directory."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        key = str(path.relative_to(directory))
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        found[key] = (oct(status.st_mode), status.st_uid, status.st_rdev, links, content)
    return found


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI_LAYER, ""),
        (f"{OCI_LAYER}+gzip", "gzip"),
        (f"{OCI_LAYER}+zstd", "zstd"),
        (DOCKER_LAYER, ""),
        (DOCKER_LAYER, "gzip"),
        (f"{DOCKER_LAYER}.gzip", "gzip"),
        (f"{DOCKER_LAYER}.zstd", "zstd"),
    ],
)
def test_every_layer_media_type(world: Any, helpers: Any, media_type: str, compression: str) -> None:
    """The answer is the digest of what is in the layer, however it is packed."""
    data = helpers.tar(("d", None), ("d/f", b"content")) + b"trailing"
    layer = store(world, data, media_type, compression)
    mounts = world.snapshotters["overlayfs"].prepare(world.scope, "a")
    seen: list[int] = []
    applied = world.applier.apply(world.scope, layer, mounts, progress=seen.append)
    assert (applied.digest, applied.size) == (helpers.digest_of(data), len(data))
    assert seen[-1] == layer.size
    with mounted(mounts) as directory:
        assert Path(directory, "d/f").read_bytes() == b"content"


def test_a_foreign_media_type_is_refused(world: Any) -> None:
    """The message names it."""
    with pytest.raises(Unimplemented, match="unrecognised mediatype text/plain"):
        world.applier.apply(world.scope, Descriptor("text/plain", "sha256:" + "0" * 64, 1), [])


def test_damaged_layers_name_themselves(world: Any, helpers: Any) -> None:
    """Cut off, not compressed at all, or an archive that is none."""
    mounts = world.snapshotters["overlayfs"].prepare(world.scope, "a")
    packer = compressor("gzip")
    whole = packer.compress(helpers.tar(("f", os.urandom(100_000)))) + packer.flush()
    for data in (whole[: len(whole) // 2], b"plain text" * 100, b""):
        layer = Descriptor(f"{OCI_LAYER}+gzip", world.put(data), len(data))
        if data:
            with pytest.raises(InvalidArgument):
                world.applier.apply(world.scope, layer, mounts)
    packer = compressor("gzip")
    packed = packer.compress(b"no archive" * 100) + packer.flush()
    layer = Descriptor(f"{OCI_LAYER}+gzip", world.put(packed), len(packed))
    with pytest.raises(InvalidArgument, match=layer.digest):
        world.applier.apply(world.scope, layer, mounts)
    with pytest.raises(NotFound):
        world.applier.apply(world.scope, Descriptor(OCI_LAYER, helpers.digest_of(b"none"), 1), mounts)


def change(directory: str) -> None:
    """Change a tree in every way there is."""
    root = Path(directory)
    (root / "new").write_text("new")
    (root / "etc/changed").write_text("after")
    (root / "etc/gone").unlink()
    subprocess.run(["rm", "-r", str(root / "removed")], check=True)
    subprocess.run(["rm", "-r", str(root / "replaced")], check=True)
    (root / "replaced").mkdir()
    (root / "replaced/only").write_text("1")
    os.chmod(root / "etc/mode", 0o600)
    os.chown(root / "etc/owner", 7, 8)
    (root / "was-file").unlink()
    (root / "was-file").mkdir()
    os.symlink("../x", root / "etc/link")
    os.link(root / "new", root / "hard")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/file").write_text("x")
    os.setxattr(root / "new", "user.note", b"kept")


@pytest.fixture
def base(helpers: Any) -> bytes:
    """A layer for :func:`change` to work on."""
    result: bytes = helpers.tar(
        ("etc", None),
        ("etc/changed", b"before"),
        ("etc/gone", b"1"),
        ("etc/mode", b"1"),
        ("etc/owner", b"1"),
        ("etc/same", b"1"),
        ("removed", None),
        ("removed/a/b", b"1"),
        ("replaced", None),
        ("replaced/old", b"1"),
        ("untouched", None),
        ("untouched/x", b"1"),
        ("was-file", b"1"),
    )
    return result


@pytest.mark.parametrize("kind", ["overlayfs", "native"])
@pytest.mark.parametrize("compression", ["", "+gzip", "+zstd"])
def test_a_difference_applied_again_gives_the_same_tree(world: Any, base: bytes, kind: str, compression: str) -> None:
    """Diff and apply are inverse, through the overlay's own layer as well as by comparing two trees."""
    snapshotter = world.snapshotters[kind]
    layer = store(world, base, OCI_LAYER, "")
    world.applier.apply(world.scope, layer, snapshotter.prepare(world.scope, "a"))
    snapshotter.commit(world.scope, "one", "a")
    active = snapshotter.prepare(world.scope, "b", "one")
    with mounted(active) as directory:
        change(directory)
        expected = tree(directory)
    media_type = OCI_LAYER + compression
    made = world.differ.diff(
        world.scope, snapshotter.view(world.scope, "v", "one"), active, media_type=media_type, labels={"l": "1"}
    )
    assert made.media_type == media_type
    listed = names(world, made)
    assert "etc/same" not in listed
    assert "untouched/" not in listed
    for name in (".wh.removed", "etc/.wh.gone", "new", "hard"):
        assert name in listed
    applied = world.applier.apply(world.scope, made, snapshotter.prepare(world.scope, "c", "one"))
    info = world.content.info(world.scope, made.digest)
    assert info.labels == ({"l": "1", UNCOMPRESSED: applied.digest} if compression else {"l": "1"})
    with mounted(snapshotter.mounts(world.scope, "c")) as directory:
        assert tree(directory) == expected
        assert os.getxattr(f"{directory}/new", "user.note") == b"kept"


def test_the_same_difference_is_the_same_layer(world: Any, base: bytes) -> None:
    """A layer depends on nothing but the trees; source_date bounds the times in it."""
    snapshotter = world.snapshotters["overlayfs"]
    world.applier.apply(world.scope, store(world, base, OCI_LAYER, ""), snapshotter.prepare(world.scope, "a"))
    snapshotter.commit(world.scope, "one", "a")
    view = snapshotter.view(world.scope, "v", "one")
    digests = set()
    for key in ("b", "c"):
        mounts = snapshotter.prepare(world.scope, key, "one")
        with mounted(mounts) as directory:
            Path(directory, "etc/x").write_text("1")
        digests.add(world.differ.diff(world.scope, view, mounts, source_date=10**9).digest)
        digests.add(world.differ.diff(world.scope, view, mounts, source_date=10**9).digest)
    assert len(digests) == 1


def test_a_difference_to_nothing_is_everything(world: Any, base: bytes) -> None:
    """Without a left side the layer is the whole tree, without whiteouts."""
    snapshotter = world.snapshotters["overlayfs"]
    world.applier.apply(world.scope, store(world, base, OCI_LAYER, ""), snapshotter.prepare(world.scope, "a"))
    snapshotter.commit(world.scope, "one", "a")
    made = world.differ.diff(world.scope, [], snapshotter.view(world.scope, "v", "one"))
    listed = names(world, made)
    assert "etc/same" in listed
    assert not [name for name in listed if ".wh." in name]


def test_two_layers_apart_are_compared_through_mounts(world: Any, helpers: Any, base: bytes) -> None:
    """Where no single layer is the difference, the trees are."""
    snapshotter = world.snapshotters["overlayfs"]
    for number, data in enumerate((base, helpers.tar(("two", b"2")), helpers.tar(("three", b"3"), (".wh.two", b"")))):
        parent = f"s{number - 1}" if number else ""
        mounts = snapshotter.prepare(world.scope, f"a{number}", parent)
        world.applier.apply(world.scope, store(world, data, OCI_LAYER, ""), mounts)
        snapshotter.commit(world.scope, f"s{number}", f"a{number}")
    left, right = snapshotter.view(world.scope, "l", "s0"), snapshotter.view(world.scope, "r", "s2")
    made = world.differ.diff(world.scope, left, right, media_type=OCI_LAYER)
    assert names(world, made) == ["three"]


def test_a_renamed_directory_of_an_overlay_is_whole(world: Any, base: bytes) -> None:
    """Where the kernel keeps only a pointer to the lower layer, the layer is read through a mount instead."""
    snapshotter = world.snapshotters["overlayfs"]
    world.applier.apply(world.scope, store(world, base, OCI_LAYER, ""), snapshotter.prepare(world.scope, "a"))
    snapshotter.commit(world.scope, "one", "a")
    (active,) = snapshotter.prepare(world.scope, "b", "one")
    with mounted([Mount(active.type, active.source, (*active.options, "redirect_dir=on"))]) as directory:
        os.rename(f"{directory}/untouched", f"{directory}/renamed")
    with mounted([active]) as directory:
        if "renamed" not in os.listdir(directory):
            pytest.skip("this kernel does not follow redirects")
        expected = tree(directory)
    made = world.differ.diff(world.scope, snapshotter.view(world.scope, "v", "one"), [active])
    world.applier.apply(world.scope, made, snapshotter.prepare(world.scope, "c", "one"))
    with mounted(snapshotter.mounts(world.scope, "c")) as directory:
        assert tree(directory) == expected


def test_a_container_cannot_make_the_walk_follow_links(world: Any, tmp_path: Path) -> None:
    """A link to the host's files is written as a link."""
    snapshotter = world.snapshotters["overlayfs"]
    mounts = snapshotter.prepare(world.scope, "a")
    with mounted(mounts) as directory:
        os.symlink("/etc/shadow", f"{directory}/shadow")
        os.symlink("/etc", f"{directory}/etc")
    made = world.differ.diff(world.scope, [], mounts, media_type=OCI_LAYER)
    assert names(world, made) == ["etc", "shadow"]


def test_an_unknown_media_type_is_refused(world: Any) -> None:
    """The message names it."""
    mounts = world.snapshotters["overlayfs"].prepare(world.scope, "a")
    with pytest.raises(Unimplemented, match="unsupported diff media type: text/plain"):
        world.differ.diff(world.scope, [], mounts, media_type="text/plain")
    assert world.content.statuses(world.scope) == []


def test_no_mount_is_left(world: Any, tmp_path: Path) -> None:
    """Temporary mounts go also when what is done with them fails, or the second of them cannot be mounted."""
    before = Path("/proc/self/mountinfo").read_text()
    with pytest.raises(ZeroDivisionError), mounted([Mount("bind", str(tmp_path), ("rbind", "ro"))]):
        raise ZeroDivisionError
    mounts = [Mount("bind", str(tmp_path), ("rbind",)), Mount("nonsense", "x")]
    with pytest.raises(OSError, match="mount"), mounted(mounts):
        pass
    assert Path("/proc/self/mountinfo").read_text() == before


def test_tarfile_reads_our_layers(world: Any, base: bytes) -> None:
    """Somebody else's reader agrees about names and content."""
    snapshotter = world.snapshotters["overlayfs"]
    mounts = snapshotter.prepare(world.scope, "a")
    world.applier.apply(world.scope, store(world, base, OCI_LAYER, ""), mounts)
    made = world.differ.diff(world.scope, [], mounts)
    with tarfile.open(world.content.files.blob(made.digest)) as archive:
        member = archive.extractfile("etc/changed")
        assert member is not None
        assert member.read() == b"before"
