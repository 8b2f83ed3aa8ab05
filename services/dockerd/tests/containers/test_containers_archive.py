"""Archives of container files: the writer, the extraction and the changes, each on a directory of the test's own."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockerd import errors
from dockerd.containers.archive import _absolute
from dockerd.containers.changes import ADDED, DELETED, MODIFIED, Change, changes
from dockerd.containers.extraction import Extraction, extract
from dockerd.containers.filesystem import resolve
from dockerd.containers.tar_writer import write_archive
from gantry.contracts.containerd.types import mount_pb2

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory that is a container's root, and a descriptor of it."""
    directory = tmp_path / "root"
    directory.mkdir()
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    yield directory, fd
    os.close(fd)


def archive_of(*entries: tuple[tarfile.TarInfo, bytes]) -> Iterator[bytes]:
    """A tar archive in small pieces."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    return iter([data[at : at + 700] for at in range(0, len(data), 700)])


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """A header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, 1_000_000
    return info


def read(pieces: Iterator[bytes]) -> dict[str, tarfile.TarInfo]:
    """The members of a written archive."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_written_archive_holds_every_kind_of_file(root: tuple[Path, int]) -> None:
    """Files, directories, links of both kinds, fifos and long names come out as tarfile reads them; sockets do not."""
    directory, fd = root
    (directory / "file").write_text("content")
    (directory / "file").chmod(0o4755)
    os.link(directory / "file", directory / "zhard")
    (directory / "link").symlink_to("/elsewhere")
    os.mkfifo(directory / "fifo")
    (directory / ("n" * 200)).mkdir()
    (directory / ("n" * 200) / "größe").write_bytes(b"x" * 1000)
    members = read(write_archive(fd, "base"))
    assert members["base"].isdir()
    assert (members["base/file"].size, members["base/file"].mode) == (7, 0o4755)
    assert members["base/zhard"].linkname == "base/file"
    assert members["base/link"].linkname == "/elsewhere"
    assert members["base/fifo"].isfifo()
    assert members[f"base/{'n' * 200}/größe"].size == 1000


def test_written_names_follow_the_base(root: tuple[Path, int]) -> None:
    """The root is "/" with entries below it, "." with "./", and nothing where the root is left out."""
    directory, fd = root
    (directory / "a").touch()
    assert b"".join(write_archive(fd, "/"))[:2] == b"/\0"
    assert sorted(read(write_archive(fd, "."))) == [".", "./a"]
    assert sorted(read(write_archive(fd, ".", include_root=False))) == ["a"]


def test_extracted_files_are_what_the_archive_says(root: tuple[Path, int]) -> None:
    """Contents, modes and times; directories that the archive does not name are made; their times stay."""
    directory, fd = root
    extract(
        archive_of(
            (entry("dir", tarfile.DIRTYPE, mode=0o2750), b""),
            (entry("dir/file", mode=0o4711), b"content"),
            (entry("/implied/file"), b"x"),
            (entry("link", tarfile.SYMTYPE, "/dir"), b""),
            (entry("link/through"), b"y"),
            (entry("hard", tarfile.LNKTYPE, "dir/file"), b""),
        ),
        Extraction(fd, "/"),
    )
    assert (directory / "dir" / "file").read_text() == "content"
    assert stat.S_IMODE((directory / "dir" / "file").stat().st_mode) == 0o4711
    assert stat.S_IMODE((directory / "dir").stat().st_mode) == 0o2750
    assert (directory / "dir").stat().st_mtime == 1_000_000
    assert (directory / "implied" / "file").exists()
    assert (directory / "dir" / "through").read_text() == "y"
    assert (directory / "hard").samefile(directory / "dir" / "file")


@pytest.mark.parametrize("name", ["../out", "a/../../out", ".."])
def test_an_entry_that_points_outside_is_refused(root: tuple[Path, int], name: str) -> None:
    """The name itself may not leave the destination."""
    directory, fd = root
    with pytest.raises(errors.InvalidParameter, match="outside"):
        extract(archive_of((entry(name), b"x")), Extraction(fd, "/"))
    assert not (directory.parent / "out").exists()


def test_a_link_that_points_outside_stays_inside(root: tuple[Path, int], tmp_path: Path) -> None:
    """An entry below a link to a directory of the host lands inside the root."""
    directory, fd = root
    outside = tmp_path / "outside"
    outside.mkdir()
    extract(
        archive_of((entry("way", tarfile.SYMTYPE, str(outside)), b""), (entry("way/file"), b"x")), Extraction(fd, "/")
    )
    assert list(outside.iterdir()) == []
    assert (directory / str(outside).lstrip("/") / "file").read_text() == "x"


def test_kinds_are_kept_when_asked(root: tuple[Path, int]) -> None:
    """A directory is replaced by a file only without noOverwriteDirNonDir."""
    directory, fd = root
    (directory / "dir" / "sub").mkdir(parents=True)
    with pytest.raises(errors.SystemFailure, match='cannot overwrite directory "dir" with non-directory "/"'):
        extract(archive_of((entry("dir"), b"x")), Extraction(fd, "/", keep_kinds=True))
    extract(archive_of((entry("dir"), b"x")), Extraction(fd, "/"))
    assert (directory / "dir").read_text() == "x"


@needs_root
def test_one_owner_for_everything(root: tuple[Path, int]) -> None:
    """The owner that is given takes the place of the archive's."""
    directory, fd = root
    extract(archive_of((entry("file"), b"x")), Extraction(fd, "/", owner=(7, 8)))
    assert ((directory / "file").stat().st_uid, (directory / "file").stat().st_gid) == (7, 8)


