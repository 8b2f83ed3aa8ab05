"""One loop for everything in a worker that waits: long responses, timers, pumped streams.

A thousand ``docker logs -f`` and ``docker events`` cost a thousand descriptors and no thread. Callbacks run in the
loop's thread, one at a time; they must not block. :meth:`Reactor.call_soon` and :meth:`Reactor.call_later` may be
called from any thread, everything else only from a callback.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["HANGUP", "READ", "WRITE", "Reactor", "Timer"]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
"""Reported whatever is waited for: nobody is at the other end any more."""

_log = logging.getLogger(__name__)


class Timer:
    """A callback that is due at some time, unless it is cancelled before."""

    __slots__ = ("_callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback. Allowed from any thread, and after it ran."""
        self._callback = None

    def fire(self) -> None:
        """Run the callback, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Reactor:
    """A selector loop in a thread of its own."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._thread: threading.Thread | None = None
        self._running = False
        self._asleep = False

    def start(self) -> None:
        """Start the loop's thread."""
        self.watch(self._wakeup, READ, self._drain_wakeup)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="reactor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop after what is ready now. Descriptors that are watched stay open: they are their owners'."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.call_soon(self._stop)
        if thread is not threading.current_thread():
            thread.join()
        self._epoll.close()
        os.close(self._wakeup)

    def in_loop(self) -> bool:
        """Whether the caller runs in the loop's thread."""
        return threading.current_thread() is self._thread

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the loop, after what was asked for before."""
        self._ready.append(callback)
        # Seen false while the loop is about to sleep, the loop sees the entry itself: it looks once more after
        # setting the flag.
        if self._asleep:
            self._wake()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` in the loop after ``delay`` seconds."""
        timer = Timer(time.monotonic() + delay, callback)
        self.call_soon(lambda: heapq.heappush(self._timers, (timer.due, next(self._sequence), timer)))
        return timer

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback`` with the ready events of ``fd`` until :meth:`unwatch`. In the loop only.

        ``events`` is READ, WRITE, both, or 0 to hear of a hang-up alone.
        """
        self._epoll.register(fd, events)
        self._watched[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        """Change what is waited for on ``fd``. In the loop only."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``, to be called before it is closed. In the loop only."""
        self._epoll.unregister(fd)
        del self._watched[fd]

    def _stop(self) -> None:
        self._running = False

    def _wake(self) -> None:
        try:
            os.eventfd_write(self._wakeup, 1)
        except BlockingIOError:  # the counter is full: the loop is woken anyway
            return

    def _drain_wakeup(self, _events: int) -> None:
        os.eventfd_read(self._wakeup)

    def _run(self) -> None:
        while self._running:
            for fd, events in self._wait():
                # A callback may have unwatched a descriptor that is ready in the same round.
                callback = self._watched.get(fd)
                if callback is not None:
                    self._call(callback, events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._call(heapq.heappop(self._timers)[2].fire)
            for _ in range(len(self._ready)):
                self._call(self._ready.popleft())

    def _wait(self) -> list[tuple[int, int]]:
        self._asleep = True
        try:
            if self._ready:
                timeout: float | None = 0
            elif self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic())
            else:
                timeout = None
            return self._epoll.poll(timeout)
        finally:
            self._asleep = False

    @staticmethod
    def _call(callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # One stream's failure must not end everyone's: it is logged and the loop goes on.
            _log.exception("callback %r failed", callback)
