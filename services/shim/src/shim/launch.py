"""Starting programs below the shim: fork, and then either call a Python program's entry point or exec the file.

Warm and cold are the same to the program: argv, working directory, three standard streams, no other descriptor, default
signal handling, and the signal that ends it with the shim (as containerd's own shim has its runtime calls).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gantry.linux import process as linux_process
from shim.loop import Future, Loop
from shim.reaper import Exit, Reaper


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A console script whose code this process has loaded, and the file that it is installed as."""

    path: str
    name: str
    call: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors of standard input, output and error."""

    stdin: int
    stdout: int
    stderr: int


class Launcher:
    """Forks and execs for one shim. `warm` holds the entry points that need no exec."""

    def __init__(self, loop: Loop, reaper: Reaper, scripts: str, warm: Sequence[EntryPoint] = ()) -> None:
        self._loop = loop
        self._reaper = reaper
        self._scripts = scripts
        self._warm = {entry.path: entry for entry in warm}
        self._found: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Where a program is: beside our own, then in PATH. FileNotFoundError with the text of Go's exec package."""
        if "/" in name:
            return name
        path = self._found.get(name)
        if path is None:
            path = self._found[name] = find_program(name, self._scripts)
        return path

    def launch(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        cwd: str,
        streams: Streams,
        environment: Mapping[str, str] | None = None,
        pass_descriptors: Sequence[int] = (),
        outlives_shim: bool = False,
    ) -> tuple[int, Future[Exit]]:
        """Starts a program; gives its pid and the future of its exit.

        `pass_descriptors` become 3, 4, 5... in it. FileNotFoundError when there is no such program; what goes wrong
        later in the child is written to its stderr, and its status is 127.
        """
        path = self.find(program)
        entry = self._warm.get(os.path.realpath(path)) if self._warm else None
        argv = [program, *arguments]
        pid = os.fork()
        if not pid:
            if not outlives_shim:
                linux_process.set_parent_death_signal(signal.SIGKILL)
            _child(path, argv, entry, cwd, streams, environment, pass_descriptors)
        ended: Future[Exit] = self._loop.future()
        self._reaper.claim(pid, ended.set_result)
        return pid, ended


def find_program(name: str, scripts: str) -> str:
    """Looks in the directory of our own console script, then in PATH."""
    for directory in (scripts, *os.environ.get("PATH", os.defpath).split(os.pathsep)):
        path = os.path.join(directory, name)
        if directory and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f'exec: "{name}": executable file not found in $PATH')


def _child(
    path: str,
    argv: list[str],
    entry: EntryPoint | None,
    cwd: str,
    streams: Streams,
    environment: Mapping[str, str] | None,
    pass_descriptors: Sequence[int],
) -> NoReturn:
    status = 127
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _place_descriptors([streams.stdin, streams.stdout, streams.stderr, *pass_descriptors])
        os.chdir(cwd)
        variables = dict(os.environ if environment is None else environment)
        # A notification socket of the daemon's service manager is not the container's business.
        variables.pop("NOTIFY_SOCKET", None)
        if entry is None:
            # Python ignores these; a program that is executed would inherit that.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.execve(path, argv, variables)  # noqa: S606 (there is no shell to be wary of)
        if environment is not None:
            os.environ.clear()
            os.environ.update(variables)
        status = _call(entry, argv)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{argv[0]}: {error}\n".encode())
    finally:
        os._exit(status)


def _place_descriptors(descriptors: list[int]) -> None:
    """Moves them to 0, 1, 2... and closes all others."""
    above = len(descriptors)
    # One of them may stand where another has to go.
    moved = [os.dup(fd) if fd < above and fd != place else fd for place, fd in enumerate(descriptors)]
    for place, fd in enumerate(moved):
        if fd == place:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, place)
    linux_process.close_range(above)


def _call(entry: EntryPoint, argv: list[str]) -> int:
    """Runs a console script as its wrapper would: sys.exit's argument becomes the status."""
    linux_process.set_name(entry.name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    sys.argv[:] = argv
    with _flushing():
        try:
            result = entry.call()
        except SystemExit as leave:
            result = leave.code
    if result is None:
        return 0
    if isinstance(result, int):
        return result & 0xFF
    os.write(2, f"{result}\n".encode())
    return 1


@contextlib.contextmanager
def _flushing() -> Iterator[None]:
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            # A closed or broken pipe at the end is not the program's failure.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
