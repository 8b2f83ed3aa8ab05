"""The server as clients meet it: a real gunicorn on a unix socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = os.path.dirname(__file__)


class Server:
    """A running server and how to talk to it."""

    def __init__(self, directory: Path) -> None:
        (directory / "daemon.json").write_text('{"labels": ["a=1"]}')
        self.directory = directory
        self.path = str(directory / "s.sock")
        script = os.path.join(HERE, "front_server.py")
        self.log = open(directory / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, script, str(directory)], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def connect(self) -> socket.socket:
        """A new connection."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(self.path)
        return client

    def ask(self, request: str, body: bytes = b"") -> Reply:
        """Send one request, and read its reply with as much body as it announces."""
        with self.connect() as client:
            client.sendall(request.encode() + b"\r\n\r\n" + body)
            return read_reply(client)

    def get(self, path: str) -> Reply:
        """GET."""
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: d")

    def stop(self) -> None:
        """End it, and show what it had to say."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        self.log.seek(0)
        print(self.log.read())
        self.log.close()


@dataclass
class Reply:
    """A parsed reply."""

    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes
    names: list[str] = field(default_factory=list)

    @property
    def json(self) -> dict[str, object]:
        """The body as JSON."""
        value: dict[str, object] = json.loads(self.body)
        return value


def read_head(client: socket.socket) -> tuple[Reply, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        assert piece, data
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    _, status, phrase = first.split(" ", 2)
    pairs = [line.split(": ", 1) for line in lines]
    return Reply(int(status), phrase, {name.lower(): value for name, value in pairs}, b"", [n for n, _ in pairs]), rest


def read_reply(client: socket.socket) -> Reply:
    reply, rest = read_head(client)
    length = int(reply.headers.get("content-length", "0"))
    while len(rest) < length:
        rest += client.recv(65536)
    reply.body = rest
    return reply


def receive(client: socket.socket, until: bytes) -> bytes:
    data = b""
    while until not in data:
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not harm it."""
    made = Server(tmp_path_factory.mktemp("s"))
    yield made
    made.stop()


# What a real engine (28.5.2, API 1.51) answers, captured; the version numbers are this engine's.
COMMON = {"api-version": "1.50", "docker-experimental": "false", "ostype": "linux", "server": "Docker/0.1.0 (linux)"}
CAPTURED = [
    ("GET /_ping", 200, "OK", "text/plain; charset=utf-8", b"OK", True),
    ("GET /v1.24/_ping", 200, "OK", "text/plain; charset=utf-8", b"OK", True),
    ("GET /nonsense", 404, "Not Found", "application/json", b'{"message":"page not found"}\n', False),
    ("GET /v1.41/nonsense", 404, "Not Found", "application/json", b'{"message":"page not found"}\n', False),
    ("DELETE /v1.41/version", 404, "Not Found", "application/json", b'{"message":"page not found"}\n', False),
    ("GET /vfoo/version", 404, "Not Found", "application/json", b'{"message":"page not found"}\n', False),
    ("GET /version/", 404, "Not Found", "application/json", b'{"message":"page not found"}\n', False),
    (
        "GET /v1.99/_ping",
        400,
        "Bad Request",
        "application/json",
        b'{"message":"client version 1.99 is too new. Maximum supported API version is 1.50"}\n',
        True,
    ),
    (
        "GET /v1.23/_ping",
        400,
        "Bad Request",
        "text/plain; charset=utf-8",
        (
            b"client version 1.23 is too old. Minimum supported API version is 1.24, "
            b"please upgrade your client to a newer version\n"
        ),
        True,
    ),
    ("GET /events?filters=xx", 400, "Bad Request", "application/json", b'{"message":"invalid filter"}\n', True),
    (
        "GET /events?since=10&until=5",
        400,
        "Bad Request",
        "application/json",
        b'{"message":"`since` time (10) cannot be after `until` time (5)"}\n',
        True,
    ),
    (
        "GET /events?since=x",
        500,
        "Internal Server Error",
        "application/json",
        b'{"message":"strconv.ParseInt: parsing \\"x\\": invalid syntax"}\n',
        True,
    ),
]


