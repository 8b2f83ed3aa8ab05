"""Makes a process's streams from the fields of Create or Exec."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass

from gantry.stdio import uri as stdio_uri
from gantry.stdio.uri import StdioURI
from shim.errors import ShimError
from shim.launch import Launcher, Streams
from shim.loop import Loop
from shim.streams.binary import BinaryProcess
from shim.streams.config import StdioConfig, binary_of, path_of, scheme_of, session_uri
from shim.streams.console import ConsoleSocket
from shim.streams.hub import Hub
from shim.streams.sinks import STDERR, STDOUT, FifoSink, FileSink, LogSink
from shim.streams.source import FifoSource, Input
from shim.streams.writer import Writer


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose streams these are. `uid` and `gid` own the pipes that are made."""

    container: str
    namespace: str
    bundle: str
    uid: int = 0
    gid: int = 0


class ProcessStreams:
    """The streams of one process, from before its launch to after its end.

    `prepare` comes first; then the runtime is given `child` (or `console.name`), and told `launched`; `started` takes
    over a terminal. `abort` undoes all of it at any point before.
    """

    def __init__(self, loop: Loop, launcher: Launcher, config: StdioConfig, owner: Owner) -> None:
        self._loop = loop
        self._launcher = launcher
        self._config = config
        self._owner = owner
        self.uri: StdioURI | None = session_uri(config)
        self.hub = Hub(loop, terminal=config.terminal)
        self.child: Streams | None = None
        self.console: ConsoleSocket | None = None
        self._child_ends: list[int] = []
        self._binary: BinaryProcess | None = None

    async def prepare(self, console_name: str) -> None:
        """Makes pipes, opens what output goes to, starts a logger. ShimError or OSError name what failed."""
        config = self._config
        scheme = scheme_of(config.stdout)
        if config.terminal:
            self.console = ConsoleSocket(self._loop, self._owner.bundle, console_name)
        if scheme == "binary":
            await self._start_binary()
        elif not config.empty:
            self._open_sinks(scheme)
        if not config.terminal:
            self._make_child_ends(scheme)

    def _open_sinks(self, scheme: str) -> None:
        hub, config = self.hub, self._config
        if self.uri is not None:
            if self.uri.driver == "json-file":
                hub.add_sink(LogSink(self.uri.path, self.uri.max_size, self.uri.max_file, self.uri.attrs))
            return
        if scheme == "file":
            hub.add_sink(FileSink(path_of(config.stdout)))
            return
        for text, stream in ((config.stdout, STDOUT), (config.stderr, STDERR)):
            if not text or (stream == STDERR and config.terminal):
                continue
            path = path_of(text)
            if not stat.S_ISFIFO(os.stat(path).st_mode):
                if text != config.stdout or stream == STDOUT:
                    hub.add_sink(FileSink(path))
                continue
            hub.add_sink(FifoSink(self._loop, path, stream, hub._room))

    async def _start_binary(self) -> None:
        owner = self._owner
        logger = binary_of(self._config.stdout)
        try:
            self._binary = BinaryProcess(self._loop, self._launcher, logger, owner.container, owner.namespace)
        except OSError as error:
            raise ShimError(f"failed to start binary process: {error}") from error
        self._child_ends += [self._binary.stdout, self._binary.stderr]
        await self._binary.ready()
        if self._config.terminal:
            self.hub.add_sink(_PipeSink(Writer(self._loop, os.dup(self._binary.stdout), on_room=self.hub._room)))

    def _make_child_ends(self, scheme: str) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._child_ends.append(null)
        stdin = stdout = stderr = null
        if self._config.stdin:
            stdin, ours = self._pipe()
            self.hub.set_input(Input(self._loop, ours))
        if self._binary is not None:
            stdout, stderr = self._binary.stdout, self._binary.stderr
        else:
            if self._config.stdout:
                ours, stdout = self._pipe(reading=True)
                self.hub.add_output(ours, STDOUT)
            if self._config.stderr or scheme == "file":
                ours, stderr = self._pipe(reading=True)
                self.hub.add_output(ours, STDERR)
        self.child = Streams(stdin, stdout, stderr)

    def _pipe(self, *, reading: bool = False) -> tuple[int, int]:
        """A pipe whose other end goes to the process and belongs to the user that the options name."""
        read, write = os.pipe2(os.O_CLOEXEC)
        theirs = write if reading else read
        if self._owner.uid or self._owner.gid:
            os.fchown(theirs, self._owner.uid, self._owner.gid)
        self._child_ends.append(theirs)
        return read, write

    def launched(self) -> None:
        """The runtime has its descriptors: ours of the same ends go, or no end of output would ever be seen."""
        for descriptor in self._child_ends:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._child_ends.clear()

    async def started(self) -> None:
        """Takes over the terminal that the runtime made, and reads on. RuntimeFailure when it sent none."""
        if self.console is not None:
            master = await self.console.receive()
            self._close_console()
            self.hub.set_console(master, with_input=bool(self._config.stdin))
        if self._config.stdin and not stdio_uri.is_stdio_uri(self._config.stdin):
            # As late as the real shim: a client whose input ends before Create has answered has no way yet to say so by
            # CloseIO, and it begins to copy when this end is opened.
            self.hub.set_fifo(FifoSource(self._loop, path_of(self._config.stdin)))
        self.hub.begin()

    def _close_console(self) -> None:
        if self.console is not None:
            self.console.close()
            self.console = None

    async def drain(self) -> None:
        """The process has ended: takes in what it wrote, then ends sinks and sessions."""
        await self.hub.drain()

    def abort(self) -> None:
        """The process does not come: everything goes, attached clients read an end."""
        self.launched()
        self._close_console()
        self.hub.finish()
        self.close()

    def close(self) -> None:
        """After the end: lets a logger go."""
        if self._binary is not None:
            self._binary.terminate()
            self._binary = None


class _PipeSink:
    """The stdout pipe of a logger, for a terminal's output."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    @property
    def congested(self) -> bool:
        return self._writer.congested

    def write(self, stream: int, data: bytes) -> None:
        if stream == STDOUT:
            self._writer.write(data)

    def finish(self, then: object) -> None:
        def close() -> None:
            self._writer.close()
            assert callable(then)
            then()

        self._writer.finish(close)
