"""Docker's multiplexed stream: each chunk behind eight bytes that say which stream it belongs to.

Header: the stream (0 stdin, 1 stdout, 2 stderr, 3 system error), three zeros, the chunk's length as a big-endian u32
(Engine API, "Attach to a container", stream format).
"""

from __future__ import annotations

import enum
import struct
from typing import Final

HEADER: Final = struct.Struct(">BxxxI")


class Stream(enum.IntEnum):
    """Number of a stream in the header."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    SYSTEM_ERROR = 3


class FramingError(ValueError):
    """The bytes are not a multiplexed stream."""


def header(stream: int, length: int) -> bytes:
    """The eight bytes in front of a chunk of `length` bytes."""
    return HEADER.pack(stream, length)


def encode(stream: int, data: bytes) -> bytes:
    """A chunk with its header."""
    return HEADER.pack(stream, len(data)) + data


class Decoder:
    """Takes a multiplexed stream apart. A chunk is handed out as it arrives, in several pieces if need be."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = Stream.STDIN
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """The pieces in `data`. FramingError when a header is none."""
        pieces: list[tuple[Stream, bytes]] = []
        position = 0
        while position < len(data):
            if not self._left:
                missing = HEADER.size - len(self._header)
                self._header += data[position : position + missing]
                position += missing
                if len(self._header) < HEADER.size:
                    break
                number, self._left = HEADER.unpack(self._header)
                if number > Stream.SYSTEM_ERROR or self._header[1:4] != b"\0\0\0":
                    raise FramingError(f"not a stream header: {self._header!r}")
                self._stream = Stream(number)
                self._header = b""
                continue
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            pieces.append((self._stream, piece))
        return pieces

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two chunks."""
        return not self._left and not self._header
