"""The daemon's own log on stderr, in the real daemon's form: ``time="..." level=info msg="..."``."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["LEVELS", "Formatter", "set_up"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
"""The values of ``--log-level``."""

_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}


class Formatter(logging.Formatter):
    """One line a record; an exception's trace becomes a quoted field of it."""

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        nanoseconds = int(record.created % 1 * 1e9)
        level = _NAMES.get(record.levelno, record.levelname.lower())
        line = f'time="{stamp}.{nanoseconds:09d}Z" level={level} msg={_quote(record.getMessage())}'
        if record.exc_info:
            line += f" trace={_quote(self.formatException(record.exc_info))}"
        return line


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def set_up(level: str, debug: bool) -> None:
    """Send the program's log to stderr from ``level`` on; ``debug`` overrides it."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("dockerd").setLevel(logging.DEBUG if debug else LEVELS[level])
