"""The CLI on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios

from support.engine import Engine


def read_until(descriptor: int, wanted: bytes, seconds: float = 20) -> bytes:
    """Read from a terminal until ``wanted`` was seen."""
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        assert ready, f"{wanted!r} did not come; so far {seen!r}"
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            chunk = b""
        assert chunk, f"the terminal closed before {wanted!r}; so far {seen!r}"
        seen += chunk
    return seen


def on_terminal(docker: Engine, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the CLI on a terminal of 33 rows and 101 columns; returns it and the terminal's other end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = docker.popen(*arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    return process, master
