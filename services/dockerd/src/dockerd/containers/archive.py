"""Files of containers for clients: ``docker cp`` in both directions, ``docker export`` and ``docker diff``."""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from dockerd import errors
from dockerd.containers import users
from dockerd.containers.changes import Change, changes
from dockerd.containers.extraction import Extraction, extract
from dockerd.containers.filesystem import Placement, View, open_view, resolve
from dockerd.containers.model import Container, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.rootfs import read_file
from dockerd.containers.tar_writer import write_archive
from dockerd.containers.wait import Condition
from dockerd.images.decompress import read_uncompressed
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.containerd.v1.types import task_pb2

if TYPE_CHECKING:
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Archives", "PathStatus"]

_END_TIMEOUT = 10.0

# Go's os.FileMode, which is what the API has, keeps the kind of a file in other bits than the kernel.
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: (1 << 26) | (1 << 21),
}
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


@dataclass(frozen=True)
class PathStatus:
    """What X-Docker-Container-Path-Stat says: ``mode`` is Go's os.FileMode, ``target`` where a link leads."""

    name: str
    size: int
    mode: int
    mtime: str
    target: str


class Archives:
    """Reads and writes the files of containers, running or not."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def status(self, handle: Handle, reference: str, name: str) -> PathStatus:
        """What is at a path. Raises NotFound (``Could not find the file``)."""
        with _failures(reference, name), self._view(handle) as view:
            fd = _open(view, _absolute(name))
            try:
                return _status(view, _absolute(name), fd)
            finally:
                os.close(fd)

    def read(self, handle: Handle, reference: str, name: str) -> tuple[PathStatus, Iterator[bytes]]:
        """An archive of what is at a path. Its iterator must be closed."""
        absolute = _absolute(name)
        stack = ExitStack()
        try:
            with _failures(reference, name):
                view = stack.enter_context(self._view(handle))
                fd = _open(view, absolute)
                stack.callback(os.close, fd)
                found = _status(view, absolute, fd)
        except BaseException:
            stack.close()
            raise
        self._parts.publish(handle.container, "archive-path")
        return found, _Closing(write_archive(fd, found.name), stack)

    def write(
        self, handle: Handle, reference: str, name: str, archive: IO[bytes], *, copy_owner: bool, keep_kinds: bool
    ) -> None:
        """Extract an archive into the directory at a path.

        ``copy_owner``: everything belongs to the container's user. Raises NotFound, InvalidParameter for what is no
        directory or not writable.
        """
        container = handle.container
        with _failures(reference, name), self._view(handle) as view:
            fd = _open(view, _absolute(name), follow=True)
            try:
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    raise errors.InvalidParameter("extraction point is not a directory")
            finally:
                os.close(fd)
            destination = resolve(view.root, _absolute(name))
            _check_writable(container, destination)
            owner = None
            if copy_owner and container.config.user:
                texts = (read_file(view.root, "etc/passwd"), read_file(view.root, "etc/group"))
                identity = users.resolve(container.config.user, (), *texts)
                owner = (identity.uid, identity.gid)
            extract(read_uncompressed(archive), Extraction(view.root, destination, owner, keep_kinds))
        self._parts.publish(container, "extract-to-dir")

    def export(self, handle: Handle) -> Iterator[bytes]:
        """An archive of the root file system, without volumes. Its iterator must be closed."""
        status = handle.container.state.status
        for word, wrong in ((Status.DEAD, "Dead"), (Status.REMOVING, "being removed")):
            if status is word:
                raise errors.Conflict(f"You cannot export container {handle.id} which is {wrong}")
        stack = ExitStack()
        try:
            view = stack.enter_context(self._view(handle, with_mounts=False))
        except BaseException:
            stack.close()
            raise
        self._parts.publish(handle.container, "export")
        return _Closing(write_archive(view.root, ".", include_root=False), stack)

    def changes(self, handle: Handle) -> list[Change]:
        """What the container has changed in its root file system."""
        return changes(self._root_mounts(handle.container))

    @contextmanager
    def _view(self, handle: Handle, *, with_mounts: bool = True) -> Iterator[View]:
        """A view of the container's files; one that does not run is held meanwhile, so that it cannot start."""
        with ExitStack() as stack:
            stack.enter_context(handle.exclusive())
            if handle.removed:
                raise errors.NotFound(f"No such container: {handle.id}")
            if handle.container.state.running:
                stack.close()
                view = self._view_of_running(handle, stack, with_mounts)
                if view is not None:
                    yield view
                    return
                stack.enter_context(handle.exclusive())
                if handle.container.state.running:
                    raise errors.Conflict(f"container {handle.id} has just ended")
            handle.pristine = False
            yield self._open(stack, handle.container, with_mounts, 0)

    def _view_of_running(self, handle: Handle, stack: ExitStack, with_mounts: bool) -> View | None:
        """None when it has ended: the engine has taken note of that then, or it did not come in time."""
        ended = threading.Event()
        forget = handle.waiters.add(Condition.NEXT_EXIT, lambda _outcome: ended.set())
        try:
            container = handle.container
            if not container.state.running:
                return None
            # After the descriptor is there its process cannot have been replaced by another of the same id.
            with ExitStack() as held:
                directory = os.open(f"/proc/{container.state.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, directory)
                if self._runs(container):
                    return self._open(stack, container, with_mounts, container.state.pid)
        except (FileNotFoundError, ProcessLookupError):
            if os.path.isdir(f"/proc/{container.state.pid}/ns") and self._runs(container):
                raise  # it was not the process that is missing
        finally:
            forget()
        ended.wait(_END_TIMEOUT)
        return None

    def _runs(self, container: Container) -> bool:
        try:
            reply = self._parts.containerd.tasks.Get(tasks_pb2.GetRequest(container_id=container.id))
        except errors.NotFound:
            return False
        process = reply.process
        return bool(process.status != task_pb2.STOPPED and process.pid == container.state.pid)

    def _open(self, stack: ExitStack, container: Container, with_mounts: bool, pid: int) -> View:
        mounts = [] if pid else self._root_mounts(container)
        placements = _placements(container) if with_mounts else []
        return stack.enter_context(open_view(container.root, mounts, placements, pid))

    def _root_mounts(self, container: Container) -> list[mount_pb2.Mount]:
        request = snapshots_pb2.MountsRequest(snapshotter=container.snapshotter, key=container.id)
        return list(self._parts.containerd.snapshots.Mounts(request).mounts)


class _Closing:
    """An iterator that gives back what it reads from, when it is closed or has ended."""

    def __init__(self, pieces: Iterator[bytes], stack: ExitStack) -> None:
        self._pieces = pieces
        self._stack = stack

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back. Safe to repeat."""
        self._stack.close()


@contextmanager
def _failures(reference: str, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound(f"Could not find the file {name} in container {reference}") from error
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else name
        raise errors.SystemFailure(f"lstat {where}: {(error.strerror or str(error)).lower()}") from error


def _absolute(name: str) -> str:
    """The path from the root, cleaned; a ``/`` or ``/.`` at its end stays: it asks for what a link leads to."""
    clean = posixpath.normpath("/" + name.lstrip("/"))
    if posixpath.basename(name) == ".":
        return f"{clean.rstrip('/')}/."
    return f"{clean.rstrip('/')}/" if name.endswith("/") else clean


def _open(view: View, absolute: str, *, follow: bool = False) -> int:
    try:
        return view.open(absolute, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, error.strerror, absolute) from error


def _status(view: View, absolute: str, fd: int) -> PathStatus:
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode) & 0o777 | _GO_KINDS.get(stat.S_IFMT(status.st_mode), 0)
    for bit, go_bit in _GO_BITS.items():
        mode |= go_bit if status.st_mode & bit else 0
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return PathStatus(
        name=posixpath.basename(absolute.rstrip("/")) or "/",
        size=status.st_size,
        mode=mode,
        mtime=f"{moment}{fraction}Z",
        target=resolve(view.root, absolute) if stat.S_ISLNK(status.st_mode) else "",
    )


def _placements(container: Container) -> list[Placement]:
    """What the real engine has in the view: volumes and binds, and the files of the network."""
    found = [
        Placement(point.source, point.destination, point.rw, point.recursive)
        for point in container.mounts
        if point.type in ("volume", "bind")
    ]
    taken = {one.destination for one in found}
    for name in ("resolv.conf", "hostname", "hosts"):
        source, destination = f"{container.root}/{name}", f"/etc/{name}"
        if destination not in taken and os.path.exists(source):
            found.append(Placement(source, destination, not container.host_config.readonly_rootfs))
    return sorted(found, key=lambda one: one.destination)


def _check_writable(container: Container, destination: str) -> None:
    for point in container.mounts:
        inside = destination == point.destination or destination.startswith(point.destination.rstrip("/") + "/")
        if point.type != "tmpfs" and inside:
            if point.rw:
                return
            raise errors.InvalidParameter("mounted volume is marked read-only")
    if container.host_config.readonly_rootfs:
        raise errors.InvalidParameter("container rootfs is marked read-only")