@pytest.mark.parametrize(("request_line", "status", "phrase", "kind", "body", "routed"), CAPTURED)
def test_replies_are_those_of_the_real_engine(
    server: Server, request_line: str, status: int, phrase: str, kind: str, body: bytes, routed: bool
) -> None:
    """Status, phrase, media type, body, and the headers that clients negotiate by."""
    reply = server.ask(f"{request_line} HTTP/1.1\r\nHost: d")
    assert (reply.status, reply.phrase, reply.headers["content-type"], reply.body) == (status, phrase, kind, body)
    assert reply.headers["content-length"] == str(len(body))
    if routed:
        assert {name: reply.headers.get(name) for name in COMMON} == COMMON
    assert len(reply.names) == len(set(reply.names))


def test_head_of_ping(server: Server) -> None:
    """What every client asks first: no body, and its length is zero."""
    with server.connect() as client:
        client.sendall(b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        reply = read_reply(client)
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")
        assert reply.headers["api-version"] == "1.50"
        assert reply.headers["cache-control"] == "no-cache, no-store, must-revalidate"
        client.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")  # the connection is kept
        assert read_reply(client).body == b"OK"


def test_head_of_anything_else_is_no_page(server: Server) -> None:
    """The real engine routes HEAD for ping and archives only."""
    with server.connect() as client:
        client.sendall(b"HEAD /version HTTP/1.1\r\nHost: d\r\n\r\n")
        reply, rest = read_head(client)
        assert (reply.status, rest) == (404, b"")


def test_options_is_answered_everywhere(server: Server) -> None:
    """With nothing but the headers."""
    reply = server.ask("OPTIONS /version HTTP/1.1\r\nHost: d")
    assert (reply.status, reply.headers["content-length"]) == (200, "0")
    assert "content-type" not in reply.headers


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("conflict", 409, b'{"message":"it is taken"}\n'),
        ("same", 304, b""),
        ("bug", 500, b'{"message":"ZeroDivisionError: oops"}\n'),
    ],
)
def test_errors_become_statuses(server: Server, kind: str, status: int, body: bytes) -> None:
    """The domain's errors, and the engine's own faults."""
    reply = server.get(f"/probe/fail/{kind}")
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize("request_text", ["GARBAGE", "GET / HTTP/9.9", "GET /x HTTP/1.1\r\nbad header: x\x00y"])
def test_what_is_no_http_is_answered_in_json(server: Server, request_text: str) -> None:
    """And the connection is closed."""
    with server.connect() as client:
        client.sendall(request_text.encode() + b"\r\n\r\n")
        reply = read_reply(client)
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert "message" in reply.json
        assert client.recv(1) == b""


def test_an_oversized_body_is_refused_unread(server: Server) -> None:
    """By its announced length."""
    head = "POST /probe/echo HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 99999999"
    reply = server.ask(head)
    assert reply.status == 413
    assert "too large" in str(reply.json["message"])


