"""An asyncio ttrpc client: any number of calls at once over one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message

from gantry.ttrpc import address as addresses
from gantry.ttrpc.errors import Code, ConnectionLost, DeadlineExceeded, TTRPCError
from gantry.ttrpc.protocol import FrameDecoder, ProtocolError, Response, Type, metadata_of, request_frame

M = TypeVar("M", bound=Message)


class Client:
    """One connection, used from one event loop. Answers are matched to their calls in whatever order they come.

    When the connection ends, every pending call and every later one raises ConnectionLost; `closed` is set then.
    """

    def __init__(self, on_close: Callable[[], None] | None = None) -> None:
        self._decoder = FrameDecoder()
        self._pending: dict[int, asyncio.Future[Response]] = {}
        self._next_id = 1
        self._transport: asyncio.Transport | None = None
        self._lost: ConnectionLost | None = None
        self._on_close = on_close
        self.closed = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: str, *, timeout: float | None = None, on_close: Callable[[], None] | None = None
    ) -> Client:
        """Connects to `unix:///path`, of any length. OSError (TimeoutError too) when nobody answers there."""
        path = addresses.socket_path(address)
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            with addresses.reachable(path) as name:
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(sock, name)
        except BaseException:
            sock.close()
            raise
        return await cls.from_socket(sock, on_close=on_close)

    @classmethod
    async def from_socket(cls, sock: socket.socket, *, on_close: Callable[[], None] | None = None) -> Client:
        """Takes over a socket that is connected."""
        client = cls(on_close)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: _Connection(client), sock=sock)
        return client

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] | None = None,
    ) -> M:
        """Calls a method and waits for its answer.

        `service` is the full name (`containerd.task.v3.Task`), `timeout` in seconds. Raises the TTRPCError that the
        peer answered, DeadlineExceeded, or ConnectionLost. A cancelled call leaves the connection usable.
        """
        if self._lost is not None or self._transport is None:
            raise ConnectionLost(self._lost.message if self._lost is not None else "ttrpc: closed")
        stream_id = self._next_id
        self._next_id += 2
        frame = request_frame(stream_id, service, method, request.SerializeToString(), timeout, metadata_of(metadata))
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[stream_id] = future
        try:
            self._transport.write(frame)
            if timeout is None:
                payload = (await future).result()
            else:
                async with asyncio.timeout(timeout):
                    payload = (await future).result()
        except TimeoutError:
            raise DeadlineExceeded() from None
        finally:
            self._pending.pop(stream_id, None)
        response = response_type()
        response.ParseFromString(payload)
        return response

    async def close(self) -> None:
        """Ends the connection; pending calls raise ConnectionLost."""
        if self._transport is not None:
            self._transport.abort()
            await self.closed.wait()

    def _connected(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def _received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            future = self._pending.get(frame.stream_id)
            if future is None or future.done() or frame.type != Type.RESPONSE:
                continue
            if frame.oversized:
                future.set_exception(TTRPCError(Code.RESOURCE_EXHAUSTED, f"answer of {frame.oversized} bytes"))
                continue
            try:
                future.set_result(Response.decode(frame.payload))
            except ProtocolError as error:
                future.set_exception(TTRPCError(Code.INTERNAL, str(error)))

    def _disconnected(self, error: Exception | None) -> None:
        self._lost = ConnectionLost(f"ttrpc: closed: {error}" if error else "ttrpc: closed")
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(ConnectionLost(self._lost.message))
        self.closed.set()
        if self._on_close is not None:
            self._on_close()


class _Connection(asyncio.Protocol):
    """Keeps asyncio's callbacks out of the client's public face."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._client._connected(transport)

    def data_received(self, data: bytes) -> None:
        self._client._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client._disconnected(exc)
