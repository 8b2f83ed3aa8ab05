"""Hooks: programs at points of the life cycle, with the state on standard input (config.md "POSIX-platform Hooks")."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import time

from runc import jsontext
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Hook, Hooks

SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25
_OUTPUT_MAX = 65536
_EXIT_POLL_MS = 1000


def run(kind: str, hooks: Hooks, state: dict[str, object], env: dict[str, str] | None = None) -> None:
    """Run the hooks of a kind in order. Raises RuntimeFailure at the first that fails.

    env: for hooks that name none of their own, instead of this process's.
    """
    listed: list[Hook] = hooks.get(kind) or []  # type: ignore[assignment]
    text = jsontext.dumps(state).encode("utf-8", "surrogateescape") if listed else b""
    for index, hook in enumerate(listed):
        try:
            _run_one(hook, text, dict(os.environ) if env is None else env)
        except RuntimeFailure as failure:
            raise RuntimeFailure(f"error running {kind} hook #{index}: {failure.message}") from failure


def _run_one(hook: Hook, text: bytes, env: dict[str, str]) -> None:
    if "env" in hook:
        env = dict(item.partition("=")[::2] for item in hook["env"])
    argv = hook.get("args") or [hook["path"]]
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            hook["path"],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin_read, 0),
                (os.POSIX_SPAWN_DUP2, out_write, 1),
                (os.POSIX_SPAWN_DUP2, out_write, 2),
            ],
            setsigdef=[SIGPIPE, SIGXFSZ],
            setsigmask=[],
        )
    except OSError as error:
        os.close(stdin_write)
        os.close(out_read)
        raise RuntimeFailure(f"fork/exec {hook['path']}: {system_text(error)}") from error
    finally:
        os.close(stdin_read)
        os.close(out_write)
    os.set_blocking(stdin_write, False)
    os.set_blocking(out_read, False)
    status, output = _attend(pid, stdin_write, text, out_read, hook.get("timeout"))
    if status != 0:
        how = f"exit status {status}" if status > 0 else f"signal: {signal_text(-status)}"
        shown = output.decode("utf-8", "replace").strip()
        raise RuntimeFailure(f"{how}, stdout and stderr: {shown}" if shown else how)


def signal_text(number: int) -> str:
    """What a signal is called, in lower case as Go programs print it: `bad system call`."""
    text = _signal.strsignal(number) or ""
    return (text[:1].lower() + text[1:]) or str(number)


def _attend(pid: int, stdin: int, text: bytes, out: int, timeout: int | None) -> tuple[int, bytes]:
    """Feed, listen and wait; gives the exit code (negative: signal) and the output's beginning."""
    deadline = time.monotonic() + timeout if timeout else None
    output = b""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(out, select.POLLIN)
    poll.register(stdin, select.POLLOUT)
    open_fds = {stdin, out}
    try:
        while True:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            events = dict(poll.poll(None if left is None else int(left * 1000) + 1))
            if pidfd in events:
                break
            if deadline is not None and time.monotonic() >= deadline:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
                raise RuntimeFailure(f"hook ran past specified timeout of {timeout}.0s")
            if stdin in events:
                try:
                    text = text[os.write(stdin, text) :]
                except BrokenPipeError:
                    text = b""  # a hook need not read its state
                except BlockingIOError:
                    continue
                if not text:
                    poll.unregister(stdin)
                    open_fds.discard(stdin)
                    os.close(stdin)
            if out in events:
                output = _take(out, output, poll, open_fds)
        if out in open_fds:
            output = _take(out, output, None, open_fds)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output
    finally:
        os.close(pidfd)
        for fd in open_fds:
            os.close(fd)


def _take(out: int, output: bytes, poll: select.poll | None, open_fds: set[int]) -> bytes:
    try:
        piece = os.read(out, _OUTPUT_MAX)
    except BlockingIOError:
        return output
    if not piece and poll is not None:
        poll.unregister(out)
        open_fds.discard(out)
        os.close(out)
    return (output + piece)[:_OUTPUT_MAX]
