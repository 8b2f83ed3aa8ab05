"""Reading a tar archive that may be compressed: told by its first bytes, as the real engine does."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Protocol

from dockerd import errors

__all__ = ["read_uncompressed"]

_CHUNK = 1 << 20


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))


def read_uncompressed(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the archive's bytes, in pieces of at most 1 MiB.

    Raises InvalidParameter for damaged data, NotSupported for zstd.
    """
    head = _read_head(stream)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise errors.NotSupported("an archive compressed with zstd cannot be imported: decompress it first")
    kinds: list[tuple[bytes, type[_Gzip] | type[bz2.BZ2Decompressor] | type[lzma.LZMADecompressor]]] = [
        (b"\x1f\x8b\x08", _Gzip),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    ]
    for magic, kind in kinds:
        if head.startswith(magic):
            yield from _decompressed(head, stream, kind)
            return
    if head:
        yield head
    while piece := stream.read(_CHUNK):
        yield piece


def _read_head(stream: IO[bytes]) -> bytes:
    head = b""
    while len(head) < 6 and (piece := stream.read(_CHUNK)):
        head += piece
    return head


def _decompressed(
    head: bytes, stream: IO[bytes], kind: type[_Gzip] | type[bz2.BZ2Decompressor] | type[lzma.LZMADecompressor]
) -> Iterator[bytes]:
    decompressor: _Decompressor = kind()
    data = head
    try:
        while data:
            piece = decompressor.decompress(data, _CHUNK)
            data = b""
            while piece:
                yield piece
                piece = b"" if decompressor.eof else decompressor.decompress(b"", _CHUNK)
            if decompressor.eof:
                # Archives may be several compressed streams one after another; padding of zeros may follow.
                data = decompressor.unused_data.lstrip(b"\0")
                decompressor = kind()
                if not data:
                    data = stream.read(_CHUNK).lstrip(b"\0")
                    if not data:
                        return
            else:
                data = stream.read(_CHUNK)
    except (zlib.error, OSError, lzma.LZMAError) as error:
        raise errors.InvalidParameter(f"the archive's compression is damaged: {error}") from error
    raise errors.InvalidParameter("the archive's compression is damaged: it ends too early")
