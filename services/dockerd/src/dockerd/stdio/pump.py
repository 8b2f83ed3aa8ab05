"""The engine's own pump, for a containerd whose shims do not take connections over.

Each stream of a process is a FIFO below the exec root, opened for reading and writing so that it neither ends nor
breaks while only one side is there. All of them are copied by the reactor: to the log first, then to every session. A
session that does not read holds the process back, as a terminal would; it never costs memory without bound.

Everything here runs in the reactor's loop, except what says otherwise.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dockerd.server.reactor import HANGUP, READ, WRITE, Reactor
from gantry.stdio import detachkeys, framing
from gantry.stdio.jsonfile import Encoder, LogFile

__all__ = ["Process", "Session"]

CHUNK = 64 << 10
HIGH_WATER = 1 << 20
"""Bytes kept for a session that does not read, before its process has to wait for it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """What a session asked for; see :class:`dockerd.stdio.AttachOptions`."""

    stdin: bool
    stdout: bool
    stderr: bool
    multiplexed: bool
    detach_keys: bytes
    close_stdin_on_eof: bool


class Session:
    """One client's connection."""

    def __init__(self, process: Process, client: socket.socket, early_input: bytes, view: View) -> None:
        client.setblocking(False)
        self._process = process
        self._client: socket.socket | None = client
        self.view = view
        self._early = early_input
        self._out: deque[bytes] = deque()
        self._out_size = 0
        self._ending = False
        self._reading = False
        self._matcher = detachkeys.Matcher(view.detach_keys) if process.terminal else None

    @property
    def behind(self) -> bool:
        """Whether the client has so much to read that the process has to wait."""
        return self._out_size > HIGH_WATER

    def wait(self) -> None:
        """Be there until the process starts; only a client that leaves is noticed."""
        assert self._client is not None
        self._process.reactor.watch(self._client.fileno(), 0, self._on_events)

    def start(self) -> None:
        """Take part: the process runs, or is about to."""
        self._reading = True
        self._update()
        early, self._early = self._early, b""
        if early:
            self._input(early)

    def send(self, stream: int, data: bytes) -> None:
        """Pass output of the process on."""
        if self._client is None or not (self.view.stderr if stream == framing.Stream.STDERR else self.view.stdout):
            return
        if self.view.multiplexed:
            data = framing.encode(stream, data)
        self._out.append(data)
        self._out_size += len(data)
        self._flush()

    def end(self) -> None:
        """Close the connection once the client has read what there is."""
        self._ending = True
        self._flush()

    def close(self) -> None:
        """Close the connection now."""
        client, self._client = self._client, None
        if client is None:
            return
        self._process.reactor.unwatch(client.fileno())
        client.close()
        self._process.session_closed(self)

    def resume_reading(self) -> None:
        """The process has taken the input that it was given: read on."""
        self._reading = True
        self._update()

    def _on_events(self, events: int) -> None:
        if events & HANGUP:
            self.close()
            return
        if events & WRITE:
            self._flush()
        if events & READ and self._client is not None:
            self._read(self._client)

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self._input(data)
            return
        self._reading = False
        self._update()
        if not self.view.stdin:
            return  # it had nothing to say; what the process says still arrives
        if self.view.close_stdin_on_eof and not self._process.terminal:
            self._process.close_stdin()
        else:
            self.end()  # as the real engine: who stops typing has finished, and the process's input stays open

    def _input(self, data: bytes) -> None:
        if not self.view.stdin:
            return
        if self._matcher is not None:
            data, detached = self._matcher.feed(data)
            if detached:
                self.close()
                return
        if data and not self._process.write_stdin(data, self):
            self._reading = False
            self._update()

    def _flush(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            while self._out:
                sent = client.send(self._out[0])
                self._out_size -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._ending and not self._out:
            self.close()
            return
        self._update()
        self._process.session_progress()

    def _update(self) -> None:
        if self._client is not None:
            events = (READ if self._reading else 0) | (WRITE if self._out else 0)
            self._process.reactor.rewatch(self._client.fileno(), events)


@dataclass
class _Output:
    """One of the process's output streams."""

    stream: int
    fd: int
    encoder: Encoder | None
    watched: bool = True


@dataclass
class Process:
    """The streams of one process: a container's first, or an exec's."""

    reactor: Reactor
    terminal: bool
    close_io: Callable[[], None]
    """Tells containerd that the standard input has ended; called in a thread of its own."""
    log: LogFile | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    _sessions: list[Session] = field(default_factory=list)
    _outputs: list[_Output] = field(default_factory=list)
    _stdin: int = -1
    _stdin_closing: bool = False
    _started: bool = False
    _pending: deque[tuple[bytes, Session]] = field(default_factory=deque)
    _stdin_watched: bool = False
    _open: bool = False
    _begun: bool = False

    def open(self, stdin: str, stdout: str, stderr: str) -> None:
        """Open the FIFOs (empty: there is none) and copy what the process writes, to who waits already too."""
        if self._open:
            return
        self._open = True
        for stream, path in ((framing.Stream.STDOUT, stdout), (framing.Stream.STDERR, stderr)):
            if not path:
                continue
            encoder = Encoder(stream.name.lower(), self.attributes) if self.log is not None else None
            output = _Output(stream, _open_fifo(path), encoder)
            self._outputs.append(output)
            self.reactor.watch(output.fd, READ, partial(self._copy, output))
        if stdin:
            self._stdin = _open_fifo(stdin)

    def begin(self) -> None:
        """Let the sessions type: containerd knows the process, so that the end of its input can be told."""
        if self._begun:
            return
        self._begun = True
        for session in list(self._sessions):
            session.start()

    def add(self, session: Session) -> None:
        """Let a client take part, from now on or from the process's start."""
        self._sessions.append(session)
        session.wait()
        if self._begun:
            session.start()

    def finish(self) -> None:
        """The process has ended and all that it wrote is in the FIFOs: pass it on, then end every session."""
        for output in self._outputs:
            self._unwatch(output)
            while data := _read(output.fd):
                self._pass_on(output, data)
            if self.log is not None and output.encoder is not None:
                self._write_log(output.encoder.finish(time.time_ns()))
            os.close(output.fd)
        self._outputs.clear()
        self._drop_stdin()
        if self.log is not None:
            self.log.close()
        for session in list(self._sessions):
            if self._open:
                session.end()
            else:
                session.close()

    def release(self) -> None:
        """Let go of the FIFOs without ending anything: the next engine goes on with them."""
        for output in self._outputs:
            self._unwatch(output)
            os.close(output.fd)
        self._outputs.clear()
        self._drop_stdin()

    def write_stdin(self, data: bytes, session: Session) -> bool:
        """Pass input on. False when the process is behind; the session's ``resume_reading`` is called later."""
        if self._stdin < 0 or self._stdin_closing:
            return True  # a process without standard input ignores what is typed
        if self._pending:
            self._pending.append((data, session))
            return False
        written = _write(self._stdin, data)
        if written == len(data):
            return True
        self._pending.append((data[written:], session))
        if not self._stdin_watched:
            self._stdin_watched = True
            # The FIFO is open for reading here too: only WRITE is asked for.
            self.reactor.watch(self._stdin, WRITE, self._on_stdin)
        return False

    def close_stdin(self) -> None:
        """Let the process see the end of its input, behind what is still on its way."""
        if self._stdin < 0 or self._stdin_closing:
            return
        self._stdin_closing = True
        self._end_stdin()

    def started(self) -> None:
        """The shim has opened the FIFOs. What a FIFO holds is lost when it is closed before that."""
        self._started = True
        if self._stdin_closing:
            self._end_stdin()

    def session_closed(self, session: Session) -> None:
        """Called by a session that is gone."""
        if session in self._sessions:
            self._sessions.remove(session)
        self.session_progress()

    def session_progress(self) -> None:
        """Called by a session whose client has read: the process may go on."""
        if any(session.behind for session in self._sessions):
            return
        for output in self._outputs:
            if not output.watched:
                output.watched = True
                self.reactor.rewatch(output.fd, READ)

    def _copy(self, output: _Output, _events: int) -> None:
        data = _read(output.fd)
        if data:
            self._pass_on(output, data)

    def _pass_on(self, output: _Output, data: bytes) -> None:
        if output.encoder is not None:
            self._write_log(output.encoder.feed(data, time.time_ns()))
        for session in list(self._sessions):
            session.send(output.stream, data)
        if any(session.behind for session in self._sessions):
            for other in self._outputs:
                if other.watched:
                    other.watched = False
                    self.reactor.rewatch(other.fd, 0)

    def _write_log(self, records: bytes) -> None:
        if self.log is None or not records:
            return
        try:
            self.log.write(records)
        except OSError as error:
            _log.error("output of a container is missing in its log: %s", error)

    def _unwatch(self, output: _Output) -> None:
        self.reactor.unwatch(output.fd)

    def _on_stdin(self, _events: int) -> None:
        while self._pending:
            data, session = self._pending[0]
            written = _write(self._stdin, data)
            if written < len(data):
                self._pending[0] = (data[written:], session)
                return
            self._pending.popleft()
            session.resume_reading()
        self.reactor.unwatch(self._stdin)
        self._stdin_watched = False
        if self._stdin_closing:
            self._end_stdin()

    def _end_stdin(self) -> None:
        if self._pending or not self._started or self._stdin < 0:
            return
        self._drop_stdin()
        # The shim holds the FIFO's writing end too; only containerd can make it let go.
        threading.Thread(target=self.close_io, name="close-io", daemon=True).start()

    def _drop_stdin(self) -> None:
        if self._stdin >= 0:
            if self._stdin_watched:
                self.reactor.unwatch(self._stdin)
                self._stdin_watched = False
            os.close(self._stdin)
            self._stdin = -1
        self._pending.clear()


def _open_fifo(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return b""


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
