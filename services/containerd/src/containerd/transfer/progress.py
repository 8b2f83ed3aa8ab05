"""Telling the client how far a transfer is, in containerd's words.

A transfer and each piece of content in it go through ``waiting``, ``downloading`` or ``uploading``, ``complete`` (or
``already exists``), ``extracting``, ``extracted``. What is under way is reported some times a second, not more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from containerd.descriptors import Descriptor, reference_key

__all__ = ["Progress", "ProgressTracker"]

INTERVAL = 0.1
"""Seconds between two reports about the same content."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. ``progress`` and ``total`` are bytes."""

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


class ProgressTracker:
    """Reports on one transfer to ``send``. Safe for threads.

    ``root`` is the name that content without another parent is shown under.
    """

    def __init__(self, send: Callable[[Progress], None], root: str, active: str) -> None:
        self._send = send
        self._root = root
        self._active = active
        self._parents: dict[str, tuple[str, ...]] = {}
        self._last: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def say(self, event: str, name: str = "", descriptor: Descriptor | None = None) -> None:
        """Report on the transfer itself."""
        self._send(Progress(event, name, descriptor=descriptor))

    def children(self, parent: Descriptor, found: Iterable[Descriptor]) -> None:
        """Remember what belongs to what."""
        with self._lock:
            for child in found:
                self._parents.setdefault(child.digest, (reference_key(parent),))

    def waiting(self, descriptor: Descriptor) -> None:
        """Report that content will have to be moved."""
        self._report("waiting", descriptor, 0)

    def moving(self, descriptor: Descriptor, done: int) -> None:
        """Report how much has been moved."""
        self._report(self._active, descriptor, done, limited=True)

    def complete(self, descriptor: Descriptor) -> None:
        """Report that content has been moved and verified."""
        self._report("complete", descriptor, descriptor.size)

    def exists(self, descriptor: Descriptor) -> None:
        """Report that content was there already."""
        self._report("already exists", descriptor, descriptor.size)

    def extracting(self, descriptor: Descriptor, done: int) -> None:
        """Report how much of a layer has been unpacked."""
        self._report("extracting", descriptor, done, limited=True)

    def extracted(self, descriptor: Descriptor) -> None:
        """Report that a layer is unpacked."""
        self._report("extracted", descriptor, descriptor.size)

    def _report(self, event: str, descriptor: Descriptor, done: int, *, limited: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            last, when = self._last.get(descriptor.digest, ("", 0.0))
            if last == event and (not limited or now - when < INTERVAL):
                return
            self._last[descriptor.digest] = (event, now)
            parents = self._parents.get(descriptor.digest, (self._root,))
        name = reference_key(descriptor)
        self._send(Progress(event, name, parents, done, descriptor.size, descriptor))
