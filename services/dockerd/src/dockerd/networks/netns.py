"""Network namespaces that belong to no process: made by a thread, pinned by a bind mount.

A namespace is there before the container and after the engine's end; the mount is what keeps it, and taking the mount
away lets the kernel tear everything in it down, its half of a device pair included.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from gantry.linux import mount
from gantry.linux.namespaces import CLONE_NEWNET, setns, unshare

__all__ = ["create", "enter", "remove", "write_sysctl"]

Result = TypeVar("Result")


def create(path: str, inside: Callable[[int], Result]) -> Result:
    """Make a namespace, pin it at ``path``, and return what ``inside`` returns, called in it with its descriptor.

    Nothing is left at ``path`` when anything raises (OSError, or what ``inside`` raises).
    """
    try:
        return _in_thread(lambda: _create(path, inside))
    except BaseException:
        remove(path)
        raise


def enter(path: str, inside: Callable[[int], Result]) -> Result:
    """Return what ``inside`` returns, called in the namespace pinned at ``path`` with its descriptor."""

    def work() -> Result:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(descriptor, CLONE_NEWNET)
            return inside(descriptor)
        finally:
            os.close(descriptor)

    return _in_thread(work)


def _in_thread(work: Callable[[], Result]) -> Result:
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    # The thread ends inside the namespace; no other code ever runs on it. Unlike a child process it is safe in a
    # process that uses grpc.
    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _create(path: str, inside: Callable[[int], Result]) -> Result:
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    unshare(CLONE_NEWNET)
    own = "/proc/thread-self/ns/net"
    mount.mount(own, path, flags=mount.MS_BIND)
    descriptor = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Let go of the namespace pinned at ``path``; the kernel tears it down in the background. Gone already is fine."""
    try:
        mount.umount2(path, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # not a mount point, or not there
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_sysctl(name: str, value: str) -> None:
    """Set a ``net.`` sysctl, given as a path below /proc/sys, in the calling thread's network namespace.

    One that this kernel does not have is left alone. Raises OSError for others.
    """
    try:
        descriptor = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
