"""When a container's log begins a new file: the options ``max-size`` and ``max-file``."""

from __future__ import annotations

import re

from dockerd.errors import InvalidParameter
from dockerd.stdio.target import StreamTarget

__all__ = ["parse_size", "rotation"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def rotation(target: StreamTarget) -> tuple[int, int]:
    """Most bytes of one log file (0: unlimited) and most files. Raises InvalidParameter."""
    options = target.log_options
    size = parse_size(options["max-size"]) if options.get("max-size") else 0
    count = options.get("max-file") or "1"
    if not re.fullmatch(r"[+-]?\d{1,9}", count):
        raise InvalidParameter(f'strconv.Atoi: parsing "{count}": invalid syntax')
    if int(count) < 1:
        raise InvalidParameter("max-file cannot be less than 1")
    if options.get("compress", "false").lower() in ("1", "t", "true") and (int(count) < 2 or not size):
        raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")
    return size, int(count)


def parse_size(text: str) -> int:
    """Read ``10m``, ``512k``, ``1g`` or a number of bytes. Raises InvalidParameter."""
    number = text.strip().lower().removesuffix("b").rstrip("kmg")
    unit = text.strip().lower().removesuffix("b")[len(number) :]
    if not number.isdigit() or unit not in _UNITS:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(number) * _UNITS[unit]
