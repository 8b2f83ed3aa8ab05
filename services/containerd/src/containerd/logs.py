"""Log lines as containerd writes them: ``time="..." level=info msg="..." id=...`` on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["LEVELS", "configure"]

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_NAMES = {TRACE: "trace", 10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
_PLAIN = set(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_UNQUOTED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+:")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds, fraction = divmod(record.created, 1)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(fraction * 1e9):09d}Z"
        fields = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        line = f'time="{stamp}" level={_NAMES.get(record.levelno, "info")} msg={_quoted(record.getMessage())}'
        return line + "".join(f" {key}={_quoted(str(value))}" for key, value in fields.items())


class _Objects(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = {key: str(value) for key, value in record.__dict__.items() if key not in _PLAIN}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        level = _NAMES.get(record.levelno, "info")
        return json.dumps({**fields, "level": level, "msg": record.getMessage(), "time": stamp})


def configure(level: str, form: str = "text") -> None:
    """Send every record of ``level`` and above to standard error. Raises ValueError for an unknown level or form."""
    if level not in LEVELS:
        raise ValueError(f'not a valid log level: "{level}" (one of {", ".join(LEVELS)})')
    if form not in ("text", "json"):
        raise ValueError(f'unsupported log format: "{form}" (text or json)')
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if form == "text" else _Objects())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for noisy in ("asyncio", "urllib3", "grpc"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.INFO))


def _quoted(text: str) -> str:
    if text and all(character in _UNQUOTED for character in text):
        return text
    return json.dumps(text, ensure_ascii=False)
