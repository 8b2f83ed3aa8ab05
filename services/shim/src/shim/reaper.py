"""Exit statuses of everything that ends below the shim, each delivered once.

The shim is a subreaper: what the OCI runtime starts and leaves becomes its child. Such a process may end before the
shim has read its pid: while a launch is under way, exits of unknown processes are kept until they are claimed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shim.loop import Loop


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: shell-style status (128 + signal when killed), and when it was reaped, in ns since epoch."""

    pid: int
    status: int
    at: int


class Reaper:
    """Reaps on SIGCHLD, by a wake-up descriptor in the loop: no thread, no polling."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[Exit], None]] = {}
        self._unclaimed: dict[int, Exit] = {}
        self._launches = 0
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.on_signal: Callable[[int], None] | None = None

    def install(self, also: tuple[signal.Signals, ...] = ()) -> None:
        """Takes SIGCHLD, and the signals `also`, which go to `on_signal`."""
        for number in (signal.SIGCHLD, *also):
            signal.signal(number, _noted)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._loop.on_readable(self._read, self._signalled)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Keeps exits of unknown processes inside the block, in which a launch's pid is claimed."""
        self._launches += 1
        try:
            yield
        finally:
            self._launches -= 1
            if not self._launches:
                self._unclaimed.clear()

    def claim(self, pid: int, callback: Callable[[Exit], None]) -> None:
        """Calls back, once and from the loop, when the child has ended; it may have ended already."""
        early = self._unclaimed.pop(pid, None)
        if early is not None:
            self._loop.call_soon(lambda: callback(early))
        else:
            self._callbacks[pid] = callback

    def _signalled(self) -> None:
        try:
            numbers = os.read(self._read, 4096)
        except BlockingIOError:
            return
        self.reap()
        for number in set(numbers) - {signal.SIGCHLD}:
            if self.on_signal is not None:
                self.on_signal(number)

    def reap(self) -> None:
        """Collects every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            ended = Exit(pid, code if code >= 0 else 128 - code, time.time_ns())
            callback = self._callbacks.pop(pid, None)
            if callback is not None:
                callback(ended)
            elif self._launches:
                self._unclaimed[pid] = ended

    def close(self) -> None:
        """Gives the signals back."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._loop.forget(self._read)
        os.close(self._read)
        os.close(self._write)


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor tells the loop; a handler has to exist for it to be written."""
