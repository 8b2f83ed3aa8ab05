"""The shim's own log: lines in logrus's text form on stderr, which is the bundle's `log` fifo that containerd reads."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Final

_LEVELS: Final = {"WARNING": "warning", "CRITICAL": "fatal"}


class Handler(logging.Handler):
    """Writes to a descriptor that may be full or have nobody at the other end: a log never holds up a container."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._fields = ""

    def set_fields(self, **fields: str) -> None:
        """Fields that each line carries."""
        self._fields = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())

    def emit(self, record: logging.LogRecord) -> None:
        """One line, or none when the descriptor does not take it."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        fraction = int(record.created % 1 * 1e9)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        line = f'time="{moment}.{fraction:09d}Z" level={level} msg={_quoted(message)}{self._fields}\n'
        try:
            os.write(self._descriptor, line.encode("utf-8", "replace"))
        except OSError:
            return


def _quoted(text: str) -> str:
    return text if text and text.isalnum() else json.dumps(text, ensure_ascii=False)


def set_up(debug: bool, **fields: str) -> None:
    """Makes stderr the log of this process."""
    handler = Handler()
    handler.set_fields(**fields)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)


def open_fifo(path: str) -> None:
    """Puts the bundle's log fifo in place of stderr; /dev/null when there is none.

    Opened for reading too, so that neither opening nor writing waits for, or dies of, a reader that is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(descriptor, 2)
    os.close(descriptor)
