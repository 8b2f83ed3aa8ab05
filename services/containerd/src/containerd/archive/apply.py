"""Applying a layer to a directory: what the entries of an image layer do to the file system below them.

Source: image-spec, "Image Layer Filesystem Changeset". Nothing that a layer says can reach outside of the directory:
each entry is made relative to a descriptor of its parent, which is found with ``RESOLVE_IN_ROOT``, and its own last
component is never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from containerd.archive import members
from containerd.archive.members import InvalidArchive, Member
from containerd.archive.reader import TarReader
from gantry.linux.path import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, mkdir_all_in_root, openat2

__all__ = ["LayerApplier", "apply_layer"]

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS_METADATA = b".wh..wh."
_OPEN_DIRECTORIES = 128
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE = 0o755
_MAX_TIME = (1 << 63) - 1
# What overlayfs itself keeps in attributes is not a layer's to say: it would redirect look-ups of the kernel.
_REFUSED_XATTRS = ("trusted.overlay.", "user.overlay.")


def apply_layer(chunks: Iterable[bytes], target: str, *, overlay: bool, lower: Sequence[str] = ()) -> int:
    """Apply the uncompressed layer in ``chunks`` to the directory ``target`` and return the bytes it took.

    With ``overlay`` the directory is an overlay's upper layer: a deletion becomes a whiteout of the kernel's kind;
    without, the deleted entry goes. ``lower`` are the layers below, nearest first: a parent directory that the layer
    leaves out is made like it is there.

    Raises :class:`InvalidArchive` for a damaged archive, OSError naming the entry when one cannot be made.
    """
    reader = TarReader()
    with LayerApplier(target, overlay=overlay, lower=lower) as applier:
        for chunk in chunks:
            for event in reader.feed(chunk):
                if type(event) is Member:
                    applier.begin(event)
                else:
                    applier.data(event)  # type: ignore[arg-type]
        reader.close()
        applier.finish()
    return applier.size


class LayerApplier:
    """Takes the events of a :class:`TarReader`: :meth:`begin` for a member, :meth:`data` for its content."""

    def __init__(self, target: str, *, overlay: bool, lower: Sequence[str] = ()) -> None:
        self.size = 0
        self._overlay = overlay
        self._lower = lower
        self._root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories: OrderedDict[bytes, int] = OrderedDict({b"": self._root})
        self._retired: list[int] = []
        self._file = -1
        self._member: Member | None = None
        self._extents: list[tuple[int, int]] | None = None
        self._times: dict[bytes, int] = {}  # of directories, set when all their entries are made
        self._unpacked: set[bytes] = set()  # this layer's own, which an opaque directory keeps

    def __enter__(self) -> LayerApplier:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._close_retired()
        for descriptor in self._directories.values():
            os.close(descriptor)
        self._directories.clear()

    def begin(self, member: Member) -> None:
        """Make the entry of ``member``, replacing what is there."""
        if self._file >= 0:
            self._end_file()
        if self._retired:
            self._close_retired()
        path = _clean(member.name)
        parent, _, base = path.rpartition(b"/")
        if base.startswith(WHITEOUT):
            self._whiteout(parent, base)
            return
        if not path:
            if member.type == members.DIRECTORY:
                self._set_root(member)
            return
        if not self._overlay:
            self._remember(path)
        try:
            self._make(member, path, parent, base)
        except OSError as error:
            raise _named(error, path) from error

    def data(self, piece: memoryview) -> None:
        """Take the next part of the current member's content."""
        if self._file < 0:
            return
        self.size += len(piece)
        if self._extents is None:
            while piece:
                piece = piece[os.write(self._file, piece) :]
            return
        while piece:
            offset, length = self._extents[0]
            written = os.pwrite(self._file, piece[:length], offset)
            piece = piece[written:]
            self._extents[0] = (offset + written, length - written)
            if written == length:
                del self._extents[0]

    def finish(self) -> None:
        """Complete the last file, and give the directories their times."""
        if self._file >= 0:
            self._end_file()
        for path, mtime in self._times.items():
            parent, _, base = path.rpartition(b"/")
            try:
                descriptor = self._directory(parent)
                os.utime(base or b".", ns=(mtime, mtime), dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted again by the layer itself

    def _make(self, member: Member, path: bytes, parent: bytes, base: bytes) -> None:
        directory = self._directory(parent)
        kind = member.type
        if kind == members.REGULAR:
            self._file = self._create(directory, base, member.mode)
            self._member = member
            self._extents = list(member.extents) if member.extents is not None else None
            if not member.stored:
                self._end_file()
            return
        if kind == members.DIRECTORY:
            self._make_directory(directory, base, path)
            self._times[path] = _time(member.mtime)
        elif kind == members.SYMBOLIC_LINK:
            self._replacing(directory, base, lambda: os.symlink(member.link, base, dir_fd=directory))
        elif kind == members.HARD_LINK:
            self._link(member, directory, base, path)
            return
        elif kind in (members.CHARACTER_DEVICE, members.BLOCK_DEVICE, members.FIFO):
            self._make_node(member, directory, base)
        else:
            raise InvalidArchive(f"unhandled tar header type {kind!r} of {_shown(path)}")
        self._set_attributes(member, directory, base)

    def _create(self, directory: int, base: bytes, mode: int) -> int:
        try:
            return os.open(base, _CREATE, mode & 0o777, dir_fd=directory)
        except FileExistsError:
            self._remove(directory, base)
            return os.open(base, _CREATE, mode & 0o777, dir_fd=directory)

    def _end_file(self) -> None:
        member, descriptor = self._member, self._file
        assert member is not None
        self._file = -1
        try:
            if member.extents is not None:
                os.ftruncate(descriptor, member.size)
            os.fchown(descriptor, member.uid, member.gid)
            if member.xattrs:
                _set_xattrs(descriptor, member)
            os.fchmod(descriptor, member.mode)  # after chown, which clears set-user-id
            mtime = _time(member.mtime)
            os.utime(descriptor, ns=(mtime, mtime))
        except OSError as error:
            raise _named(error, member.name) from error
        finally:
            os.close(descriptor)

    def _make_directory(self, directory: int, base: bytes, path: bytes) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=directory)
            return
        except FileExistsError:
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return
        hides = self._overlay and _is_whiteout(status)
        self._remove(directory, base)
        os.mkdir(base, 0o700, dir_fd=directory)
        if hides:  # deleted and made anew: what is below must not shine through
            self._make_opaque(path)

    def _make_node(self, member: Member, directory: int, base: bytes) -> None:
        kinds = {
            members.CHARACTER_DEVICE: stat.S_IFCHR,
            members.BLOCK_DEVICE: stat.S_IFBLK,
            members.FIFO: stat.S_IFIFO,
        }
        mode = kinds[member.type] | member.mode
        device = os.makedev(*member.device)
        self._replacing(directory, base, lambda: os.mknod(base, mode, device, dir_fd=directory))

    def _link(self, member: Member, directory: int, base: bytes, path: bytes) -> None:
        target = _clean(member.link)
        target_parent, _, target_base = target.rpartition(b"/")
        if not target_base:
            raise InvalidArchive(f"hard link {_shown(path)} to a directory")
        if target == path:
            return
        source = self._directory(target_parent, make=False)
        self._replacing(
            directory,
            base,
            lambda: os.link(target_base, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False),
        )

    def _replacing(self, directory: int, base: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._remove(directory, base)
            make()

    def _set_attributes(self, member: Member, directory: int, base: bytes) -> None:
        os.chown(base, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        if member.xattrs:
            _set_xattrs(b"/proc/self/fd/%d/%s" % (directory, base), member)
        if member.type != members.SYMBOLIC_LINK:
            os.chmod(base, member.mode, dir_fd=directory)
        mtime = _time(member.mtime)
        os.utime(base, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)

    def _set_root(self, member: Member) -> None:
        self._times[b""] = _time(member.mtime)
        path = b"/proc/self/fd/%d" % self._root
        os.chown(path, member.uid, member.gid)
        if member.xattrs:
            _set_xattrs(path + b"/.", member)
        os.chmod(path, member.mode)

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == OPAQUE:
            self._opaque(parent)
            return
        if base.startswith(_AUFS_METADATA):
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidArchive(f"invalid whiteout {_shown(base)}")
        path = parent + b"/" + hidden if parent else hidden
        try:
            directory = self._directory(parent)
            if not self._overlay:
                self._remove(directory, hidden, missing_ok=True)
                return
            try:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=directory)
            except FileExistsError:
                # The entry is this layer's own, which a whiteout does not touch; a directory hides what is below it.
                if stat.S_ISDIR(os.stat(hidden, dir_fd=directory, follow_symlinks=False).st_mode):
                    self._make_opaque(path)
        except OSError as error:
            raise _named(error, path) from error

    def _opaque(self, path: bytes) -> None:
        try:
            if self._overlay:
                self._make_opaque(path)
                return
            directory = self._directory(path)
            for name in _names(directory):
                child = path + b"/" + name if path else name
                if child not in self._unpacked:
                    self._remove(directory, name)
        except OSError as error:
            raise _named(error, path) from error

    def _make_opaque(self, path: bytes) -> None:
        descriptor = self._directory(path)
        os.setxattr(b"/proc/self/fd/%d/." % descriptor, b"trusted.overlay.opaque", b"y")

    def _remember(self, path: bytes) -> None:
        while path and path not in self._unpacked:
            self._unpacked.add(path)
            path = path.rpartition(b"/")[0]

    def _remove(self, directory: int, base: bytes, *, missing_ok: bool = False) -> None:
        try:
            os.unlink(base, dir_fd=directory)
        except IsADirectoryError:
            self._forget_directories()
            _remove_tree(directory, base)
        except FileNotFoundError:
            if not missing_ok:
                raise
        else:
            self._forget_directories()  # it may have been a link on the way to one of them

    def _forget_directories(self) -> None:
        """Look all directories up anew. Who is working in one still may: they are closed with the next entry."""
        root = self._directories.pop(b"")
        self._retired += self._directories.values()
        self._directories.clear()
        self._directories[b""] = root

    def _close_retired(self) -> None:
        for descriptor in self._retired:
            os.close(descriptor)
        self._retired.clear()

    def _directory(self, path: bytes, *, make: bool = True) -> int:
        """Return a descriptor of a directory inside the root; what is missing on the way is made."""
        known = self._directories.get(path)
        if known is not None:
            self._directories.move_to_end(path)
            return known
        try:
            descriptor = _open_inside(self._root, path)
        except FileNotFoundError:
            if not make:
                raise
            parent, _, base = path.rpartition(b"/")
            descriptor = self._make_parent(self._directory(parent), base, path)
        self._directories[path] = descriptor
        if len(self._directories) > _OPEN_DIRECTORIES:
            self._close_oldest()
        return descriptor

    def _close_oldest(self) -> None:
        for path in self._directories:
            if path:
                os.close(self._directories.pop(path))
                return

    def _make_parent(self, directory: int, base: bytes, path: bytes) -> int:
        try:
            os.mkdir(base, _PARENT_MODE, dir_fd=directory)
        except FileExistsError:  # a link whose target is missing: that is what gets made
            return mkdir_all_in_root(self._root, os.fsdecode(path))
        descriptor = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        for layer in self._lower:
            try:
                below = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                found = _open_inside(below, path)
            except OSError:
                continue
            finally:
                os.close(below)
            try:
                _copy_attributes(found, descriptor)
            finally:
                os.close(found)
            break
        else:
            os.chmod(b"/proc/self/fd/%d" % descriptor, _PARENT_MODE)
        return descriptor


def _names(directory: int) -> list[bytes]:
    descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def _open_inside(root: int, path: bytes) -> int:
    return openat2(
        os.fsdecode(path) or ".",
        os.O_PATH | os.O_DIRECTORY,
        resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        dir_fd=root,
    )


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    path = b"/proc/self/fd/%d" % target
    os.chown(path, status.st_uid, status.st_gid)
    os.chmod(path, stat.S_IMODE(status.st_mode))


def _remove_tree(directory: int, base: bytes) -> None:
    """Delete a directory with all that is in it, by descriptor: no link is ever followed."""
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        for name in os.listdir(descriptor):
            try:
                os.unlink(name, dir_fd=descriptor)
            except IsADirectoryError:
                _remove_tree(descriptor, os.fsencode(name))
    finally:
        os.close(descriptor)
    os.rmdir(base, dir_fd=directory)


def _set_xattrs(target: int | bytes, member: Member) -> None:
    for name, value in member.xattrs.items():
        if name.startswith(_REFUSED_XATTRS):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise


def _clean(name: bytes) -> bytes:
    """Return the path without ``.``, ``..`` and empty components; one that leads above the root ends at the root."""
    if b"\0" in name:
        raise InvalidArchive("NUL in a file name")
    if b"/." not in name and b"//" not in name and name[:1] != b".":
        return name.strip(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _time(mtime: int) -> int:
    return mtime if 0 <= mtime <= _MAX_TIME else 0


def _shown(path: bytes) -> str:
    return repr(os.fsdecode(path[:200]))


def _named(error: OSError, path: bytes) -> OSError:
    """Return the error with the entry's name, which calls relative to a descriptor do not know."""
    if error.filename is not None and isinstance(error.filename, str) and error.filename.startswith("layer entry "):
        return error
    return OSError(error.errno, os.strerror(error.errno or 0), f"layer entry {os.fsdecode(path)}")
