"""Locks by name: of those who want the same thing made, one makes it and the others find it there."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from containerd.transfer.cancellation import Cancellation

__all__ = ["KeyedLocks"]

_POLL = 0.2


class KeyedLocks:
    """A lock for each key in use; keys that nobody holds take no memory."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: Hashable, cancellation: Cancellation) -> Iterator[None]:
        """Hold the lock of ``key`` for a block. Raises :class:`Cancelled` while waiting for it."""
        with self._mutex:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            while not lock.acquire(timeout=_POLL):
                cancellation.check()
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._mutex:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)
