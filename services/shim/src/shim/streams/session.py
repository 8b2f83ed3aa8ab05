"""One client attached to one process: its connection is the shim's, no daemon is in between.

What a client is owed:

- Every byte of the streams it asked for, from the moment of the attach on. A client that reads slowly holds the
  process back through its pipe, once 256 KiB wait for it here: `docker run image | slow` loses nothing. The log gets
  each byte when it is read, whatever the clients do.
- What it sends reaches the process in order, `early_input` first. On a terminal the detach keys end the session.
- When it closes its sending half: with `close_stdin_on_eof` and no terminal the process sees the end of its input and
  the session goes on with output; else the session ends, as attaching to the real engine does. A client that did not
  ask for stdin may close that half at any time.
- When the process has ended and its output is written, the connection is shut down and closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from gantry.stdio import detachkeys, framing
from shim.loop import Loop
from shim.streams.sinks import STDERR, STDOUT
from shim.streams.source import Input
from shim.streams.writer import Writer


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What the client asked for; gantry.stdio.v1.Session with its defaults filled in."""

    id: str
    exec_id: str = ""
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    multiplexed: bool = False
    detach_keys: bytes = detachkeys.DEFAULT
    early_input: bytes = b""
    close_stdin_on_eof: bool = False


class Session:
    """An attached connection, which it owns. `on_end` is called once when it is over, `on_room` after congestion."""

    def __init__(
        self,
        loop: Loop,
        descriptor: int,
        spec: SessionSpec,
        *,
        terminal: bool,
        on_room: Callable[[], None],
        on_end: Callable[[Session], None],
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self.spec = spec
        self._terminal = terminal
        self._on_end = on_end
        self._streams = {number for number, wanted in ((STDOUT, spec.stdout), (STDERR, spec.stderr)) if wanted}
        self._writer = Writer(loop, descriptor, on_room=on_room, on_broken=self.close)
        self._input: Input | None = None
        self._matcher = detachkeys.Matcher(spec.detach_keys) if terminal else None
        self.bytes_in = 0
        self.bytes_out = 0
        loop.on_hangup(descriptor, self._hung_up)

    @property
    def congested(self) -> bool:
        """Whether the client is too far behind."""
        return self._writer.congested

    def write(self, stream: int, data: bytes) -> None:
        """Sends output if the client asked for this stream."""
        if stream not in self._streams:
            return
        self.bytes_out += len(data)
        if self.spec.multiplexed:
            self._writer.write(framing.header(stream, len(data)), data)
        else:
            self._writer.write(data)

    def feed(self, target: Input | None) -> None:
        """Connects the client to the process's input, if it asked for that and there is one."""
        if not self.spec.stdin or target is None or target.closed:
            return
        self._input = target
        if self.spec.early_input and self._type(self.spec.early_input):
            return
        self._resume()

    def _resume(self) -> None:
        if self._descriptor >= 0 and self._input is not None:
            self._loop.on_readable(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 64 << 10)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end_of_input()
            return
        self._type(data)

    def _type(self, data: bytes) -> bool:
        """Passes input on; tells whether the detach keys were in it, which ends the session."""
        target = self._input
        assert target is not None
        self.bytes_in += len(data)
        detached = False
        if self._matcher is not None:
            data, detached = self._matcher.feed(data)
        if data and not target.closed:
            target.write(data)
        if detached:
            self.end()
            return True
        if target.congested:
            self._loop.on_readable(self._descriptor, None)
            target.when_room(self._resume)
        return False

    def _end_of_input(self) -> None:
        self._loop.on_readable(self._descriptor, None)
        target, self._input = self._input, None
        if target is not None and self._matcher is not None:
            target.write(self._matcher.flush())
        if self.spec.close_stdin_on_eof and not self._terminal:
            if target is not None:
                target.end()
        else:
            self.end()

    def _hung_up(self) -> None:
        """The client is gone for good; what it had sent still counts."""
        target = self._input
        while target is not None and not target.closed and self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, 64 << 10)
            except OSError:
                break
            if not data:
                break
            self._type(data)
        if self._descriptor >= 0 and target is not None and self._input is target:
            self._end_of_input()
        self.close()

    def end(self) -> None:
        """Ends the session once what was written before is on its way."""
        if self._descriptor >= 0:
            self._loop.on_readable(self._descriptor, None)
            self._input = None
            self._writer.finish(self.close)

    def finish(self, then: Callable[[], None]) -> None:
        """The process's output is complete: ends the session, then calls back."""
        if self._descriptor < 0:
            then()
            return
        self._loop.on_readable(self._descriptor, None)
        self._input = None

        def close() -> None:
            self.close()
            then()

        self._writer.finish(close)

    def close(self) -> None:
        """Shuts the connection down for both and closes it."""
        if self._descriptor < 0:
            return
        self._loop.forget(self._descriptor)
        shut_down(self._descriptor)
        self._descriptor = -1
        self._writer.close()
        self._on_end(self)


def shut_down(descriptor: int) -> None:
    """Ends a connection for all who hold it, so that the client reads an end and not an error.

    Closing a socket with unread input makes the peer see ECONNRESET; so that is taken out first.
    """
    with contextlib.suppress(OSError):
        connection = socket.socket(fileno=os.dup(descriptor))
        with connection:
            connection.setblocking(False)
            connection.shutdown(socket.SHUT_RDWR)
            while connection.recv(64 << 10):
                pass
