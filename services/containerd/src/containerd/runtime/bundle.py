"""The bundle: the directory that a container's shim and OCI runtime work in.

``<state>/io.containerd.runtime.v2.task/NAMESPACE/ID`` holds ``config.json``, ``rootfs/``, the symbolic link ``work``
(to ``<root>/io.containerd.runtime.v2.task/NAMESPACE/ID``, which outlives a reboot), and what is needed to find the shim
again: ``bootstrap.json`` (or ``address``, by older shims) and ``shim-binary-path``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from containerd.errors import AlreadyExists, InvalidArgument
from containerd.identifiers import validate_identifier
from gantry.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2

__all__ = ["Bundle", "Bundles"]

CONFIG = "config.json"
ROOTFS = "rootfs"
WORK = "work"
LOG = "log"
EXITED = "exited"
"""Marks that the exit of the container has been published: a restarted daemon does not publish it again."""


@dataclass(frozen=True)
class Bundle:
    """One container's directory."""

    namespace: str
    id: str
    path: str

    def file(self, name: str) -> str:
        """Return the path of a file in the bundle."""
        return f"{self.path}/{name}"

    def read(self, name: str) -> str | None:
        """Return a small file's text, or None when there is none."""
        try:
            with open(self.file(name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Write a small file so that a reader finds all of it or nothing."""
        temporary = self.file(f".{name}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(temporary, self.file(name))

    def mark_exited(self) -> None:
        """Note that the exit has been published. A bundle that is being removed needs no mark."""
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(self.file(EXITED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def exited(self) -> bool:
        """Tell whether :meth:`mark_exited` was called, by this daemon or one before it."""
        return os.path.exists(self.file(EXITED))

    def delete(self) -> None:
        """Unmount and remove everything, and the work directory. What is gone already is no error. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            work = os.readlink(self.file(WORK))
            _remove_tree(work)
        self._remove_rootfs()
        _remove_tree(self.path)

    def _remove_rootfs(self) -> None:
        # rmdir, never a recursive removal: if something is mounted here still, it is the container's data.
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rmdir(self.file(ROOTFS))
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                # The shim has left a mount behind. Usually it has not, and nobody has to read all mounts.
                _unmount_below(self.file(ROOTFS))
                os.rmdir(self.file(ROOTFS))


class Bundles:
    """All bundles of a daemon."""

    def __init__(self, state: str, root: str) -> None:
        self._state = state
        self._root = root
        for directory in (state, root):
            os.makedirs(directory, mode=0o711, exist_ok=True)

    def create(self, namespace: str, container_id: str, spec: bytes) -> Bundle:
        """Make a bundle with ``spec`` as its config.json.

        Raises :class:`AlreadyExists`, :class:`InvalidArgument`, OSError; nothing is left behind then.
        """
        validate_identifier(container_id, f"invalid task id {container_id}")
        owner = _mapped_group(spec)
        bundle = Bundle(namespace, container_id, f"{self._state}/{namespace}/{container_id}")
        work = f"{self._root}/{namespace}/{container_id}"
        for directory in (f"{self._state}/{namespace}", f"{self._root}/{namespace}"):
            os.makedirs(directory, mode=0o711, exist_ok=True)
        try:
            os.mkdir(bundle.path, 0o700)
        except FileExistsError:
            raise AlreadyExists(f"bundle {bundle.path}: already exists") from None
        try:
            if owner is not None:
                os.chown(bundle.path, -1, owner)
                os.chmod(bundle.path, 0o710)  # noqa: S103 (for the mapped root alone)
            os.mkdir(bundle.file(ROOTFS), 0o711)
            _remove_tree(work)
            os.mkdir(work, 0o711)
            os.symlink(work, bundle.file(WORK))
            descriptor = os.open(bundle.file(CONFIG), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(descriptor, "wb") as file:
                file.write(spec)
        except BaseException:
            bundle.delete()
            raise
        return bundle

    def all(self) -> Iterator[Bundle]:
        """Yield what is there from before, after removing what was being deleted."""
        for namespace in _directories(self._state):
            for name in _directories(f"{self._state}/{namespace}"):
                path = f"{self._state}/{namespace}/{name}"
                if name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    yield Bundle(namespace, name, path)

    def remove_orphaned_work(self) -> None:
        """Remove the work directories whose bundles are gone: a reboot empties the state directory only."""
        for namespace in _directories(self._root):
            for name in _directories(f"{self._root}/{namespace}"):
                if not os.path.isdir(f"{self._state}/{namespace}/{name}"):
                    shutil.rmtree(f"{self._root}/{namespace}/{name}", ignore_errors=True)


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _remove_tree(path: str) -> None:
    """Remove a directory in one visible step: under a hidden name a half-removed one is recognised later."""
    hidden = f"{os.path.dirname(path)}/.{os.path.basename(path)}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        os.rename(path, hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden)


def _unmount_below(path: str) -> None:
    """Unmount ``path`` and all below it, the deepest first, lazily: nothing that runs may hold the removal up."""
    for target in sorted(_mounts_below(path), key=len, reverse=True):
        with contextlib.suppress(FileNotFoundError):
            umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)


def _mounts_below(path: str) -> list[str]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            # Field 5 is the mount point, with octal escapes for white space (proc(5)).
            target = line.split(" ", 5)[4]
            if "\\" in target:
                target = target.encode("latin-1", "surrogateescape").decode("unicode_escape")
            if target == path or target.startswith(f"{path}/"):
                found.append(target)
    return found


def _mapped_group(spec: bytes) -> int | None:
    """Return the host's group id of the container's root when the spec has a user namespace: it has to get in."""
    try:
        config = json.loads(spec)
    except ValueError as error:
        raise InvalidArgument(f"container spec is not JSON: {error}: invalid argument") from None
    linux = config.get("linux") if isinstance(config, dict) else None
    mappings = linux.get("gidMappings") if isinstance(linux, dict) else None
    for mapping in mappings if isinstance(mappings, list) else ():
        if isinstance(mapping, dict) and mapping.get("containerID", 0) == 0:
            host = mapping.get("hostID", 0)
            size = mapping.get("size", 0)
            if isinstance(host, int) and isinstance(size, int) and size > 0:
                return host
    return None
