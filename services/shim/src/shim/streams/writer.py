"""Writing to a descriptor that may not take it all now."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from shim.loop import Loop

HIGH: Final = 256 << 10
"""Bytes waiting in one writer from which on its source is not read any more."""
LOW: Final = 64 << 10
"""Bytes waiting below which its source is read again."""
_AT_ONCE: Final = 64


class Writer:
    """A queue in front of a non-blocking descriptor, which it owns.

    `on_room` is called when the backlog falls below LOW after having been above HIGH; `on_broken` when nobody reads the
    other end any more, after which everything is dropped.
    """

    def __init__(
        self,
        loop: Loop,
        descriptor: int,
        *,
        on_room: Callable[[], None] | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self.descriptor = descriptor
        self._queue: deque[memoryview | bytes] = deque()
        self.backlog = 0
        self._on_room = on_room
        self._on_broken = on_broken
        self._congested = False
        self._finishing: Callable[[], None] | None = None
        os.set_blocking(descriptor, False)

    @property
    def congested(self) -> bool:
        """Whether the source should wait."""
        return self._congested

    @property
    def closed(self) -> bool:
        """Whether the descriptor is given up."""
        return self.descriptor < 0

    def write(self, *parts: bytes) -> None:
        """Writes now what the descriptor takes, the rest as it can. The caller looks at `congested`."""
        if self.descriptor < 0 or self._finishing is not None:
            return
        self._queue.extend(parts)
        waiting = self.backlog
        self.backlog += sum(map(len, parts))
        if not waiting:
            self._flush()
        if self.backlog > HIGH:
            self._congested = True

    def finish(self, then: Callable[[], None]) -> None:
        """Takes no more; calls `then`, which has to close it, once all is written or the other end is gone."""
        self._finishing = then
        if not self.backlog:
            self._finished()

    def _flush(self) -> None:
        queue = self._queue
        try:
            while queue:
                written = os.writev(self.descriptor, [queue[at] for at in range(min(len(queue), _AT_ONCE))])
                self.backlog -= written
                while queue and written >= len(queue[0]):
                    written -= len(queue.popleft())
                if written:
                    queue[0] = memoryview(queue[0])[written:]
        except BlockingIOError:
            self._loop.on_writable(self.descriptor, self._flush)
        except OSError:
            self._broken()
            return
        else:
            self._loop.on_writable(self.descriptor, None)
        if self._congested and self.backlog < LOW:
            self._congested = False
            if self._on_room is not None:
                self._on_room()
        if not self.backlog and self._finishing is not None:
            self._finished()

    def _finished(self) -> None:
        then, self._finishing = self._finishing, _nothing
        if then is not None:
            then()

    def _broken(self) -> None:
        self._queue.clear()
        self.backlog = 0
        was_congested, self._congested = self._congested, False
        self._loop.on_writable(self.descriptor, None)
        finishing = self._finishing is not None
        if self._on_broken is not None:
            self._on_broken()
        if was_congested and self._on_room is not None:
            self._on_room()
        if finishing:
            self._finished()

    def close(self) -> None:
        """Gives up what waits and closes the descriptor."""
        if self.descriptor >= 0:
            self._loop.forget(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1
            self._queue.clear()
            self.backlog = 0
            self._congested = False
            if self._finishing is not None:
                self._finished()


def _nothing() -> None:
    """What a finished writer still has to call."""
