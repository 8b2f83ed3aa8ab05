"""When a container's log begins a new file: the options ``max-size`` and ``max-file``."""

from __future__ import annotations

from dockerd.errors import InvalidParameter
from dockerd.stdio.target import StreamTarget

__all__ = ["parse_size", "rotation"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def rotation(target: StreamTarget) -> tuple[int, int]:
    """Most bytes of one log file (0: unlimited) and most files. Raises InvalidParameter."""
    options = target.log_options
    size = parse_size(options["max-size"]) if options.get("max-size", "-1") != "-1" else 0
    count = options.get("max-file", "1")
    if not count.isdigit() or count == "0":
        raise InvalidParameter(f"max-file cannot be less than 1: {count!r}")
    if int(count) > 1 and not size:
        raise InvalidParameter("max-file requires max-size to be set")
    return size, int(count)


def parse_size(text: str) -> int:
    """Read ``10m``, ``512k``, ``1g`` or a number of bytes. Raises InvalidParameter."""
    number = text.strip().lower().removesuffix("b").rstrip("kmg")
    unit = text.strip().lower().removesuffix("b")[len(number) :]
    if not number.isdigit() or unit not in _UNITS:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(number) * _UNITS[unit]
