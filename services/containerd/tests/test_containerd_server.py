from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from containerd import errors, namespaces
from containerd.anyvalue import AnyValue
from containerd.server import Server
from containerd.services.streaming import Streaming
from containerd.streaming import Streams
from gantry.contracts.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives its socket to root")

Handler = Callable[[Any, Any], Awaitable[Any]]


class _Leases(leases_pb2_grpc.LeasesServicer):
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def Create(self, request: Any, context: Any) -> Any:
        return await self._handler(request, context)


def _serve(tmp_path: Path, servicer: Any, register: Any, client: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    async def work() -> None:
        server = Server(1 << 20, 1 << 20)
        server.add(register, servicer)
        path = str(tmp_path / "s")
        await server.start(path)
        try:
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await asyncio.wait_for(client(channel), 20)
        finally:
            await server.stop(0)

    asyncio.run(work())


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "ContainerdError"])
def test_every_error_becomes_its_code(tmp_path: Path, name: str) -> None:
    """A domain error reaches the client with its own code and text."""

    async def handler(request: Any, context: Any) -> Any:
        raise getattr(errors, name)("the text")

    async def client(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await leases_pb2_grpc.LeasesStub(channel).Create(leases_pb2.CreateRequest())
        assert (caught.value.code().name, caught.value.details()) == (getattr(errors, name).code, "the text")

    _serve(tmp_path, _Leases(handler), leases_pb2_grpc.add_LeasesServicer_to_server, client)


def test_what_nobody_foresaw_is_unknown(tmp_path: Path) -> None:
    """A bug is answered too, with the kind of exception in the text."""

    async def handler(request: Any, context: Any) -> Any:
        raise KeyError("oops")

    async def client(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await leases_pb2_grpc.LeasesStub(channel).Create(leases_pb2.CreateRequest())
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert "KeyError" in str(caught.value.details())

    _serve(tmp_path, _Leases(handler), leases_pb2_grpc.add_LeasesServicer_to_server, client)


def test_headers_become_the_context_of_the_call(tmp_path: Path) -> None:
    """Namespace and lease are there in the handler and in the threads it uses, and not in the next call."""
    seen: list[tuple[str, str | None]] = []

    async def handler(request: Any, context: Any) -> Any:
        lease = await asyncio.to_thread(namespaces.current_lease)
        seen.append((namespaces.namespace_required(), lease))
        return leases_pb2.CreateResponse()

    async def client(channel: grpc.aio.Channel) -> None:
        stub = leases_pb2_grpc.LeasesStub(channel)
        metadata = ((namespaces.NAMESPACE_HEADER, "prod"), (namespaces.LEASE_HEADER, "l1"))
        await stub.Create(leases_pb2.CreateRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError, match="namespace is required: failed precondition") as caught:
            await stub.Create(leases_pb2.CreateRequest())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Create(leases_pb2.CreateRequest(), metadata=((namespaces.NAMESPACE_HEADER, "../x"),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    _serve(tmp_path, _Leases(handler), leases_pb2_grpc.add_LeasesServicer_to_server, client)
    assert seen == [("prod", "l1")]


def test_the_socket_is_for_root_alone_and_replaces_a_dead_one(tmp_path: Path) -> None:
    """Mode 0660, also where a killed daemon left its socket; no other file is ever removed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))

    async def handler(request: Any, context: Any) -> Any:
        return leases_pb2.CreateResponse()

    async def client(channel: grpc.aio.Channel) -> None:
        await leases_pb2_grpc.LeasesStub(channel).Create(leases_pb2.CreateRequest())
        assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o660

    _serve(tmp_path, _Leases(handler), leases_pb2_grpc.add_LeasesServicer_to_server, client)
    (tmp_path / "file").write_text("mine")

    async def work() -> None:
        server = Server(1 << 20, 1 << 20)
        with pytest.raises(OSError, match="failed to listen"):
            await server.start(str(tmp_path / "file"))
        with pytest.raises(OSError, match="longer than 107 bytes"):
            await server.start(str(tmp_path / ("x" * 108)))

    asyncio.run(work())
    assert (tmp_path / "file").read_text() == "mine"


def _init(stream_id: str) -> AnyMessage:
    message = streaming_pb2.StreamInit(id=stream_id)
    return AnyMessage(type_url="containerd.services.streaming.v1.StreamInit", value=message.SerializeToString())


def test_a_stream_carries_messages_both_ways(tmp_path: Path) -> None:
    """The stream is registered before it is acknowledged, found by its id, and ends when the daemon closes it."""
    streams = Streams()
    metadata = ((namespaces.NAMESPACE_HEADER, "prod"),)

    async def client(channel: grpc.aio.Channel) -> None:
        call = streaming_pb2_grpc.StreamingStub(channel).Stream(metadata=metadata)
        await call.write(_init("s1"))
        assert (await call.read()).type_url == "google.protobuf.Empty"
        stream = streams.get("prod", "s1")
        await call.write(AnyMessage(type_url="t", value=b"1"))
        assert await stream.recv() == AnyValue("t", b"1")
        for number in range(20):
            await stream.send(AnyValue("n", bytes([number])))
            assert (await call.read()).value == bytes([number])
        await call.done_writing()
        assert await stream.recv() is None
        await stream.send(AnyValue("last", b""))
        stream.close()
        assert (await call.read()).type_url == "last"
        assert await call.read() is grpc.aio.EOF
        with pytest.raises(errors.NotFound):
            streams.get("prod", "s1")
        with pytest.raises(errors.Cancelled):
            await stream.send(AnyValue("late", b""))

    _serve(tmp_path, Streaming(streams), streaming_pb2_grpc.add_StreamingServicer_to_server, client)


def test_a_stream_id_is_used_once(tmp_path: Path) -> None:
    """A second stream of the id is refused; a first message of another type too; a client that goes frees the id."""
    streams = Streams()
    metadata = ((namespaces.NAMESPACE_HEADER, "prod"),)

    async def open_stream(stub: Any, first: AnyMessage) -> Any:
        call = stub.Stream(metadata=metadata)
        await call.write(first)
        await call.read()
        return call

    async def client(channel: grpc.aio.Channel) -> None:
        stub = streaming_pb2_grpc.StreamingStub(channel)
        first = await open_stream(stub, _init("s1"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_stream(stub, _init("s1"))
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_stream(stub, AnyMessage(type_url="other"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = streams.get("prod", "s1")
        first.cancel()
        await stream.ended.wait()
        await open_stream(stub, _init("s1"))

    _serve(tmp_path, Streaming(streams), streaming_pb2_grpc.add_StreamingServicer_to_server, client)


def test_a_large_message_is_refused_with_its_own_code(tmp_path: Path) -> None:
    """The bound on messages holds."""

    async def handler(request: Any, context: Any) -> Any:
        return leases_pb2.CreateResponse()

    async def client(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await leases_pb2_grpc.LeasesStub(channel).Create(leases_pb2.CreateRequest(id="x" * (2 << 20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    _serve(tmp_path, _Leases(handler), leases_pb2_grpc.add_LeasesServicer_to_server, client)
