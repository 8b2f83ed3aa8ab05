"""A container's files as the container sees them: its root file system with its volumes and binds in their places.

A view is a mount namespace of its own that no process lives in. Everything in it is reached from one descriptor of its
root with openat2(RESOLVE_IN_ROOT), so that no link of a hostile container leads out of it, however fast it changes. A
running container's root is a clone of the mount that it has (an overlay's upper directory may not be in use twice);
a stopped one's is mounted for the view, and its caller holds the container meanwhile. What a container mounts itself,
/proc, /sys, /dev and its tmpfs are not in the view, as with the real engine.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dockerd import errors
from gantry.linux import mount, namespaces, path
from gantry.linux.libc import AT_RECURSIVE

if TYPE_CHECKING:
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Placement", "View", "open_view", "resolve"]

_CLONE_FS = 0x00000200
_LINKS = 40  # as many as the kernel follows


@dataclass(frozen=True)
class Placement:
    """Something that is mounted in the container: a file or directory of the host at ``destination``."""

    source: str
    destination: str
    writable: bool = True
    recursive: bool = True


class View:
    """An open view; ``root`` is a descriptor (O_PATH) of its root directory."""

    def __init__(self, root: int) -> None:
        self.root = root

    def open(self, name: str, flags: int = os.O_PATH) -> int:
        """Open a file inside the view. Raises OSError."""
        return path.open_in_root(self.root, name, flags | os.O_CLOEXEC)


@contextmanager
def open_view(
    directory: str, root_mounts: Sequence[mount_pb2.Mount], placements: Sequence[Placement], pid: int = 0
) -> Iterator[View]:
    """Open a view, on the directory ``directory`` of the host, which stays as it is.

    ``pid`` is the container's process if it runs: the root is then what that process has, else what ``root_mounts``
    (its snapshot's) describe. Raises SystemFailure; FileNotFoundError or ProcessLookupError when the process is gone.
    """
    with ExitStack() as stack:
        build = _Build(stack, directory, root_mounts, placements, pid)
        root = _in_thread(build.run)
        stack.callback(os.close, root)
        yield View(root)


class _Build:
    """Makes the mount namespace of a view; ``stack`` closes what holds it."""

    def __init__(
        self,
        stack: ExitStack,
        directory: str,
        root_mounts: Sequence[mount_pb2.Mount],
        placements: Sequence[Placement],
        pid: int,
    ) -> None:
        self._stack = stack
        self._directory = directory
        self._root_mounts = root_mounts
        self._placements = placements
        self._pid = pid

    def run(self) -> int:
        """In a thread of its own, which ends afterwards: it changes its mount namespace."""
        namespaces.unshare(_CLONE_FS)
        clone = self._clone_of_process() if self._pid else None
        sources = [(one, self._source(one)) for one in self._placements]
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mount.mount(None, "/", None, mount.MS_REC | mount.MS_PRIVATE)
        # The descriptor keeps the namespace when the thread is gone.
        self._keep(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        if clone is not None:
            mount.move_mount(clone, self._directory)
        else:
            self._mount_root()
        os.chdir(self._directory)
        self._leave_the_host()
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.mount_setattr(root, set_attributes=mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
        for placement, source in sources:
            _place(root, placement, source)
        return root

    def _keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _clone_of_process(self) -> int:
        """The root mount of the container's process alone, without what is mounted on it."""
        own = self._keep(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        there = f"/proc/{self._pid}/ns/mnt"
        theirs = self._keep(os.open(there, os.O_RDONLY | os.O_CLOEXEC))
        if os.fstat(theirs).st_ino == os.fstat(own).st_ino:
            raise ProcessLookupError(errno.ESRCH, "not a container's process", there)
        namespaces.setns(theirs, namespaces.CLONE_NEWNS, there)
        try:
            return self._keep(mount.open_tree("/"))
        finally:
            namespaces.setns(own, namespaces.CLONE_NEWNS)

    def _source(self, placement: Placement) -> int:
        flags = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC
        if placement.recursive:
            flags |= AT_RECURSIVE
        return self._keep(mount.open_tree(placement.source, flags))

    def _mount_root(self) -> None:
        if len(self._root_mounts) != 1:
            raise errors.SystemFailure(f"a snapshot of {len(self._root_mounts)} mounts cannot be opened")
        (entry,) = self._root_mounts
        if entry.type == "bind":
            mount.mount(entry.source, self._directory, None, mount.MS_BIND)
        elif entry.type == "overlay":
            self._mount_overlay(list(entry.options))
        else:
            raise errors.SystemFailure(f"a snapshot of type {entry.type} cannot be opened")

    def _mount_overlay(self, options: Sequence[str]) -> None:
        data = []
        with ExitStack() as opened:

            def short(directory: str) -> str:
                # The kernel takes one page of options: many layers fit when each has a short name.
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                return f"/proc/self/fd/{fd}"

            for option in options:
                key, _, value = option.partition("=")
                if key == "lowerdir":
                    value = ":".join(short(layer) for layer in value.split(":"))
                elif key in ("upperdir", "workdir"):
                    value = short(value)
                data.append(f"{key}={value}" if value else key)
            mount.mount("overlay", self._directory, "overlay", 0, ",".join(data))

    def _leave_the_host(self) -> None:
        """Make the working directory the root, and let go of the host's mounts: they may be unmounted meanwhile."""
        mount.pivot_root(".", ".")
        mount.umount2(".", mount.MNT_DETACH)
        os.chdir("/")


def _place(root: int, placement: Placement, source: int) -> None:
    if stat.S_ISDIR(os.fstat(source).st_mode):
        target = path.mkdir_all_in_root(root, placement.destination)
    else:
        target = path.create_file_in_root(root, placement.destination)
    try:
        attributes = mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID
        if not placement.writable:
            attributes |= mount.MOUNT_ATTR_RDONLY
        mount.mount_setattr(source, set_attributes=attributes, propagation=mount.MS_PRIVATE, recursive=True)
        mount.move_mount(source, "", to_fd=target)
    finally:
        os.close(target)


def _in_thread(action: Callable[[], int]) -> int:
    """Run ``action`` in a new thread, which ends with it; its result or its error."""
    results: list[int] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="container-files", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def resolve(root: int, name: str) -> str:
    """Where ``name`` leads inside the root when every link is followed, as far as there is something.

    For showing only: what is done to files goes by descriptor. Raises OSError (ELOOP) for a circle.
    """
    done = "/"
    rest = [part for part in name.split("/") if part]
    links = 0
    while rest:
        part = rest.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = posixpath.dirname(done)
            continue
        target = _link(root, posixpath.join(done, part))
        if target is None:
            done = posixpath.join(done, part)
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        if target.startswith("/"):
            done = "/"
        rest = [piece for piece in target.split("/") if piece] + rest
    return done


def _link(root: int, name: str) -> str | None:
    try:
        fd = path.open_in_root(root, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
