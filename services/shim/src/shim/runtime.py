"""The OCI runtime as the shim sees it: a command line, awaited while the loop goes on.

Arguments are those that containerd's shim gives, so that any runtime that serves that one serves this one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shim.errors import NotFound, RuntimeFailure
from shim.launch import Launcher, Streams
from shim.options import DEFAULT_ROOT, Options

DEFAULT_COMMAND = "runc"


class Runtime(Protocol):
    """What the shim asks of a runtime. Errors are RuntimeFailure with the runtime's own text."""

    async def create(self, container: str, pid_file: str, streams: Streams | None, console_socket: str = "") -> None:
        """Makes the container; without streams the process has the terminal sent to `console_socket`."""

    async def start(self, container: str) -> None:
        """Lets the container's process go."""

    async def exec(
        self, container: str, process: bytes, pid_file: str, streams: Streams | None, console_socket: str = ""
    ) -> None:
        """Runs one more process, described by a runtime-spec process object in JSON, and leaves it running."""

    async def kill(self, container: str, signal: int, everything: bool) -> None:
        """Signals the init process, or all. NotFound when it has ended."""

    async def delete(self, container: str, force: bool = False) -> None:
        """Removes what the runtime keeps of the container; one that is gone already is fine."""

    async def pause(self, container: str) -> None:
        """Freezes all processes."""

    async def resume(self, container: str) -> None:
        """Thaws them."""

    async def update(self, container: str, resources: bytes) -> None:
        """Sets resource limits, a runtime-spec resources object in JSON."""

    async def pids(self, container: str) -> list[int]:
        """All processes in the container."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    status: int
    output: bytes
    error: str

    def describe(self) -> str:
        """As Go's exec package words it, with what the command printed."""
        text = f"exit status {self.status}" if self.status < 128 else f"signal: {self.status - 128}"
        printed = self.output.decode("utf-8", "replace").strip()
        return f"{text}: {printed}" if printed else text


class CommandLineRuntime:
    """A runtime that is a program: `runc` and what has its command line."""

    def __init__(self, launcher: Launcher, options: Options, namespace: str, bundle: str) -> None:
        self._launcher = launcher
        self._program = options.binary_name or DEFAULT_COMMAND
        self._options = options
        self._bundle = bundle
        self._log = os.path.join(bundle, "log.json")
        self._global = [
            "--root",
            os.path.join(options.root or DEFAULT_ROOT, namespace),
            "--log",
            self._log,
            "--log-format",
            "json",
            *(["--systemd-cgroup"] if options.systemd_cgroup else []),
        ]

    async def create(self, container: str, pid_file: str, streams: Streams | None, console_socket: str = "") -> None:
        arguments = ["create", "--bundle", self._bundle, *_console(console_socket), "--pid-file", pid_file]
        if self._options.no_pivot_root:
            arguments.append("--no-pivot")
        if self._options.no_new_keyring:
            arguments.append("--no-new-keyring")
        await self._checked("OCI runtime create failed", [*arguments, container], streams)

    async def start(self, container: str) -> None:
        await self._checked("OCI runtime start failed", ["start", container])

    async def exec(
        self, container: str, process: bytes, pid_file: str, streams: Streams | None, console_socket: str = ""
    ) -> None:
        path = pid_file + ".json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, process)
            os.close(descriptor)
            arguments = ["exec", "--process", path, *_console(console_socket), "--detach", "--pid-file", pid_file]
            await self._checked("OCI runtime exec failed", [*arguments, container], streams)
        finally:
            os.unlink(path)

    async def kill(self, container: str, signal: int, everything: bool) -> None:
        outcome = await self._run(["kill", *(["--all"] if everything else []), container, str(signal)])
        if not outcome.status:
            return
        text = outcome.describe()
        if any(known in text.lower() for known in ("process already finished", "not running", "no such process")):
            raise NotFound("process already finished: not found")
        if "does not exist" in text:
            raise NotFound("no such container: not found")
        raise RuntimeFailure(f"unknown error after kill: {text}")

    async def delete(self, container: str, force: bool = False) -> None:
        outcome = await self._run(["delete", *(["--force"] if force else []), container])
        if outcome.status and "does not exist" not in outcome.describe():
            raise _failure("failed to delete task", outcome)

    async def pause(self, container: str) -> None:
        await self._checked("OCI runtime pause failed", ["pause", container])

    async def resume(self, container: str) -> None:
        await self._checked("OCI runtime resume failed", ["resume", container])

    async def update(self, container: str, resources: bytes) -> None:
        stdin = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            os.write(stdin, resources)
            os.lseek(stdin, 0, os.SEEK_SET)
            await self._checked("OCI runtime update failed", ["update", "--resources=-", container], stdin=stdin)
        finally:
            os.close(stdin)

    async def pids(self, container: str) -> list[int]:
        outcome = await self._checked("OCI runtime ps failed", ["ps", "--format", "json", container])
        try:
            pids = json.loads(outcome.output) or []
        except ValueError:
            raise RuntimeFailure(f"OCI runtime ps failed: not JSON: {outcome.output[:200]!r}") from None
        return [int(pid) for pid in pids]

    async def _checked(
        self, what: str, arguments: Sequence[str], streams: Streams | None = None, stdin: int | None = None
    ) -> _Outcome:
        try:
            outcome = await self._run(arguments, streams, stdin)
        except FileNotFoundError as error:
            # The words of the real shim, which looks for the runtime's log first.
            log = f"open {self._log}: no such file or directory"
            raise RuntimeFailure(f"{what}: unable to retrieve OCI runtime error ({log}): {error}") from None
        if outcome.status:
            raise _failure(what, outcome)
        return outcome

    async def _run(
        self, arguments: Sequence[str], streams: Streams | None = None, stdin: int | None = None
    ) -> _Outcome:
        """Without streams, what the command prints is collected in a memfd: it never fills and is never polled."""
        logged = _size(self._log)
        null = captured = -1
        try:
            if streams is None:
                captured = os.memfd_create("output", os.MFD_CLOEXEC)
                if stdin is None:
                    stdin = null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                streams = Streams(stdin, captured, captured)
            _, ended = self._launcher.launch(
                self._program, [*self._global, *arguments], cwd=self._bundle, streams=streams
            )
            exited = await ended
            output = b"" if captured < 0 else os.pread(captured, 1 << 20, 0)
        finally:
            for descriptor in (null, captured):
                if descriptor >= 0:
                    os.close(descriptor)
        return _Outcome(exited.status, output, _last_error(self._log, logged) if exited.status else "")


def _failure(what: str, outcome: _Outcome) -> RuntimeFailure:
    return RuntimeFailure(f"{what}: {outcome.error or outcome.describe()}")


def _console(socket: str) -> list[str]:
    return ["--console-socket", socket] if socket else []


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _last_error(path: str, offset: int) -> str:
    """The last message of level error that the runtime logged behind `offset`."""
    message = ""
    try:
        with open(path, "rb") as log:
            log.seek(offset)
            lines = log.read(1 << 20).splitlines()
    except OSError:
        return ""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            message = str(entry.get("msg", "")).strip()
    return message


def read_pid_file(path: str) -> int:
    """The pid that the runtime wrote. RuntimeFailure when it wrote none."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
        if pid <= 0:  # to a signal these mean a process group
            raise ValueError(f"{pid} is no process")
        return pid
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"failed to retrieve OCI runtime container pid: {error}") from None
