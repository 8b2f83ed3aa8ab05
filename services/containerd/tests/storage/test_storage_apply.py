"""Applying layers: everything an entry can be, and everything by which one could try to get out."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containerd.archive.apply import apply_layer
from containerd.archive.members import InvalidArchive

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The directory that is applied to, with one beside it that nothing may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("untouched")
    made = tmp_path / "target"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def nothing_escapes(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does: nothing beside the target has changed."""
    yield
    assert sorted(path.name for path in tmp_path.iterdir()) in (["outside", "target"], ["lower", "outside", "target"])
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]
    assert (tmp_path / "outside" / "file").read_text() == "untouched"
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o755


def run(data: bytes, target: Path, *, overlay: bool = False, lower: tuple[str, ...] = (), step: int = 1 << 16) -> None:
    """Apply an archive."""
    apply_layer((data[i : i + step] for i in range(0, len(data), step)), str(target), overlay=overlay, lower=lower)


def entry(kind: bytes, **fields: Any) -> tarfile.TarInfo:
    """Return a TarInfo of a kind."""
    info = tarfile.TarInfo("x")
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_every_kind_of_entry(target: Path, helpers: Any) -> None:
    """Files, directories, links, devices and FIFOs get owner, mode, attributes and times."""
    file = tarfile.TarInfo("f")
    file.size, file.mode, file.uid, file.gid, file.mtime = 5, 0o4750, 12, 34, 99
    file.pax_headers = {"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.overlay.redirect": "/outside"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry(tarfile.DIRTYPE, name="d", mode=0o1777, mtime=7))
        file.name = "d/f"
        archive.addfile(file, io.BytesIO(b"hello"))
        archive.addfile(entry(tarfile.LNKTYPE, name="hard", linkname="d/f"))
        archive.addfile(entry(tarfile.SYMTYPE, name="soft", linkname="../../outside/file", uid=5, mtime=8))
        archive.addfile(entry(tarfile.CHRTYPE, name="null", mode=0o666, devmajor=1, devminor=3))
        archive.addfile(entry(tarfile.FIFOTYPE, name="fifo", mode=0o600))
    run(buffer.getvalue(), target)
    status = (target / "d/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o4750, 12, 34, 99)
    assert os.getxattr(target / "d/f", "user.k") == b"v"
    assert "trusted.overlay.redirect" not in os.listxattr(target / "d/f")
    assert (target / "hard").stat().st_ino == status.st_ino
    assert os.readlink(target / "soft") == "../../outside/file"
    assert ((target / "soft").lstat().st_uid, (target / "soft").lstat().st_mtime) == (5, 8)
    assert (target / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    assert (stat.S_IMODE((target / "d").stat().st_mode), (target / "d").stat().st_mtime) == (0o1777, 7)


def test_modes_do_not_depend_on_the_umask(target: Path, helpers: Any) -> None:
    """The archive's mode is what the file gets."""
    before = os.umask(0o077)
    try:
        info = tarfile.TarInfo("f")
        info.mode = 0o666
        run(helpers.tar(("d", None), ("f", info)), target)
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "f").stat().st_mode) == 0o666
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o755


def test_sparse_files_stay_sparse(target: Path, tmp_path: Path) -> None:
    """Holes take no room, and bytes are where they were."""
    import subprocess

    source = target / "source"
    with source.open("wb") as file:
        file.truncate(50 << 20)
        file.seek(30 << 20)
        file.write(b"middle")
    data = subprocess.run(["tar", "-C", str(target), "-cSf", "-", "source"], capture_output=True, check=True).stdout
    source.unlink()
    run(data, target, step=999)
    status = source.stat()
    assert status.st_size == 50 << 20
    assert status.st_blocks * 512 < 1 << 20
    with source.open("rb") as file:
        file.seek(30 << 20)
        assert file.read(6) == b"middle"