def test_damaged_archives(root: tuple[Path, int]) -> None:
    """What is no archive is told as such; less than a block is an empty one, as with the real engine."""
    _directory, fd = root
    extract(iter([b"junk\n"]), Extraction(fd, "/"))
    extract(iter([]), Extraction(fd, "/"))
    with pytest.raises(errors.SystemFailure, match="invalid tar header"):
        extract(iter([b"junk" * 1000]), Extraction(fd, "/"))
    whole = b"".join(archive_of((entry("file"), b"x" * 4000)))
    with pytest.raises(errors.SystemFailure, match="unexpected EOF"):
        extract(iter([whole[:1500]]), Extraction(fd, "/"))


def test_resolving_a_path_inside(root: tuple[Path, int]) -> None:
    """Links are followed inside the root, missing parts stay, circles end."""
    directory, fd = root
    (directory / "a").mkdir()
    (directory / "link").symlink_to("../../a")
    (directory / "round").symlink_to("round")
    assert resolve(fd, "/link/missing/x") == "/a/missing/x"
    assert resolve(fd, "/a/../..") == "/"
    with pytest.raises(OSError, match="symbolic links"):
        resolve(fd, "/round")


@pytest.mark.parametrize(
    ("name", "absolute"),
    [("/", "/"), (".", "/."), ("/etc/", "/etc/"), ("/etc/.", "/etc/."), ("./a/../b", "/b"), ("//x", "/x")],
)
def test_paths_keep_what_their_end_means(name: str, absolute: str) -> None:
    """A slash or a dot at the end asks for the directory behind a link."""
    assert _absolute(name) == absolute


@needs_root
def test_changes_of_an_overlay(tmp_path: Path) -> None:
    """Whiteouts, replaced directories and what the runtime itself made."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for name in ("etc", "data"):
        (lower / name).mkdir(parents=True)
    for name in ("etc/passwd", "etc/group", "data/shipped"):
        (lower / name).touch()
    for name in ("etc", "data", "new", "proc", "dev"):
        (upper / name).mkdir(parents=True)
    for name in ("etc/passwd", "etc/hosts", "new/file", "dev/console"):
        (upper / name).touch()
    os.mknod(upper / "etc" / "group", stat.S_IFCHR, 0)
    try:
        os.setxattr(upper / "data", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("the file system has no trusted attributes")
    mount = mount_pb2.Mount(type="overlay", options=[f"lowerdir={lower}", f"upperdir={upper}", "workdir=/none"])
    assert changes([mount]) == [
        Change("/data", MODIFIED),
        Change("/data/shipped", DELETED),
        Change("/etc", MODIFIED),
        Change("/etc/group", DELETED),
        Change("/etc/passwd", MODIFIED),
        Change("/new", ADDED),
        Change("/new/file", ADDED),
    ]


def test_a_snapshot_without_layers_of_its_own_has_no_changes_to_show() -> None:
    """Another snapshotter than overlayfs is refused by name."""
    with pytest.raises(errors.NotSupported, match="overlayfs"):
        changes([mount_pb2.Mount(type="bind", source="/")])
