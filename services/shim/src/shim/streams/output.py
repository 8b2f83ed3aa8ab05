"""The shim's end of what a process writes: a pipe, or the master of its terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Final

from shim.loop import Future, Loop

CHUNK: Final = 64 << 10
# A terminal's last output reaches the master after the process has ended, by way of a kernel work queue.
_TERMINAL_SETTLES_WITHIN: Final = 0.2
_MOST_OF_A_TERMINAL: Final = 1 << 20


class Output:
    """Reads one stream and hands the bytes on. Paused, it leaves them in the pipe, which in time holds the writer."""

    def __init__(
        self, loop: Loop, descriptor: int, deliver: Callable[[bytes], None], *, terminal: bool = False
    ) -> None:
        self._loop = loop
        self.descriptor = descriptor
        self._deliver = deliver
        self._terminal = terminal
        self._ended: Future[None] = loop.future()
        os.set_blocking(descriptor, False)

    @property
    def closed(self) -> bool:
        """Whether the stream has ended or was given up."""
        return self.descriptor < 0

    def resume(self) -> None:
        """Reads from now on."""
        if self.descriptor >= 0:
            self._loop.on_readable(self.descriptor, self._ready)

    def pause(self) -> None:
        """Reads no more until `resume`."""
        if self.descriptor >= 0:
            self._loop.on_readable(self.descriptor, None)

    def _ready(self) -> None:
        self._read()

    def _read(self) -> int:
        """Reads once. Gives the number of bytes, 0 when there are none now, -1 at the end."""
        try:
            data = os.read(self.descriptor, CHUNK)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # A terminal whose last holder has gone gives EIO.
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.close()
            return -1
        self._deliver(data)
        return len(data)

    async def drain(self) -> None:
        """Delivers what was written up to now, then closes the stream.

        Does not wait for others who hold the stream and may write later: a pipe is emptied of what it holds at this
        moment; a terminal is given a fraction of a second to hand over its last output.
        """
        if self.descriptor >= 0 and self._terminal:
            self.resume()
            await self._loop.within(self._ended, _TERMINAL_SETTLES_WITHIN)
        # A terminal counts only what its line discipline has taken; a bound is all that is needed there.
        left = _MOST_OF_A_TERMINAL if self._terminal else self._available()
        while left > 0 and self.descriptor >= 0:
            count = self._read()
            if count <= 0:
                break
            left -= count
        self.close()

    def _available(self) -> int:
        if self.descriptor < 0:
            return 0
        count: int
        (count,) = struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, b"\0" * 4))
        return count

    def close(self) -> None:
        """Gives up the stream: whoever still writes to a pipe gets EPIPE."""
        if self.descriptor >= 0:
            self._loop.forget(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1
            self._ended.set_result(None)
