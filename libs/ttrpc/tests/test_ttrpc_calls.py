"""Clients and servers against each other over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import stat
import threading
import time

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2

from gantry.ttrpc import Code, ConnectionLost, DeadlineExceeded, TTRPCError, address, aio, aio_server, client, server
from gantry.ttrpc.protocol import Request, Type, encode_frame

Text = wrappers_pb2.StringValue


def _service():
    file = descriptor_pb2.FileDescriptorProto(name="ttrpc_test.proto", package="test", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    service = file.service.add(name="Echo")
    for name in ("Say", "Later", "Fail", "Break"):
        kind = ".google.protobuf.StringValue"
        service.method.add(name=name, input_type=kind, output_type=kind)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName("test.Echo")


SERVICE = _service()


class Echo:
    """The handlers: at once, deferred, an error, a bug."""

    def __init__(self):
        self.deferred = []
        self.calls = []

    def Say(self, request, call):
        self.calls.append(call)
        return Text(value=request.value)

    def Later(self, request, call):
        answer = server.Deferred()
        self.deferred.append((request.value, answer))
        if request.value == "now":
            answers, self.deferred = self.deferred, []
            for value, waiting in reversed(answers):
                waiting.resolve(Text(value=value))
        return answer

    def Fail(self, request, call):
        raise TTRPCError(Code.NOT_FOUND, f"container {request.value} not found")

    def Break(self, request, call):
        raise ZeroDivisionError("oops")


@contextlib.contextmanager
def serving(path, **options):
    """A selector server on its own thread."""
    selector = selectors.DefaultSelector()
    echo = Echo()
    srv = server.Server(selector, **options)
    srv.add_service(SERVICE, echo)
    srv.serve(address.listen(f"unix://{path}"))
    wake, stop = socket.socketpair()
    selector.register(wake, selectors.EVENT_READ, None)

    def loop():
        while True:
            for key, events in selector.select():
                if key.data is None:
                    return
                key.data(events)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield echo
    finally:
        stop.send(b"x")
        thread.join()
        srv.close()
        wake.close()
        stop.close()
        selector.close()


@pytest.fixture
def path(tmp_path):
    """A socket path longer than sun_path."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    return deep / "echo.sock"


def test_blocking_calls(path):
    """Answers, errors and handler bugs come back as what they are; metadata and timeout arrive."""
    with serving(path) as echo, client.Client.connect(f"unix://{path}") as c:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        meta = [("containerd-namespace-ttrpc", "moby")]
        assert c.call("test.Echo", "Say", Text(value="hi"), Text, timeout=2, metadata=meta).value == "hi"
        assert echo.calls[0].metadata == (("containerd-namespace-ttrpc", "moby"),)
        assert echo.calls[0].timeout == pytest.approx(2)
        for method, code, text in [
            ("Fail", Code.NOT_FOUND, "container x not found"),
            ("Break", Code.UNKNOWN, "ZeroDivisionError: oops"),
            ("Nope", Code.UNIMPLEMENTED, "method Nope"),
        ]:
            with pytest.raises(TTRPCError) as caught:
                c.call("test.Echo", method, Text(value="x"), Text)
            assert (caught.value.code, caught.value.message) == (code, text)
        big = "b" * 3_000_000
        assert c.call("test.Echo", "Say", Text(value=big), Text).value == big


def test_a_late_answer_does_not_disturb(path):
    """After a deadline the connection still works and the late answer is dropped."""
    with serving(path) as echo, client.Client.connect(f"unix://{path}") as c:
        with pytest.raises(DeadlineExceeded):
            c.call("test.Echo", "Later", Text(value="never"), Text, timeout=0.05)
        assert c.call("test.Echo", "Later", Text(value="now"), Text, timeout=5).value == "now"
        assert not echo.deferred


