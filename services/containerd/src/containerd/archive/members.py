"""One entry of a tar archive, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["InvalidArchive", "Member"]

REGULAR: Final = b"0"
HARD_LINK: Final = b"1"
SYMBOLIC_LINK: Final = b"2"
CHARACTER_DEVICE: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"


class InvalidArchive(ValueError):
    """Not a tar archive, or one that is damaged or passes a bound."""


@dataclass(slots=True)
class Member:
    """An entry's header. Names are bytes, as the file system has them.

    ``size`` is the number of bytes that the file will have; ``stored`` how many of them follow in the archive. They
    differ for a sparse file: ``extents`` are then the (offset, length) pairs which the stored bytes fill.
    ``mtime`` is in nanoseconds since 1970. ``xattrs`` maps names to values.
    """

    name: bytes
    type: bytes = REGULAR
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    stored: int = 0
    extents: tuple[tuple[int, int], ...] | None = None
