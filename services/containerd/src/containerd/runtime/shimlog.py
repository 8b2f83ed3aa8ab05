"""The FIFO ``log`` in a bundle, which a shim started by its command line writes its own messages to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys

from containerd.runtime.bundle import LOG, Bundle

__all__ = ["ShimLog"]

_CHUNK = 16384


class ShimLog:
    """Copies the FIFO to standard error until it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._readable)

    @classmethod
    def create(cls, bundle: Bundle) -> ShimLog:
        """Make the FIFO and read from it, so that the shim's opening it for writing does not wait. Raises OSError."""
        os.mkfifo(bundle.file(LOG), 0o700)
        return cls(cls._open(bundle))

    @classmethod
    def reopen(cls, bundle: Bundle) -> ShimLog | None:
        """Read from the FIFO of a shim that runs already; None when it has none."""
        try:
            if not stat.S_ISFIFO(os.lstat(bundle.file(LOG)).st_mode):
                return None
            return cls(cls._open(bundle))
        except OSError:
            return None

    def close(self) -> None:
        """Stop reading. May be called more than once."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @staticmethod
    def _open(bundle: Bundle) -> int:
        # Open for writing too: with no writer at all a FIFO would be readable for ever, at its end.
        return os.open(bundle.file(LOG), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sys.stderr.write(os.read(self._descriptor, _CHUNK).decode("utf-8", "replace"))
            sys.stderr.flush()