def test_a_chunked_body_is_read(server: Server) -> None:
    """Go's client sends bodies of unknown length in chunks."""
    head = "POST /probe/echo HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
    reply = server.ask(head, b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n')
    assert reply.json == {"a": 1}


def test_long_headers_and_queries_are_taken(server: Server) -> None:
    """Credentials and filters may be long."""
    reply = server.ask(f"GET /_ping?filters={'x' * 20000} HTTP/1.1\r\nHost: d\r\nX-Registry-Auth: {'y' * 30000}")
    assert reply.body == b"OK"


@pytest.mark.parametrize(
    ("version", "query", "kind"),
    [("v1.50", "", "multiplexed"), ("v1.42", "", "multiplexed"), ("v1.41", "", "raw"), ("v1.50", "?raw=1", "raw")],
)
def test_an_upgrade_is_answered_as_by_the_real_engine(server: Server, version: str, query: str, kind: str) -> None:
    """Byte for byte; what the client sent early is there, half-close works both ways."""
    with server.connect() as client:
        client.sendall(
            f"POST /{version}/probe/upgrade{query} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\n"
            "Upgrade: tcp\r\nContent-Length: 0\r\n\r\nearly".encode()
        )
        expected = (
            f"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.{kind}-stream\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n<early>"
        ).encode()
        assert receive(client, b"<early>") == expected
        client.sendall(b"typed")
        assert receive(client, b"TYPED") == b"TYPED"
        client.shutdown(socket.SHUT_WR)
        assert receive(client, b"nothing more") == b"<bye>"


def test_without_an_upgrade_header_the_answer_is_200(server: Server) -> None:
    """And the media type is always raw (captured)."""
    with server.connect() as client:
        client.sendall(b"POST /v1.50/probe/upgrade HTTP/1.1\r\nHost: d\r\n\r\n")
        got = receive(client, b"<>")
        assert got == b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n<>"


def test_a_body_before_the_stream_is_not_part_of_it(server: Server) -> None:
    """``docker exec`` sends JSON, and the view may leave it unread."""
    with server.connect() as client:
        client.sendall(
            b"POST /probe/upgrade HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}early"
        )
        assert receive(client, b">").endswith(b"\r\n\r\n<early>")


def test_a_refused_upgrade_is_text(server: Server) -> None:
    """As the real engine answers an attach to nothing (captured)."""
    with server.connect() as client:
        client.sendall(b"POST /probe/refuse HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n")
        assert receive(client, b"nothing more") == (
            b"HTTP/1.1 404 Not Found\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nNo such container: x\r\n"
        )


def test_events_flow_while_the_client_listens(server: Server) -> None:
    """The head comes at once, each event as its own chunk."""
    with server.connect() as client:
        client.sendall(b"GET /v1.50/events HTTP/1.1\r\nHost: d\r\n\r\n")
        head, rest = read_head(client)
        assert (head.status, head.headers["transfer-encoding"], rest) == (200, "chunked", b"")
        assert {name: head.headers.get(name) for name in COMMON} == COMMON
        assert server.ask("POST /probe/publish HTTP/1.1\r\nHost: d\r\nContent-Length: 0").status == 204
        size, _, chunk = receive(client, b"}\n\r\n").partition(b"\r\n")
        assert int(size, 16) == len(chunk) - 2
        assert json.loads(chunk)["Actor"]["Attributes"] == {"name": "n"}


def test_past_events_end_the_stream(server: Server) -> None:
    """Captured: nothing but the last chunk."""
    with server.connect() as client:
        client.sendall(b"GET /events?until=1 HTTP/1.1\r\nHost: d\r\n\r\n")
        _, rest = read_head(client)
        assert rest + receive(client, b"nothing more") == b"0\r\n\r\n"


def test_streams_hold_no_threads(server: Server) -> None:
    """More of them than there are threads, and requests are answered as before."""
    clients = [server.connect() for _ in range(100)]
    for client in clients:
        client.sendall(b"GET /probe/forever HTTP/1.1\r\nHost: d\r\n\r\n")
    for client in clients:
        assert read_head(client)[0].status == 200
    assert server.get("/_ping").body == b"OK"
    for client in clients:
        client.close()


def wait_until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return True


def test_a_killed_master_takes_its_worker_along(tmp_path: Path) -> None:
    """No orphan keeps answering, and the next server listens on the same path."""
    server = Server(tmp_path)
    worker = int(str(server.get("/probe/pid").json["worker"]))
    os.kill(worker, signal.SIGSTOP)  # it cannot notice by itself: the kernel has to end it
    server.process.kill()
    server.process.wait()
    wait_until(lambda: gone(worker))
    server.stop()
    again = Server(tmp_path)
    assert again.get("/_ping").body == b"OK"
    again.stop()


def test_a_hang_up_reads_the_configuration_again(tmp_path: Path) -> None:
    """A new worker takes over; a request under way is answered by the old one; a broken file changes nothing."""
    server = Server(tmp_path)
    first = server.get("/probe/pid").json
    assert first["labels"] == ["a=1"]
    (tmp_path / "daemon.json").write_text('{"labels": ["b=2"]}')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.get("/probe/pid").json["labels"] == ["b=2"])
    wait_until(lambda: gone(int(str(first["worker"]))))
    second = server.get("/probe/pid").json
    (tmp_path / "daemon.json").write_text('{"nonsense": 1}')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: gone(int(str(second["worker"]))))
    assert server.get("/probe/pid").json["labels"] == ["b=2"]
    server.stop()


def test_an_ordinary_stop_removes_the_socket(tmp_path: Path) -> None:
    """And ends at once although streams are open."""
    server = Server(tmp_path)
    with server.connect() as client:
        client.sendall(b"GET /probe/forever HTTP/1.1\r\nHost: d\r\n\r\n")
        read_head(client)
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert client.recv(1) == b""
    assert not os.path.exists(server.path)
    server.stop()


def test_the_socket_is_for_its_group_only(tmp_path: Path) -> None:
    """Whoever may write to it is root."""
    server = Server(tmp_path)
    assert os.stat(server.path).st_mode & 0o777 == 0o660
    server.stop()