def test_concurrent_calls_out_of_order(path):
    """Two hundred calls wait at once over one connection and are answered in reverse."""

    async def run():
        c = await aio.Client.connect(f"unix://{path}")
        calls = [
            asyncio.create_task(c.call("test.Echo", "Later", Text(value=str(n)), Text, timeout=10)) for n in range(200)
        ]
        await asyncio.sleep(0)
        assert (await c.call("test.Echo", "Later", Text(value="now"), Text)).value == "now"
        assert [(await call).value for call in calls] == [str(n) for n in range(200)]
        with pytest.raises(DeadlineExceeded):
            await c.call("test.Echo", "Later", Text(value="x"), Text, timeout=0.05)
        assert (await c.call("test.Echo", "Say", Text(value="still"), Text)).value == "still"
        await c.close()
        with pytest.raises(ConnectionLost):
            await c.call("test.Echo", "Say", Text(value="x"), Text)

    with serving(path):
        asyncio.run(run())


def test_connection_loss_fails_every_pending_call():
    """When the peer goes away all callers hear of it at once."""

    async def run():
        ours, theirs = socket.socketpair()
        closed = []
        c = await aio.Client.from_socket(ours, on_close=lambda: closed.append(True))
        calls = [asyncio.create_task(c.call("s", "m", Text(), Text)) for _ in range(3)]
        await asyncio.sleep(0)
        theirs.close()
        for call in calls:
            with pytest.raises(ConnectionLost) as caught:
                await call
            assert caught.value.code is Code.UNAVAILABLE
        assert c.closed.is_set()
        assert closed == [True]

    asyncio.run(run())


def test_asyncio_server(path):
    """The asyncio server serves both clients, many calls at once, and maps errors."""

    class Handlers(Echo):
        async def Say(self, request, call):
            return Text(value=request.value)

        async def Later(self, request, call):
            await asyncio.sleep(float(request.value))
            return request

        async def Fail(self, request, call):
            raise TTRPCError(Code.ABORTED, "no")

        async def Break(self, request, call):
            raise KeyError("k")

    async def run():
        srv = aio_server.Server()
        srv.add_service(SERVICE, Handlers())
        await srv.serve(address.listen(f"unix://{path}"))
        c = await aio.Client.connect(f"unix://{path}")
        slow = asyncio.create_task(c.call("test.Echo", "Later", Text(value="0.05"), Text))
        assert (await c.call("test.Echo", "Say", Text(value="a"), Text)).value == "a"
        assert (await slow).value == "0.05"
        for method, code in [("Fail", Code.ABORTED), ("Break", Code.UNKNOWN), ("Nope", Code.UNIMPLEMENTED)]:
            with pytest.raises(TTRPCError) as caught:
                await c.call("test.Echo", method, Text(), Text)
            assert caught.value.code is code
        pending = asyncio.create_task(c.call("test.Echo", "Later", Text(value="60"), Text))
        await asyncio.sleep(0)
        await srv.close()
        with pytest.raises(ConnectionLost):
            await pending

    asyncio.run(run())


def test_an_untrusted_peer_is_refused(path):
    """A connection that the credential check refuses is closed without an answer."""
    with serving(path, trusted=lambda sock: False), client.Client.connect(f"unix://{path}") as c:
        with pytest.raises(ConnectionLost):
            c.call("test.Echo", "Say", Text(), Text, timeout=5)


def test_bad_stream_ids_are_refused(path):
    """Even and reused stream ids get INVALID_ARGUMENT, as from the Go server."""
    with serving(path):
        sock = address.connect(f"unix://{path}", timeout=5)
        request = Request("test.Echo", "Say", Text(value="x").SerializeToString()).encode()
        sock.sendall(encode_frame(2, Type.REQUEST, request))
        assert b"StreamID must be odd" in sock.recv(4096)
        sock.sendall(encode_frame(5, Type.REQUEST, request))
        assert b"StreamID" not in sock.recv(4096)
        sock.sendall(encode_frame(5, Type.REQUEST, request))
        assert b"cannot be re-used" in sock.recv(4096)
        sock.close()


def test_a_unary_call_is_quick(path):
    """A call costs tens of microseconds of processor time for both sides; the budget leaves room for a busy machine."""
    with serving(path), client.Client.connect(f"unix://{path}") as c:
        for _ in range(200):
            c.call("test.Echo", "Say", Text(value="hi"), Text)
        begin = time.process_time()
        for _ in range(1000):
            c.call("test.Echo", "Say", Text(value="hi"), Text)
        assert (time.process_time() - begin) / 1000 < 400e-6
