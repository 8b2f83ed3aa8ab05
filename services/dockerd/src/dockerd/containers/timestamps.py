"""Moments as the API writes them: RFC 3339 in UTC, nanoseconds without the zeros at the end."""

from __future__ import annotations

import calendar
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from dockerd.containers.model import ZERO_TIME

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["from_nanoseconds", "from_protobuf", "now", "to_nanoseconds"]

_FORM = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z")


def now() -> str:
    """This moment."""
    return from_nanoseconds(time.time_ns())


def from_nanoseconds(nanoseconds: int) -> str:
    """The moment so many nanoseconds after 1970."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


@lru_cache(maxsize=4096)  # listings ask for the same moments again and again
def to_nanoseconds(text: str) -> int:
    """Nanoseconds after 1970 of a moment that this module wrote; 0 for the moment that has not been."""
    if text == ZERO_TIME:
        return 0
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"not a moment: {text!r}")
    seconds = calendar.timegm(tuple(int(part) for part in match.groups()[:6]))
    return seconds * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))


def from_protobuf(moment: Timestamp) -> str:
    """A moment of containerd's; now, when it has none."""
    nanoseconds = moment.ToNanoseconds()
    return from_nanoseconds(nanoseconds) if nanoseconds > 0 else now()
