from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gantry.linux import path


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A descriptor of an empty directory, the untrusted root, beside a directory that it must not reach."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_absolute_links_stay_in_the_root(tmp_path: Path, root: int) -> None:
    """A link to /outside makes root/outside, not the directory beside the root."""
    (tmp_path / "root/link").symlink_to("/outside")
    os.close(path.mkdir_all_in_root(root, "/link/sub"))
    assert (tmp_path / "root/outside/sub").is_dir()
    assert list((tmp_path / "outside").iterdir()) == []


def test_relative_links_upwards_stay_in_the_root(tmp_path: Path, root: int) -> None:
    """`../../outside` ends at the root's own outside."""
    (tmp_path / "root/a").mkdir()
    (tmp_path / "root/a/link").symlink_to("../../../outside")
    os.close(path.mkdir_all_in_root(root, "a/link/b/c"))
    assert (tmp_path / "root/outside/b/c").is_dir()
    assert list((tmp_path / "outside").iterdir()) == []


def test_circular_links_are_refused(tmp_path: Path, root: int) -> None:
    """A circle of links ends with ELOOP."""
    (tmp_path / "root/a").symlink_to("b")
    (tmp_path / "root/b").symlink_to("a")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        path.mkdir_all_in_root(root, "a/c")
    assert caught.value.errno == errno.ELOOP


def test_a_file_in_the_way_is_not_a_directory(tmp_path: Path, root: int) -> None:
    """mkdir through a regular file is ENOTDIR."""
    (tmp_path / "root/file").write_text("")
    with pytest.raises(NotADirectoryError):
        path.mkdir_all_in_root(root, "file/sub")


def test_a_file_is_created_behind_a_dangling_link_inside_the_root(tmp_path: Path, root: int) -> None:
    """/etc/resolv.conf as a dangling absolute link is made good inside the root."""
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/resolv.conf").symlink_to("/run/systemd/resolve/stub")
    os.close(path.create_file_in_root(root, "/etc/resolv.conf"))
    assert (tmp_path / "root/run/systemd/resolve/stub").is_file()


def test_magic_links_are_refused(root: int) -> None:
    """A link of procfs that jumps elsewhere is not followed."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            path.open_in_root(proc, "self/exe")
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(proc)


def test_procfs_is_told_from_an_impostor(tmp_path: Path) -> None:
    """A file outside procfs is refused, one inside is opened."""
    (tmp_path / "fake").write_text("")
    with pytest.raises(OSError, match="not on procfs"):
        path.open_procfs(str(tmp_path / "fake"), os.O_RDONLY)
    os.close(path.open_procfs("/proc/self/status", os.O_RDONLY))
