"""Log records: logrus's text or JSON lines, to standard error or to the file of --log."""

from __future__ import annotations

import os
import time

from runc import jsontext

DEFAULT_PATH = "/dev/stderr"


def timestamp() -> str:
    """The local time as RFC 3339 with seconds."""
    now = time.localtime()
    offset = now.tm_gmtoff // 60
    zone = "Z" if offset == 0 else f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", now) + zone


class Log:
    """Where records go. One per call of the program; the file is opened for each record, as it may be a FIFO."""

    def __init__(self, path: str = "", form: str = "text", debug: bool = False) -> None:
        self.path = path
        self.form = form
        self.debug_enabled = debug

    @property
    def to_stderr(self) -> bool:
        """Do records go to standard error?"""
        return self.path in ("", DEFAULT_PATH)

    def open_check(self) -> None:
        """Make sure that the log file can be opened. Raises OSError naming it."""
        if not self.to_stderr:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))

    def record(self, level: str, message: str) -> None:
        """Write one record."""
        if self.form == "json":
            line = jsontext.dumps({"level": level, "msg": message, "time": timestamp()})
        else:
            line = f'time="{timestamp()}" level={level} msg={_quote(message)}'
        data = (line + "\n").encode("utf-8", "surrogateescape")
        if self.to_stderr:
            _write_all(2, data)
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)

    def error(self, message: str) -> None:
        """An error: what ended the command."""
        self.record("error", message)

    def warning(self, message: str) -> None:
        """Something that the user may want to know, and that does not end the command."""
        self.record("warning", message)

    def debug(self, message: str) -> None:
        """A step, with --debug."""
        if self.debug_enabled:
            self.record("debug", message)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            return  # nobody reads the log any more; the exit status still tells


def _quote(text: str) -> str:
    plain = text and all((c.isalnum() and c.isascii()) or c in "-._/@^+" for c in text)
    if plain:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
