"""Named streams between a client and the daemon, both ways, for what does not fit into one request.

A client opens a stream under an id of its choice (Streaming.Stream) and then names the id in another call, the
progress or the archive of a transfer for one. The two find each other here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound

__all__ = ["Stream", "Streams"]


class Stream:
    """One open stream, as seen by the daemon. Used in the event loop; from a thread use the ``..._blocking`` forms."""

    def __init__(
        self,
        send: Callable[[AnyValue], Awaitable[None]],
        received: AsyncIterator[AnyValue],
    ) -> None:
        self._send = send
        self._received = received
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

    async def send(self, value: AnyValue) -> None:
        """Send one message to the client. Raises :class:`Cancelled` when the stream is closed."""
        async with self._sending:
            if self.ended.is_set():
                raise Cancelled("stream is closed: canceled")
            await self._send(value)

    async def recv(self) -> AnyValue | None:
        """Return the client's next message; None when the client sends no more."""
        if self.ended.is_set():
            return None
        return await anext(self._received, None)

    def close(self) -> None:
        """End the stream for the client. May be called more than once."""
        self.ended.set()

    def send_blocking(self, value: AnyValue) -> None:
        """:meth:`send` for a thread other than the loop's."""
        asyncio.run_coroutine_threadsafe(self.send(value), self._loop).result()

    def recv_blocking(self) -> AnyValue | None:
        """:meth:`recv` for a thread other than the loop's."""
        return asyncio.run_coroutine_threadsafe(self.recv(), self._loop).result()

    def close_blocking(self) -> None:
        """:meth:`close` for a thread other than the loop's."""
        self._loop.call_soon_threadsafe(self.close)


class Streams:
    """The streams that are open, by namespace and id."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}

    def register(self, namespace: str, stream_id: str, stream: Stream) -> None:
        """Make a stream known. Raises :class:`AlreadyExists`, :class:`InvalidArgument` for an empty id."""
        if not stream_id:
            raise InvalidArgument("stream id must be provided: invalid argument")
        if (namespace, stream_id) in self._streams:
            raise AlreadyExists(f'stream "{stream_id}": already exists')
        self._streams[namespace, stream_id] = stream

    def unregister(self, namespace: str, stream_id: str) -> None:
        """Forget a stream and end it."""
        stream = self._streams.pop((namespace, stream_id), None)
        if stream is not None:
            stream.close()

    def get(self, namespace: str, stream_id: str) -> Stream:
        """Return an open stream. Raises :class:`NotFound`."""
        stream = self._streams.get((namespace, stream_id))
        if stream is None:
            raise NotFound(f'stream "{stream_id}": not found')
        return stream

    def close(self) -> None:
        """End every stream: the daemon stops."""
        for stream in self._streams.values():
            stream.close()
