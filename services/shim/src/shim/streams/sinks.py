"""Where a process's output goes besides attached clients."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from gantry.stdio.jsonfile import Encoder, LogFile
from shim.loop import Loop
from shim.streams.writer import Writer

_log = logging.getLogger(__name__)

STDOUT: Final = 1
STDERR: Final = 2
_NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}


class Sink(Protocol):
    """Takes output. A sink never blocks: one that cannot keep up says so by `congested`."""

    @property
    def congested(self) -> bool:
        """Whether the process should be held back."""

    def write(self, stream: int, data: bytes) -> None:
        """Takes output of a stream (1 or 2)."""

    def finish(self, then: Callable[[], None]) -> None:
        """No more output comes; calls `then` once all is written and the sink has closed itself."""


class LogSink:
    """The json-file log. An error is noted once in the shim's log and never reaches the container."""

    congested: Final = False

    def __init__(self, path: str, max_size: int, max_file: int, attrs: Mapping[str, str]) -> None:
        self._path = path
        self._file = LogFile(path, max_size, max_file)
        self._encoders = {stream: Encoder(name, attrs) for stream, name in _NAMES.items()}
        self._failing = False

    def write(self, stream: int, data: bytes) -> None:
        self._append(self._encoders[stream].feed(data, time.time_ns()))

    def _append(self, records: bytes) -> None:
        if not records:
            return
        try:
            self._file.write(records)
        except OSError as error:
            if not self._failing:
                _log.error("log %s: %s; output that does not fit is lost to the log", self._path, error)
            self._failing = True
        else:
            if self._failing:
                _log.warning("log %s: is written again", self._path)
            self._failing = False

    def finish(self, then: Callable[[], None]) -> None:
        now = time.time_ns()
        for encoder in self._encoders.values():
            self._append(encoder.finish(now))
        self._file.close()
        then()


class FileSink:
    """A plain file (`file://`): both streams as they come, appended."""

    congested: Final = False

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        self._path = path
        self._failing = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, stream: int, data: bytes) -> None:  # noqa: ARG002 (one file for both)
        try:
            os.write(self._descriptor, data)
        except OSError as error:
            if not self._failing:
                _log.error("output file %s: %s; output that does not fit is lost", self._path, error)
            self._failing = True

    def finish(self, then: Callable[[], None]) -> None:
        os.close(self._descriptor)
        then()


class FifoSink:
    """The FIFO of one stream, whose reader is the client's: its speed is the container's."""

    def __init__(self, loop: Loop, path: str, stream: int, on_room: Callable[[], None]) -> None:
        self._stream = stream
        # For reading too: opening must not wait for the client, and a client that goes away and comes back (a daemon
        # that restarts) must not give EPIPE in between.
        self._writer = Writer(loop, open_fifo(path, os.O_RDWR), on_room=on_room)

    @property
    def congested(self) -> bool:
        return self._writer.congested

    def write(self, stream: int, data: bytes) -> None:
        if stream == self._stream:
            self._writer.write(data)

    def finish(self, then: Callable[[], None]) -> None:
        def close() -> None:
            self._writer.close()
            then()

        self._writer.finish(close)


def open_fifo(path: str, flags: int) -> int:
    """Opens a FIFO without waiting for its other end; a file that is none is opened for appending, as it is."""
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads the fifo", path) from None
        raise
