"""Staying with a process in the foreground: its streams, its terminal, the signals for it, its exit status."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import errno
import fcntl
import os
import select
import sys

from gantry.linux import process as linux_process
from gantry.linux import unix
from gantry.linux.libc import check, libc
from runc import console
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGINFO_SIZE = 128
_PIECE = 65536
_TIOCGWINSZ = 0x5413
SIGPIPE, SIGCHLD, SIGURG, SIGWINCH = 13, 17, 23, 28
# SIGPIPE is ours: somebody stopped reading what we pump.
_NOT_FORWARDED = (SIGCHLD, SIGURG, SIGWINCH, SIGPIPE)
_HELD_BACK = frozenset(range(1, 65)) - {9, 19, 32, 33}  # all but SIGKILL, SIGSTOP, and the C library's own two


class Foreground:
    """One process in the foreground. Used as a context: signals are held back from the start, so that none is lost.

    A container with a terminal gets a new one, which is pumped to ours. One without gets our streams themselves; only
    where these are a terminal it gets pipes instead: it could push input into a terminal (ioctl_tty(2), TIOCSTI).
    """

    def __init__(self, *, terminal: bool, subreaper: bool = False) -> None:
        self.terminal = terminal
        self.child_console: _socket.socket | None = None
        self._subreaper = subreaper and not linux_process.is_child_subreaper()
        self._reap_all = subreaper
        self._console: _socket.socket | None = None
        self._mask: set[int] = set()
        self._signals = -1
        self._attributes: list[Any] | None = None
        self._routes: dict[int, int] = {}
        self._streams: dict[int, int] = {}
        self._master = -1
        self._owned: set[int] = set()

    def __enter__(self) -> Foreground:
        self._mask = set(_signal.pthread_sigmask(_signal.SIG_BLOCK, _HELD_BACK))
        bits = sum(1 << number - 1 for number in _HELD_BACK)
        raw = ctypes.create_string_buffer(bits.to_bytes(128, sys.byteorder), 128)
        self._signals = check(libc.signalfd(-1, raw, os.O_CLOEXEC | os.O_NONBLOCK), "signalfd")
        self._owned.add(self._signals)
        if self._subreaper:
            linux_process.set_child_subreaper()
        if self.terminal:
            self._console, self.child_console = _socket.socketpair(
                _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0
            )
        else:
            for fd in (0, 1, 2):
                if os.isatty(fd):
                    self._replace_stream(fd)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_streams()
        if self._attributes is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._attributes)
        for sock in (self._console, self.child_console):
            if sock is not None:
                sock.close()
        for fd in self._owned:
            os.close(fd)
        if self._subreaper:
            linux_process.set_child_subreaper(False)
        # What is still pending was meant for a process that is gone.
        pending = _signal.sigpending()
        for number in pending & _HELD_BACK:
            _signal.sigtimedwait((number,), 0)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)

    def _replace_stream(self, fd: int) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child, mine = (reader, writer) if fd == 0 else (writer, reader)
        saved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(child, fd, inheritable=True)
        os.close(child)
        self._streams[fd] = saved
        self._owned.add(mine)
        if fd == 0:
            self._routes[0] = mine
        else:
            self._routes[mine] = fd

    def _restore_streams(self) -> None:
        for fd, saved in self._streams.items():
            os.dup2(saved, fd, inheritable=True)
            os.close(saved)
        self._streams.clear()

    def started(self) -> None:
        """The child has its streams: take ours back, and its terminal. Raises RuntimeFailure."""
        self._restore_streams()
        if self._console is None or self.child_console is None:
            return
        self.child_console.close()
        self.child_console = None
        _, descriptors = unix.receive_packet(self._console, 4096)
        if len(descriptors) != 1:
            raise RuntimeFailure("the container sent no terminal")
        self._master = descriptors[0]
        self._owned.add(self._master)
        console.plain_newlines(self._master)
        self._routes = {0: self._master, self._master: 1}
        if os.isatty(0):
            self._make_raw()
            self._resize()

    def _make_raw(self) -> None:
        import termios
        import tty

        self._attributes = termios.tcgetattr(0)
        tty.setraw(0)

    def _resize(self) -> None:
        try:
            size = fcntl.ioctl(0, _TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self._master, console.TIOCSWINSZ, size)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise

    def wait(self, pid: int) -> int:
        """Pump and forward until the process has ended; gives its status as a shell would: 128 and the signal."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        for fd in self._routes:
            poll.register(fd, select.POLLIN)
        status = self._reap(pid)
        while status is None:
            for fd, _ in poll.poll():
                if fd == self._signals:
                    status = self._on_signals(pid)
                elif not self._pump(fd):
                    poll.unregister(fd)
                    self._end_route(fd)
        self._drain()
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    def _reap(self, pid: int) -> int | None:
        while True:
            ended, status = os.waitpid(-1 if self._reap_all else pid, os.WNOHANG)
            if ended == 0:
                return None
            if ended == pid:
                return status

    def _on_signals(self, pid: int) -> int | None:
        status = None
        while True:
            try:
                raw = os.read(self._signals, _SIGINFO_SIZE)
            except BlockingIOError:
                return status
            number = int.from_bytes(raw[:4], sys.byteorder)
            if number == SIGCHLD:
                status = self._reap(pid) if status is None else status
            elif number == SIGWINCH and self._master >= 0:
                self._resize()
            elif number not in _NOT_FORWARDED and status is None:
                os.kill(pid, number)

    def _pump(self, source: int) -> bool:
        """Carry one piece; False when the source has ended, or nobody takes it any more."""
        try:
            piece = os.read(source, _PIECE)
            _write_all(self._routes[source], piece)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # EIO: the last slave of a terminal was closed
                return False
            raise
        return bool(piece)

    def _end_route(self, source: int) -> None:
        target = self._routes.pop(source)
        if source == 0 and target != self._master:
            # The end of our standard input is the end of the container's.
            self._owned.discard(target)
            os.close(target)

    def _drain(self) -> None:
        """What was written before the end is still in the pipes or the terminal."""
        poll = select.poll()
        for source in [source for source in self._routes if source != 0]:
            poll.register(source, select.POLLIN)
            while poll.poll(0) and self._pump(source):
                continue
            poll.unregister(source)


def _write_all(fd: int, piece: bytes) -> None:
    """Write everything, to a descriptor that may not block as well: it is shared with whoever made it so."""
    while piece:
        try:
            piece = piece[os.write(fd, piece) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
