"""A ttrpc server for asyncio: what containerd runs for the events of its shims."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from gantry.ttrpc.errors import Code, TTRPCError
from gantry.ttrpc.protocol import (
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    ProtocolError,
    Request,
    Response,
    Type,
    response_frame,
)
from gantry.ttrpc.server import Call, peer_is_trusted

_log = logging.getLogger(__name__)

Handler = Callable[[Any, Call], Awaitable[Message]]


class Server:
    """Serves services whose handlers are coroutine functions `(request, call) -> response`.

    Calls of one connection run concurrently; each begins in the order of its arrival.
    """

    def __init__(self, *, trusted: Callable[[socket.socket], bool] = peer_is_trusted) -> None:
        self._trusted = trusted
        self._methods: dict[tuple[str, str], tuple[type[Message], Handler]] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()

    def add_service(self, descriptor: ServiceDescriptor, implementation: object) -> None:
        """Serves a service of a generated module; its methods are attributes of the same name."""
        for method in descriptor.methods:
            handler = getattr(implementation, method.name)
            self._methods[descriptor.full_name, method.name] = GetMessageClass(method.input_type), handler

    async def serve(self, listener: socket.socket) -> None:
        """Accepts on a listening unix socket from now on; the server owns it."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        # Not create_unix_server: from Python 3.13 on it removes the socket's file, by then perhaps another's.
        self._servers.append(await loop.create_server(lambda: _Connection(self), sock=listener))

    async def close(self) -> None:
        """Closes listeners and connections; handlers under way are cancelled."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in list(self._connections):
            connection.abort()

    async def _respond(self, payload: bytes) -> Response:
        try:
            request = Request.decode(payload)
            method = self._methods.get((request.service, request.method))
            if method is None:
                raise TTRPCError(Code.UNIMPLEMENTED, f"method {request.service}/{request.method}")
            request_type, handler = method
            message = request_type()
            message.ParseFromString(request.payload)
            timeout = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
            call = Call(request.service, request.method, request.metadata, timeout)
            async with asyncio.timeout(timeout):
                answer = await handler(message, call)
            return Response(answer.SerializeToString())
        except TTRPCError as error:
            return Response(code=error.code, message=error.message)
        except (ProtocolError, DecodeError) as error:
            return Response(code=Code.INVALID_ARGUMENT, message=str(error))
        except TimeoutError:
            return Response(code=Code.DEADLINE_EXCEEDED, message="context deadline exceeded")
        except Exception as error:
            _log.exception("a ttrpc handler failed")
            return Response(code=Code.UNKNOWN, message=f"{type(error).__name__}: {error}")


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sock = transport.get_extra_info("socket")
        # asyncio hands out a TransportSocket, which has the one call that the check needs.
        if not self._server._trusted(sock):
            _log.warning("refused a ttrpc connection of another user")
            transport.abort()
            return
        self._transport = transport
        self._server._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        for frame in self._decoder.feed(data):
            task = asyncio.get_running_loop().create_task(self._serve(frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, frame: Frame) -> None:
        if frame.oversized:
            text = f"message length {frame.oversized} exceed maximum message size of {MAX_PAYLOAD}"
            response = Response(code=Code.RESOURCE_EXHAUSTED, message=text)
        elif frame.type != Type.REQUEST or frame.stream_id % 2 != 1:
            response = Response(
                code=Code.INVALID_ARGUMENT, message="only unary requests with odd stream ids are served"
            )
        else:
            response = await self._server._respond(frame.payload)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(response_frame(frame.stream_id, response))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio names it)
        self._server._connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