ESCAPES = {
    "dot dot": [("../outside/new", b"x")],
    "dot dot deeper": [("a/../../../outside/new", b"x")],
    "absolute": [("/outside/new", b"x")],
    "symlink then file": [("l", "../outside"), ("l/new", b"x")],
    "absolute symlink then file": [("l", "{outside}"), ("l/new", b"x")],
    "symlink then existing file": [("l", "../outside"), ("l/file", b"x")],
    "symlink chain": [("a", "b"), ("b", ".."), ("a/outside/new", b"x")],
    "symlink as the file itself": [("l", "../outside/file"), ("l", b"x")],
    "directory over symlink": [("l", "../outside"), ("l", None), ("l/new", b"x")],
    "whiteout through symlink": [("l", "../outside"), ("l/.wh.file", b"")],
    "opaque through symlink": [("l", "../outside"), ("l/.wh..wh..opq", b"")],
    "hard link out": [("h", "hard:../outside/file"), ("h", b"x")],
    "hard link out by absolute path": [("h", "hard:{outside}/file")],
    "hard link through symlink": [("l", "../outside"), ("h", "hard:l/file")],
    "device through symlink": [("l", "../outside"), ("l/null", "device")],
    "magic link": [("l", "/proc/self/root"), ("l/new", b"x")],
    "swap a directory for a link": [("d", None), ("d/a", b"1"), ("d", "../outside"), ("d/new", b"x")],
}


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_entry_leads_out(name: str, overlay: bool, target: Path, helpers: Any) -> None:
    """Whether it is refused or lands inside: the fixture proves that nothing outside is touched."""
    entries: list[tuple[str, Any]] = []
    for path, content in ESCAPES[name]:
        if isinstance(content, str):
            text = content.replace("{outside}", str(target.parent / "outside"))
            if text == "device":
                content = entry(tarfile.CHRTYPE, devmajor=1, devminor=3)
            elif text.startswith("hard:"):
                content = helpers.link(text.removeprefix("hard:"), tarfile.LNKTYPE)
            else:
                content = helpers.link(text)
        entries.append((path, content))
    with contextlib.suppress(OSError, InvalidArchive):
        run(helpers.tar(*entries), target, overlay=overlay)


def test_links_are_followed_inside(target: Path, helpers: Any) -> None:
    """A link to a directory of the image is a way to it, also an absolute one."""
    run(helpers.tar(("usr/lib", None), ("lib", helpers.link("/usr/lib")), ("lib/x", b"1")), target)
    assert (target / "usr/lib/x").read_bytes() == b"1"
    assert os.readlink(target / "lib") == "/usr/lib"


def test_later_entries_replace_earlier_ones(target: Path, helpers: Any) -> None:
    """A file becomes a directory and a directory a file, with all that was in it gone."""
    run(helpers.tar(("a", b"1"), ("b/c/d", b"2"), ("s", helpers.link("a"))), target)
    run(helpers.tar(("a", None), ("a/x", b"3"), ("b", b"4"), ("s", b"5")), target)
    assert (target / "a/x").read_bytes() == b"3"
    assert (target / "b").read_bytes() == b"4"
    assert (target / "s").read_bytes() == b"5"
    assert not (target / "s").is_symlink()


def test_replacing_deep_inside(target: Path, helpers: Any) -> None:
    """Also below the root, where the directory that is worked in has been looked up before."""
    run(helpers.tar(("a/b/c/x", b"1"), ("a/b/l", helpers.link("c")), ("a/b/l/y", b"2")), target)
    run(helpers.tar(("a/b/c", helpers.link("d")), ("a/b/d/z", b"3"), ("a/b/l", b"4"), ("a/b/d/z", b"5")), target)
    assert os.readlink(target / "a/b/c") == "d"
    assert (target / "a/b/l").read_bytes() == b"4"
    assert (target / "a/b/d/z").read_bytes() == b"5"


