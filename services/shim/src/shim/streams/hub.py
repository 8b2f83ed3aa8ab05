"""One process's streams joined: outputs to sinks and sessions, sessions to the input."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Callable

from shim.errors import AlreadyExists, FailedPrecondition
from shim.loop import Future, Loop
from shim.streams.output import Output
from shim.streams.session import Session, SessionSpec
from shim.streams.sinks import STDOUT, Sink
from shim.streams.source import FifoSource, Input


class Hub:
    """Reads outputs as long as no sink is behind; several sinks get each byte once."""

    def __init__(self, loop: Loop, *, terminal: bool) -> None:
        self._loop = loop
        self.terminal = terminal
        self._outputs: list[Output] = []
        self._sinks: list[Sink] = []
        self.sessions: dict[str, Session] = {}
        self.input: Input | None = None
        self.fifo: FifoSource | None = None
        self._console = -1
        self._ended = False
        self._finishing = 0
        self.flushed: Future[None] = loop.future()
        """Settled when everything has been handed to its readers after the process's end."""

    @property
    def ended(self) -> bool:
        """Whether the process has ended and its output was taken in."""
        return self._ended

    def add_sink(self, sink: Sink) -> None:
        """Sends all output from now on to this sink too."""
        self._sinks.append(sink)

    def add_output(self, descriptor: int, stream: int, *, terminal: bool = False) -> None:
        """Takes a stream; it is read from `begin` on."""
        output = Output(self._loop, descriptor, lambda data: self._deliver(stream, data), terminal=terminal)
        self._outputs.append(output)

    def begin(self) -> None:
        """The process runs. What was written before is of the runtime, and is nobody's when it failed."""
        for output in self._outputs:
            output.resume()

    def set_input(self, target: Input) -> None:
        """Gives the process an input, and to it what attached clients send."""
        self.input = target
        for session in list(self.sessions.values()):
            session.feed(target)

    def set_fifo(self, fifo: FifoSource) -> None:
        """Feeds the process's input from the client's FIFO."""
        self.fifo = fifo
        if self.input is not None:
            fifo.feed(self.input)

    def set_console(self, master: int, *, with_input: bool) -> None:
        """Takes over a terminal's master: output, input and size are all one descriptor."""
        self._console = os.dup(master)
        if with_input:
            # A second descriptor, because each has one place in the selector.
            self.set_input(Input(self._loop, os.dup(master), terminal=True))
        self.add_output(master, STDOUT, terminal=True)

    def resize(self, width: int, height: int) -> None:
        """Sets the terminal's size in characters; nothing without a terminal."""
        if self._console >= 0:
            fcntl.ioctl(self._console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def attach(self, descriptor: int, spec: SessionSpec) -> Session:
        """Takes over a client's connection. On an error the descriptor is still the caller's."""
        if spec.id in self.sessions:
            raise AlreadyExists(f"session {spec.id} is attached already")
        if self._ended:
            raise FailedPrecondition("the process has ended and its streams are drained")
        session = Session(
            self._loop,
            descriptor,
            spec,
            terminal=self.terminal,
            on_room=self._room,
            on_end=self._session_ended,
        )
        self.sessions[spec.id] = session
        session.feed(self.input)
        return session

    def _session_ended(self, session: Session) -> None:
        self.sessions.pop(session.spec.id, None)
        self._room()

    def _deliver(self, stream: int, data: bytes) -> None:
        for sink in self._sinks:
            sink.write(stream, data)
        for session in list(self.sessions.values()):
            session.write(stream, data)
        if self._congested():
            for output in self._outputs:
                output.pause()

    def _congested(self) -> bool:
        return any(sink.congested for sink in self._sinks) or any(s.congested for s in self.sessions.values())

    def _room(self) -> None:
        if not self._ended and not self._congested():
            for output in self._outputs:
                output.resume()

    def close_input(self) -> None:
        """CloseIO: the process sees the end of its input, for a FIFO when the client has closed its end too."""
        if self.fifo is not None:
            self.fifo.let_go()
        elif self.input is not None:
            self.input.end()

    async def drain(self) -> None:
        """Takes in what the process, which has ended, wrote before; then lets sinks and sessions finish."""
        for output in self._outputs:
            await output.drain()
        self.finish()

    def finish(self) -> None:
        """No more output: sinks and sessions write out what they hold and close, in their readers' time."""
        if self._ended:
            return
        self._ended = True
        for output in self._outputs:
            output.close()
        if self.fifo is not None:
            self.fifo.close()
        if self.input is not None:
            self.input.close()
        if self._console >= 0:
            os.close(self._console)
            self._console = -1
        finishing: list[Callable[[Callable[[], None]], None]] = [sink.finish for sink in self._sinks]
        finishing += [session.finish for session in list(self.sessions.values())]
        self._finishing = len(finishing) + 1
        for finish in finishing:
            finish(self._one_finished)
        self._one_finished()

    def _one_finished(self) -> None:
        self._finishing -= 1
        if not self._finishing:
            self.flushed.set_result(None)
