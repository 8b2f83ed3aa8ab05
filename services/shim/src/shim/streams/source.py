"""A process's standard input: one descriptor that several clients may type into."""

from __future__ import annotations

import os
from collections.abc import Callable

from shim.loop import Loop
from shim.streams.sinks import open_fifo
from shim.streams.writer import Writer


class Input:
    """The writing end: a pipe, or a terminal's master. Takes over the descriptor."""

    def __init__(self, loop: Loop, descriptor: int, *, terminal: bool = False) -> None:
        self._writer = Writer(loop, descriptor, on_room=self._room, on_broken=self._gone)
        self._terminal = terminal
        self._waiting: list[Callable[[], None]] = []

    @property
    def closed(self) -> bool:
        """Whether the process reads no more, or was told that no more comes."""
        return self._writer.closed

    @property
    def congested(self) -> bool:
        """Whether the process is behind and clients are not to be read."""
        return self._writer.congested

    def write(self, data: bytes) -> None:
        """Passes on what a client sent."""
        self._writer.write(data)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Calls back, once, when the process has caught up or is gone."""
        self._waiting.append(callback)

    def end(self) -> None:
        """Lets the process see the end of its input, after what was written before. A terminal has no such end."""
        if not self._terminal:
            self._writer.finish(self.close)

    def close(self) -> None:
        """Closes it now."""
        self._writer.close()
        self._room()

    def _room(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def _gone(self) -> None:
        self._writer.close()
        self._room()


class FifoSource:
    """Feeds an Input from the client's FIFO.

    As in containerd's shim the FIFO is held open for writing too: a client that closes its end does not end the input
    until CloseIO has let go of ours.
    """

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._reading = open_fifo(path, os.O_RDONLY)
        self._holding = open_fifo(path, os.O_WRONLY)
        self._input: Input | None = None

    def feed(self, target: Input) -> None:
        """Starts copying."""
        self._input = target
        self._loop.on_readable(self._reading, self._read)

    def _read(self) -> None:
        target = self._input
        assert target is not None
        try:
            data = os.read(self._reading, 64 << 10)
        except (BlockingIOError, InterruptedError):
            return
        if not data or target.closed:
            target.end()
            self.close()
            return
        target.write(data)
        if target.congested:
            self._loop.on_readable(self._reading, None)
            target.when_room(self._resume)

    def _resume(self) -> None:
        if self._reading >= 0:
            self._loop.on_readable(self._reading, self._read)

    def let_go(self) -> None:
        """CloseIO: the input ends once the clients have closed theirs."""
        if self._holding >= 0:
            os.close(self._holding)
            self._holding = -1

    def close(self) -> None:
        """Stops copying."""
        self.let_go()
        if self._reading >= 0:
            self._loop.forget(self._reading)
            os.close(self._reading)
            self._reading = -1
