"""Archives over the Streaming service: bytes in messages, under a window that the receiver opens.

The receiver sends ``WindowUpdate`` with the number of bytes that it will take on top of what it has allowed before; the
sender sends ``Data`` within that.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator

from containerd.anyvalue import AnyValue
from containerd.errors import Cancelled, InvalidArgument
from containerd.streaming import Stream
from containerd.transfer.cancellation import Cancellation
from gantry.contracts.containerd.types.transfer import streaming_pb2 as messages

__all__ = ["StreamReader", "StreamWriter"]

_DATA = messages.Data.DESCRIPTOR.full_name
_WINDOW = messages.WindowUpdate.DESCRIPTOR.full_name
WINDOW = 8 << 20
"""Bytes that a sender may be ahead. Large, so that a round trip does not bound the speed."""
MAX_DATA = 1 << 20
"""Bytes in one message: well below the 4 MiB that a gRPC client takes by default."""


class StreamReader:
    """The bytes that a client sends. Made in the event loop, read in a thread."""

    def __init__(self, stream: Stream, cancellation: Cancellation) -> None:
        self._stream = stream
        self._cancellation = cancellation
        self._pieces: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._window = 0
        self._taken = 0
        self._pump = asyncio.create_task(self._receive())

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes until the client closes its side. Raises :class:`Cancelled`, :class:`InvalidArgument`."""
        while True:
            try:
                piece = self._pieces.get(timeout=0.5)
            except queue.Empty:
                self._cancellation.check()
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            self._taken += len(piece)
            if self._taken >= WINDOW // 4:
                taken, self._taken = self._taken, 0
                asyncio.run_coroutine_threadsafe(self._open(taken), self._loop)
            yield piece

    def close(self) -> None:
        """Take no more, and end the stream for the client. To be called in the event loop."""
        self._pump.cancel()
        self._stream.close()

    async def _open(self, size: int) -> None:
        self._window += size
        try:
            await self._stream.send(AnyValue(_WINDOW, messages.WindowUpdate(update=size).SerializeToString()))
        except Cancelled:
            return  # the client has sent everything and is gone

    async def _receive(self) -> None:
        try:
            await self._open(WINDOW)
            while (value := await self._stream.recv()) is not None:
                if value.type_url.rpartition("/")[2] != _DATA:
                    continue
                data = messages.Data.FromString(value.value).data
                self._window -= len(data)
                if self._window < 0:
                    raise InvalidArgument("import stream: more data than the window allows: invalid argument")
                self._pieces.put(data)
            self._pieces.put(None)
        except asyncio.CancelledError:
            self._pieces.put(Cancelled("import stream was closed: canceled"))
            raise
        except Exception as error:
            self._pieces.put(error)


class StreamWriter:
    """Bytes for a client. Made in the event loop, written to in a thread."""

    def __init__(self, stream: Stream, cancellation: Cancellation) -> None:
        self._stream = stream
        self._cancellation = cancellation
        self._loop = asyncio.get_running_loop()
        self._window = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._pump = asyncio.create_task(self._receive())
        self._buffer = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes. Raises :class:`Cancelled` when the client is gone."""
        self._buffer += data
        if len(self._buffer) >= MAX_DATA:
            self.flush()

    def flush(self) -> None:
        """Send what is collected."""
        if self._buffer:
            self._cancellation.check()
            data, self._buffer = bytes(self._buffer), bytearray()
            asyncio.run_coroutine_threadsafe(self._send(data), self._loop).result()

    def close(self) -> None:
        """End the stream for the client. To be called in the event loop."""
        self._pump.cancel()
        self._closed = True
        self._changed.set()
        self._stream.close()

    async def _send(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            while self._window <= 0:
                if self._closed:
                    raise Cancelled("export stream was closed by the client: canceled")
                self._changed.clear()
                await self._changed.wait()
            piece = data[position : position + min(self._window, MAX_DATA)]
            self._window -= len(piece)
            position += len(piece)
            await self._stream.send(AnyValue(_DATA, messages.Data(data=piece).SerializeToString()))

    async def _receive(self) -> None:
        try:
            while (value := await self._stream.recv()) is not None:
                if value.type_url.rpartition("/")[2] == _WINDOW:
                    self._window += messages.WindowUpdate.FromString(value.value).update
                    self._changed.set()
        finally:
            # A client that sends no more (half-closes) may still read; only the call's end closes the stream.
            await self._gone()

    async def _gone(self) -> None:
        await self._stream.ended.wait()
        self._closed = True
        self._changed.set()
