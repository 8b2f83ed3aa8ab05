"""Hearing of changes in directories: one inotify descriptor for a whole worker (instances are few: 128 a user)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from dockerd.server.reactor import READ, Reactor

__all__ = ["DirectoryWatcher"]

_IN_MODIFY = 0x002
_IN_MOVED_TO = 0x080
_IN_CREATE = 0x100
_IN_ONLYDIR = 0x01000000
_IN_IGNORED = 0x8000
_IN_Q_OVERFLOW = 0x4000

_HEAD = struct.Struct("iIII")


class DirectoryWatcher:
    """Calls back, in the reactor's loop, when something in a directory was written, made or renamed."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._check(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1", "")
        self._callbacks: dict[int, set[Callable[[], None]]] = {}
        self._watching = False

    def watch(self, directory: str, callback: Callable[[], None]) -> None:
        """Begin; in the loop only. Raises OSError naming the directory."""
        if not self._watching:
            self._watching = True
            self._reactor.watch(self._fd, READ, self._on_events)
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_ONLYDIR
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)
        self._check(number, "inotify_add_watch", directory)
        self._callbacks.setdefault(number, set()).add(callback)

    def unwatch(self, callback: Callable[[], None]) -> None:
        """End; in the loop only. What was never begun has ended already."""
        for number, callbacks in list(self._callbacks.items()):
            callbacks.discard(callback)
            if not callbacks:
                del self._callbacks[number]
                self._libc.inotify_rm_watch(self._fd, number)  # fails when the directory is gone, and with it the watch

    def _on_events(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        numbers: set[int] = set()
        position = 0
        while position < len(data):
            number, mask, _cookie, length = _HEAD.unpack_from(data, position)
            position += _HEAD.size + length
            if mask & _IN_Q_OVERFLOW:
                numbers.update(self._callbacks)
            numbers.add(number)
        for number in numbers:
            for callback in list(self._callbacks.get(number, ())):
                callback()

    @staticmethod
    def _check(result: int, call: str, path: str) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{call}: {os.strerror(number)}", path or None)
        return result
