"""A client's tar archive becomes files of a container: every step by descriptor, inside the root of its view.

What an entry says of a file is done to the file that was made for it and to no other, however the container moves
things meanwhile: names are used below a directory's descriptor, modes and times are set through the file's own.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dockerd import errors
from gantry.linux import path

__all__ = ["Extraction", "extract"]

_PIECE = 1 << 18
_XATTR = "SCHILY.xattr."
_SPECIAL = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}


@dataclass(frozen=True)
class Extraction:
    """How to extract. ``root`` is the descriptor of the view's root, ``destination`` a directory inside it, without
    links. ``owner`` is the user and group of everything instead of the archive's. ``keep_kinds``: a directory is never
    replaced by something else, nor the other way round."""

    root: int
    destination: str
    owner: tuple[int, int] | None = None
    keep_kinds: bool = False


def extract(pieces: Iterator[bytes], settings: Extraction) -> None:
    """Extract an uncompressed archive.

    Raises InvalidParameter for an entry that points outside, SystemFailure for a damaged archive and for what the real
    engine calls so; OSError.
    """
    stream = _Stream(pieces)
    if not stream.peek():
        return
    directories: list[tuple[str, int]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE, errors="surrogateescape") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # memory does not grow with the archive
                _extract_entry(archive, entry, settings, directories)
    except tarfile.ReadError as error:
        text = str(error)
        if "empty" in text:
            return
        short = "unexpected end" in text or "truncated" in text
        raise errors.SystemFailure("unexpected EOF" if short else "archive/tar: invalid tar header") from error
    # At last: what is made in a directory changes its time.
    for name, moment in directories:
        with _parent(settings, name, make=False) as (parent, base), _opened(parent, base) as fd:
            os.utime(path.descriptor_path(fd), (moment, moment))


class _Stream(io.RawIOBase):
    """The archive's pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def peek(self) -> bool:
        """Whether there is at least one block."""
        head = b""
        while len(head) < tarfile.BLOCKSIZE:
            piece = next(self._pieces, b"")
            if not piece:
                return False
            head += piece
        self._rest = memoryview(head)
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
            if not self._rest:
                return b""
        data = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(data) :]
        return bytes(data)


def _extract_entry(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, settings: Extraction, directories: list[tuple[str, int]]
) -> None:
    name = posixpath.normpath(entry.name.lstrip("/") or ".")
    if name == ".":
        return
    if name == ".." or name.startswith("../"):
        raise errors.InvalidParameter(f'invalid entry name "{entry.name}": it is outside of the archive')
    with _parent(settings, name, make=True) as (parent, base):
        existing = _status(parent, base)
        is_directory = existing is not None and stat.S_ISDIR(existing.st_mode)
        if existing is not None:
            _check_kinds(settings, name, is_directory, entry)
            if not (is_directory and entry.isdir()):
                _remove(parent, base, is_directory)
        _make(archive, entry, settings, parent, base, exists=is_directory and entry.isdir())
        with _opened(parent, base) as fd:
            _describe(entry, settings, parent, base, fd)
    if entry.isdir():
        directories.append((name, int(entry.mtime)))


def _check_kinds(settings: Extraction, name: str, is_directory: bool, entry: tarfile.TarInfo) -> None:
    if not settings.keep_kinds or is_directory == entry.isdir():
        return
    kinds = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
    raise errors.SystemFailure(f'cannot overwrite {kinds[0]} "{name}" with {kinds[1]} "{settings.destination}"')


def _make(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, settings: Extraction, parent: int, base: str, *, exists: bool
) -> None:
    permissions = entry.mode & 0o777
    if entry.isdir():
        if not exists:
            os.mkdir(base, permissions, dir_fd=parent)
    elif entry.issym():
        os.symlink(entry.linkname, base, dir_fd=parent)
    elif entry.islnk():
        target = posixpath.normpath(entry.linkname.lstrip("/") or ".")
        if target == "." or target == ".." or target.startswith("../"):
            raise errors.InvalidParameter(f'invalid hardlink target "{entry.linkname}"')
        with _parent(settings, target, make=False) as (source, name):
            os.link(name, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    elif entry.type in _SPECIAL:
        device = os.makedev(entry.devmajor, entry.devminor)
        os.mknod(base, _SPECIAL[entry.type] | permissions, device, dir_fd=parent)
    elif entry.isreg():
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(base, flags, permissions, dir_fd=parent), "wb") as file:
            content = archive.extractfile(entry)
            assert content is not None
            shutil.copyfileobj(content, file, _PIECE)
    else:
        raise errors.SystemFailure(f"unhandled tar header type {ord(entry.type)}")


def _describe(entry: tarfile.TarInfo, settings: Extraction, parent: int, base: str, fd: int) -> None:
    """Owner, attributes, mode and times of what was made; ``fd`` is a descriptor of it (O_PATH)."""
    if entry.islnk():
        return  # another name of a file that was described before
    here = path.descriptor_path(fd)
    uid, gid = settings.owner or (entry.uid, entry.gid)
    os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)
    moment = (int(entry.mtime), int(entry.mtime))
    if entry.issym():
        os.utime(base, moment, dir_fd=parent, follow_symlinks=False)
        return
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        raise errors.SystemFailure(f"{entry.name} was replaced while it was extracted")
    for key, value in entry.pax_headers.items():
        if key.startswith(_XATTR):
            os.setxattr(here, key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
    # After the owner: changing that takes setuid and setgid away.
    os.chmod(here, entry.mode & 0o7777)
    os.utime(here, moment)


@contextmanager
def _parent(settings: Extraction, name: str, *, make: bool) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that ``name`` is in, links inside the view followed, and its last part."""
    directory, base = posixpath.split(posixpath.join(settings.destination, name))
    try:
        parent = path.open_in_root(settings.root, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not make:
            raise
        parent = path.mkdir_all_in_root(settings.root, directory)
    try:
        yield parent, base
    finally:
        os.close(parent)


@contextmanager
def _opened(parent: int, base: str) -> Iterator[int]:
    fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _status(parent: int, base: str) -> os.stat_result | None:
    try:
        return os.stat(base, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _remove(parent: int, base: str, is_directory: bool) -> None:
    if is_directory:
        shutil.rmtree(base, dir_fd=parent)
    else:
        os.unlink(base, dir_fd=parent)
