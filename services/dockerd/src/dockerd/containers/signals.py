"""Signals by the names and numbers that clients write."""

from __future__ import annotations

import signal

from dockerd import errors

__all__ = ["parse"]

_NUMBERS = {entry.name.removeprefix("SIG"): int(entry) for entry in signal.Signals}
_NUMBERS |= {f"RTMIN+{offset}": signal.SIGRTMIN + offset for offset in range(1, 16)}
_NUMBERS |= {f"RTMAX-{offset}": signal.SIGRTMAX - offset for offset in range(1, 15)}
_NUMBERS |= {"CLD": signal.SIGCHLD, "POLL": signal.SIGIO, "IOT": signal.SIGABRT, "UNUSED": signal.SIGSYS}
_LARGEST = signal.SIGRTMAX


def parse(text: str) -> int:
    """The number of ``15``, ``TERM`` or ``SIGTERM``, in any case. Raises InvalidParameter (``invalid signal: x``)."""
    if text.isascii() and text.isdecimal():
        number = int(text)
        if 0 < number <= _LARGEST:
            return number
    else:
        found = _NUMBERS.get(text.upper().removeprefix("SIG"))
        if found is not None:
            return int(found)
    raise errors.InvalidParameter(f"invalid signal: {text}")
