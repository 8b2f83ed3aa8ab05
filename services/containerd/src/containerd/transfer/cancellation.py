"""Stopping a transfer whose client went away: threads look here between pieces of work."""

from __future__ import annotations

import threading

from containerd.errors import Cancelled

__all__ = ["Cancellation"]


class Cancellation:
    """Set once, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask everybody to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`Cancelled` once :meth:`cancel` was called."""
        if self._event.is_set():
            raise Cancelled("transfer cancelled by the client: canceled")

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the cancellation. Raises :class:`Cancelled`."""
        self._event.wait(seconds)
        self.check()
