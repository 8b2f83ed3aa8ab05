"""Compressed streams: gzip through isal, zstd through zstandard, both several times faster than zlib."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from typing import IO, Protocol, cast

import zstandard
from isal import isal_zlib

from containerd.errors import InvalidArgument, Unimplemented

__all__ = ["GZIP_LEVEL", "compressor", "decompress", "detect", "read_ahead"]

GZIP_MAGIC = b"\x1f\x8b\x08"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # zstd frames that may come first (RFC 8878, 3.1.2)
GZIP_LEVEL = 2
_GZIP_WINDOW = 31  # 15 bits, and 16 for the gzip header
_PIECE = 256 << 10  # larger allocations go back to the kernel each time, and their page faults cost more than the calls
_GZIP_ERRORS: tuple[type[Exception], ...] = (cast("type[Exception]", isal_zlib.error), EOFError)
_MAX_ZSTD_WINDOW = 1 << 27  # what the zstd program accepts by default: 128 MiB


def detect(start: bytes) -> str:
    """Return ``gzip``, ``zstd`` or ``""`` for a stream that begins with these (at least 4) bytes."""
    if start.startswith(GZIP_MAGIC):
        return "gzip"
    if start.startswith(ZSTD_MAGIC) or (len(start) >= 4 and int.from_bytes(start[:4], "little") in _SKIPPABLE):
        return "zstd"
    return ""


def decompress(chunks: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """Yield what is in a stream of ``compression`` ``gzip``, ``zstd``, ``""``, or ``unknown`` to look for yourself.

    Pieces are at most some MiB large, however well the stream is compressed.
    Raises :class:`InvalidArgument` for a damaged or cut off stream.
    """
    stream = iter(chunks)
    if compression == "unknown":
        first = next(stream, b"")
        while 0 < len(first) < 4:
            more = next(stream, b"")
            if not more:
                break
            first += more
        compression, stream = detect(first), _joined(first, stream)
    if compression == "gzip":
        return _gunzip(stream)
    if compression == "zstd":
        return _unzstd(stream)
    if compression:
        raise Unimplemented(f"unsupported compression {compression}: not implemented")
    return stream


def _joined(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A gzip file may consist of several members (RFC 1952, 2.2); zeros behind the last one are padding."""
    decoder = None
    for chunk in chunks:
        data: bytes = chunk
        while data:
            if decoder is None:
                data = data.lstrip(b"\0") if data[0] == 0 else data
                if not data:
                    break
                decoder = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
            try:
                piece = decoder.decompress(data, _PIECE)
            except _GZIP_ERRORS as error:
                raise InvalidArgument(f"invalid gzip stream: {error}") from error
            if piece:
                yield piece
            if decoder.eof:
                data, decoder = decoder.unused_data, None
            else:
                data = decoder.unconsumed_tail
    if decoder is not None:
        raise InvalidArgument("invalid gzip stream: unexpected end")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).stream_reader(
        cast("IO[bytes]", _Source(chunks)), read_size=_PIECE, read_across_frames=True
    )
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise InvalidArgument(f"invalid zstd stream: {error}") from error


class _Source:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


class Compressor(Protocol):
    """What turns content into a compressed stream."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take content; return what is ready of the stream."""
        ...

    def flush(self) -> bytes:
        """Return the rest of the stream."""
        ...


class _Plain:
    def compress(self, data: bytes | memoryview, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


def compressor(compression: str) -> Compressor:
    """Return a compressor for ``gzip``, ``zstd`` or ``""``. Its output depends on the content alone.

    Raises :class:`Unimplemented` for another name.
    """
    if compression == "gzip":
        made: Compressor = isal_zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        return made
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compressobj()
    if compression:
        raise Unimplemented(f"unsupported compression {compression}: not implemented")
    return _Plain()


def read_ahead(chunks: Iterable[bytes], depth: int = 8) -> Iterator[bytes]:
    """Produce ``chunks`` in a thread of its own, up to ``depth`` ahead: decoding overlaps with what is done with it.

    An exception of the producer is raised where the consumer reads. Closing the generator ends the thread.
    """
    queue: Queue[bytes | BaseException | None] = Queue(depth)
    stopped = threading.Event()

    def put(item: bytes | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.2)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for chunk in chunks:
                if not put(chunk):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