def test_an_existing_directory_is_kept_and_gets_the_new_mode(target: Path, helpers: Any) -> None:
    """An entry for a directory does not empty it."""
    run(helpers.tar(("d", None), ("d/old", b"1")), target)
    run(helpers.tar(("d", entry(tarfile.DIRTYPE, mode=0o700))), target)
    assert (target / "d/old").exists()
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o700


def test_whiteouts_delete_where_layers_are_copies(target: Path, helpers: Any) -> None:
    """A whiteout removes what is below, an opaque directory all but the layer's own."""
    run(helpers.tar(("a", b"1"), ("d/x", b"1"), ("d/sub/y", b"1"), ("e/z", b"1")), target)
    run(
        helpers.tar((".wh.a", b""), ("d/new", b"2"), ("d/.wh..wh..opq", b""), (".wh.e", b""), (".wh.none", b"")), target
    )
    assert sorted(os.listdir(target)) == ["d"]
    assert sorted(os.listdir(target / "d")) == ["new"]


def test_whiteouts_become_the_kernels_in_an_overlay_layer(target: Path, helpers: Any) -> None:
    """A deletion is a character device 0:0, an opaque directory has an attribute; AUFS's own files are nothing."""
    run(
        helpers.tar(("d", None), ("d/.wh.gone", b""), ("o", None), ("o/.wh..wh..opq", b""), (".wh..wh.plnk", b"")),
        target,
        overlay=True,
    )
    status = (target / "d/gone").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(target / "o", "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(target)) == ["d", "o"]


def test_deleted_and_made_anew_in_one_layer_is_opaque(target: Path, helpers: Any) -> None:
    """What the lower layer has in the directory does not shine through, in either order of the entries."""
    run(helpers.tar((".wh.a", b""), ("a", None), ("b", None), (".wh.b", b"")), target, overlay=True)
    for name in ("a", "b"):
        assert (target / name).is_dir()
        assert os.getxattr(target / name, "trusted.overlay.opaque") == b"y"


def test_missing_parents_look_like_below(target: Path, helpers: Any) -> None:
    """A layer that leaves a directory's entry out does not change its owner and mode."""
    lower = target.parent / "lower"
    (lower / "d" / "e").mkdir(parents=True)
    os.chmod(lower / "d", 0o1770)
    os.chown(lower / "d" / "e", 5, 6)
    run(helpers.tar(("d/e/f", b"1")), target, overlay=True, lower=(str(lower),))
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o1770
    assert ((target / "d/e").stat().st_uid, (target / "d/e").stat().st_gid) == (5, 6)


@pytest.mark.parametrize("name", [".wh.", ".wh..", "d/.wh..."])
def test_a_whiteout_of_nothing_is_refused(name: str, target: Path, helpers: Any) -> None:
    """It would name the directory itself or its parent."""
    with pytest.raises(InvalidArchive, match="invalid whiteout"):
        run(helpers.tar((name, b"")), target)


def test_errors_name_the_entry(target: Path, helpers: Any) -> None:
    """Whoever made the image finds out what is wrong with it."""
    with pytest.raises(OSError, match="layer entry a/b"):
        run(helpers.tar(("a", b"file"), ("a/b", b"1")), target)
    with pytest.raises(OSError, match="layer entry hard"):
        run(helpers.tar(("hard", helpers.link("missing", tarfile.LNKTYPE))), target)


def test_no_descriptor_is_left_open(target: Path, helpers: Any) -> None:
    """Neither after a layer of many directories nor after a broken one."""
    before = set(os.listdir("/proc/self/fd"))
    run(helpers.tar(*((f"d{number}/f", b"x") for number in range(500))), target)
    with pytest.raises(InvalidArchive):
        run(helpers.tar(("a", b"x" * 5000))[:2000], target)
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_root_directory_itself_has_an_entry(target: Path, helpers: Any) -> None:
    """``./`` sets owner and mode of the root."""
    run(helpers.tar(("./", entry(tarfile.DIRTYPE, mode=0o711, uid=3))), target)
    assert (stat.S_IMODE(target.stat().st_mode), target.stat().st_uid) == (0o711, 3)
