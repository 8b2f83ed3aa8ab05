"""A container's streams: handed over to a shim, parked at the template, or pumped by the engine."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockerd.config import Config
from dockerd.errors import InvalidParameter, NotFound, SystemFailure
from dockerd.server.reactor import Reactor
from dockerd.stdio import AttachOptions, StreamService
from dockerd.stdio.rotation import parse_size
from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.linux.unix import bind_path, receive_packet
from gantry.stdio import jsonfile, uri
from gantry.stdio.framing import Decoder, Stream


@dataclass
class Target:
    """A container."""

    id: str = "c1"
    tty: bool = False
    open_stdin: bool = True
    stdin_once: bool = True
    log_driver: str = "json-file"
    log_path: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict)
    log_attributes: Mapping[str, str] = field(default_factory=dict)


class Peer:
    """A shim or a template: takes requests with connections, answers with prepared codes, keeps what it got."""

    def __init__(self, path: str, request: type, reply: type) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bind_path(self.listener, path)  # type: ignore[arg-type]
        self.listener.listen()
        self.request, self.reply = request, reply
        self.codes: list[int] = []
        self.requests: list[Any] = []
        self.clients: list[socket.socket] = []
        self.connections: list[socket.socket] = []
        self.hang_up = False
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            data, descriptors = receive_packet(connection, 1 << 18)  # type: ignore[arg-type]
            if self.hang_up:
                connection.close()
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            request = self.request()
            request.ParseFromString(data)
            self.requests.append(request)
            code = self.codes.pop(0) if self.codes else 0
            for descriptor in descriptors:
                if code == 0:
                    self.clients.append(socket.socket(fileno=descriptor))
                else:
                    os.close(descriptor)
            message = "as told" if code else ""
            connection.send(self.reply(code=code, message=message).SerializeToString())
            self.connections.append(connection)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for client in (*self.clients, *self.connections):
            client.close()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A running loop."""
    made = Reactor()
    made.start()
    yield made
    made.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Directories of the test's own."""
    return Config(data_root=str(tmp_path / "data"), exec_root=str(tmp_path / "exec"))


class Containerd:
    """As much of containerd as the streams use."""

    namespace = "moby"

    def __init__(self, template: str | None = None) -> None:
        self.closed: list[tuple[str, str]] = []
        self.close_io = threading.Event()
        exports = {"address": template} if template else {}
        plugin = SimpleNamespace(type="io.gantry.shim.template.v1", exports=exports, init_err=SimpleNamespace(code=0))
        reply = SimpleNamespace(plugins=[plugin] if template else [])
        self.introspection = SimpleNamespace(Plugins=lambda _request: reply)
        self.tasks = SimpleNamespace(CloseIO=self._close_io)

    def _close_io(self, request: Any) -> None:
        self.closed.append((request.container_id, request.exec_id))
        self.close_io.set()


@pytest.fixture
def template(tmp_path: Path) -> Iterator[Peer]:
    """A template."""
    peer = Peer(str(tmp_path / "template.sock"), template_pb2.Request, template_pb2.Reply)
    yield peer
    peer.close()


@pytest.fixture
def handing(config: Config, reactor: Reactor, template: Peer, tmp_path: Path) -> StreamService:
    """Streams above shims that take connections over."""
    service = StreamService(config, Containerd(str(tmp_path / "template.sock")), reactor)  # type: ignore[arg-type]
    service.start()
    return service


@pytest.fixture
def shim(config: Config, handing: StreamService) -> Iterator[Peer]:
    """The shim of container c1."""
    os.makedirs(config.container_state("c1"))
    peer = Peer(os.path.join(config.container_state("c1"), "attach.sock"), stdio_pb2.Request, stdio_pb2.Reply)
    yield peer
    peer.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the server's."""
    client, server = socket.socketpair()
    client.settimeout(10)
    yield client, server
    client.close()
    server.close()


ALL = AttachOptions(stdin=True, stdout=True, stderr=True, close_stdin_on_eof=True)


def test_uris_name_the_shims_socket_and_the_log(handing: StreamService, config: Config) -> None:
    """Rotation and attributes go along; an exec has no log."""
    target = Target(
        log_path="/x/c1-json.log", log_options={"max-size": "10m", "max-file": "3"}, log_attributes={"a": "b"}
    )
    names = handing.uris(target)
    parsed = uri.parse(names.stdout)
    assert parsed == uri.StdioURI(
        f"{config.exec_root}/containers/c1/attach.sock", "json-file", "/x/c1-json.log", 10 << 20, 3, {"a": "b"}
    )
    assert names.stdin == names.stdout == names.stderr
    execution = handing.uris(target, "e1", stdin=False, terminal=True)
    assert (execution.stdin, execution.stderr, execution.terminal) == ("", "", True)
    assert uri.parse(execution.stdout).driver == "none"
    assert os.stat(config.container_state("c1")).st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "options",
    [{"max-size": "x"}, {"max-size": "-1"}, {"max-file": "0", "max-size": "1m"}, {"max-size": "1m", "max-file": "a"}],
)
def test_bad_log_options_are_refused(handing: StreamService, options: dict[str, str]) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidParameter):
        handing.uris(Target(log_path="/x", log_options=options))


def test_sizes() -> None:
    """Docker's units are powers of 1024."""
    assert [parse_size(text) for text in ("7", "1k", "2KB", "10m", "1g")] == [7, 1024, 2048, 10 << 20, 1 << 30]


def test_a_running_container_gets_the_connection(
    handing: StreamService, shim: Peer, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """With all that the session needs; afterwards only the shim holds the server's end."""
    client, server = pair
    handing.attach(Target(), None, server, b"early", ALL)
    session = shim.requests[0].attach.session
    assert (session.stdin, session.stdout, session.stderr, session.close_stdin_on_eof) == (True, True, True, True)
    assert session.early_input == b"early"
    assert session.framing == stdio_pb2.FRAMING_MULTIPLEXED
    assert server.fileno() == -1
    shim.clients[0].sendall(b"from the shim")
    assert client.recv(100) == b"from the shim"
    assert not template.requests


def test_an_attach_before_the_start_is_parked(
    handing: StreamService, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The template keeps it for the shim to come; a removal drops it."""
    handing.attach(Target(), None, pair[1], b"", ALL)
    assert template.requests[0].park.namespace == "moby"
    assert template.requests[0].park.id == "c1"
    handing.forget("c1")
    assert template.requests[1].unpark.id == "c1"


def test_a_process_that_has_ended_is_followed_by_the_next_start(
    handing: StreamService, shim: Peer, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """FAILED_PRECONDITION from the shim means: wait for the next one."""
    shim.codes = [9]
    handing.attach(Target(), None, pair[1], b"", ALL)
    assert template.requests[0].park.id == "c1"


def test_a_shim_that_is_just_being_started_is_asked_again(
    handing: StreamService, shim: Peer, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Neither has it: the template answers that a shim runs, the shim does not know the process yet."""
    shim.codes = [5]
    template.codes = [6]
    handing.attach(Target(), None, pair[1], b"", ALL)
    assert len(shim.clients) == 1
    assert not template.clients


def test_without_a_template_the_engine_waits_itself(
    handing: StreamService, template: Peer, config: Config, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Between Create and Start the session goes to the shim."""
    template.codes = [12]
    with pytest.raises(Exception, match="as told"):
        handing.attach(Target(), None, pair[1].dup(), b"", ALL)
    handing._template = None
    handing.attach(Target(), None, pair[1], b"", ALL)
    os.makedirs(config.container_state("c1"), exist_ok=True)
    peer = Peer(os.path.join(config.container_state("c1"), "attach.sock"), stdio_pb2.Request, stdio_pb2.Reply)
    handing.before_start(Target())
    assert len(peer.clients) == 1
    peer.close()


def test_a_shim_that_hangs_up_is_not_taken_for_one_that_agreed(
    handing: StreamService, shim: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """It died with the request; the connection is lost."""
    shim.hang_up = True
    with pytest.raises(SystemFailure, match="closed without an answer"):
        handing.attach(Target(), "e1", pair[1], b"", ALL)


def test_a_refused_exec_closes_the_connection(
    handing: StreamService, shim: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """An exec is attached between Exec and Start: there is nothing to wait for."""
    shim.codes = [5]
    with pytest.raises(SystemFailure):
        handing.attach(Target(), "e1", pair[1], b"", ALL)
    assert pair[0].recv(1) == b""


@pytest.mark.parametrize("multiplexed", [True, False])
def test_an_exec_that_cannot_start_says_why_in_its_stream(
    handing: StreamService, shim: Peer, pair: tuple[socket.socket, socket.socket], multiplexed: bool
) -> None:
    """The upgrade was answered already; the form is the real engine's."""

    def start() -> None:
        raise NotFound("OCI runtime exec failed: no")

    handing.start_exec(Target(), "e1", pair[1], b"", AttachOptions(stdout=True, multiplexed=multiplexed), start)
    shim.clients[0].close()
    data = pair[0].recv(1000)
    text = b"OCI runtime exec failed: no\r\n"
    assert data == (bytes([1, 0, 0, 0, 0, 0, 0, len(text)]) + text if multiplexed else text)
    assert pair[0].recv(1) == b""


def test_who_waits_is_kept_by_the_template(
    handing: StreamService, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """And answered through it, by this engine or the next one."""
    assert handing.hold("c1", "not-running", pair[1])
    assert template.requests[0].hold.condition == "not-running"
    handing.answer("c1", ["not-running", "next-exit"], 3)
    answer = template.requests[1].answer
    assert list(answer.conditions) == ["not-running", "next-exit"]
    assert answer.data == b'11\r\n{"StatusCode":3}\n\r\n0\r\n\r\n'


def test_a_template_that_cannot_hold_leaves_the_connection(
    handing: StreamService, template: Peer, pair: tuple[socket.socket, socket.socket]
) -> None:
    """An older one answers UNIMPLEMENTED."""
    template.codes = [12]
    assert not handing.hold("c1", "removed", pair[1])
    assert pair[1].fileno() >= 0


# The pump: a containerd without our shims.


@pytest.fixture
def containerd() -> Containerd:
    """One without the template plugin."""
    return Containerd()


@pytest.fixture
def pumping(config: Config, reactor: Reactor, containerd: Containerd) -> StreamService:
    """Streams that the engine pumps."""
    service = StreamService(config, containerd, reactor)  # type: ignore[arg-type]
    service.start()
    return service


def open_write(path: str) -> int:
    return os.open(path, os.O_WRONLY)


def test_pumped_output_goes_to_the_log_and_to_who_waited(
    pumping: StreamService, tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The session came before the start and misses nothing; its end is the process's."""
    target = Target(log_path=str(tmp_path / "c1-json.log"), log_attributes={"k": "v"})
    pumping.attach(target, None, pair[1], b"", ALL)
    names = pumping.uris(target)
    pumping.before_start(target)
    out, err = open_write(names.stdout), open_write(names.stderr)
    os.write(out, b"hello\nhalf")
    os.write(err, b"oops\n")
    os.close(out)
    os.close(err)
    pumping.after_exit("c1")
    data = b""
    while piece := pair[0].recv(1000):
        data += piece
    by_stream: dict[Stream, bytes] = {}
    for stream, text in Decoder().feed(data):
        by_stream[stream] = by_stream.get(stream, b"") + text
    assert by_stream == {Stream.STDOUT: b"hello\nhalf", Stream.STDERR: b"oops\n"}
    records = [jsonfile.parse(line) for line in Path(target.log_path).read_bytes().splitlines()]
    assert sorted((record.stream, record.log) for record in records) == [
        ("stderr", b"oops\n"),
        ("stdout", b"half"),
        ("stdout", b"hello\n"),
    ]
    assert records[0].attrs == {"k": "v"}
    assert not os.path.exists(names.stdout)


def test_pumped_input_arrives_and_ends(
    pumping: StreamService, containerd: Containerd, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """More than a FIFO holds; the end of the client's sending half becomes CloseIO, behind all of it."""
    target = Target(log_driver="none")
    names = pumping.uris(target)
    pumping.attach(target, None, pair[1], b"early ", ALL)
    pumping.before_start(target)
    reader = os.open(names.stdin, os.O_RDONLY)
    payload = os.urandom(1 << 20)
    sender = threading.Thread(target=lambda: (pair[0].sendall(payload), pair[0].shutdown(socket.SHUT_WR)))
    sender.start()
    got = b""
    while len(got) < len(payload) + 6:
        got += os.read(reader, 65536)
    sender.join()
    assert got == b"early " + payload
    assert containerd.close_io.wait(10)
    assert containerd.closed == [("c1", "")]
    os.close(reader)
    pumping.after_exit("c1")


def test_pumped_input_that_ends_before_the_start_ends_after_it(
    pumping: StreamService, containerd: Containerd, pair: tuple[socket.socket, socket.socket]
) -> None:
    """``echo x | docker run -i``: containerd is told only once it knows the process."""
    target = Target(log_driver="none")
    pumping.attach(target, None, pair[1], b"", ALL)
    names = pumping.uris(target)
    pair[0].sendall(b"x")
    pair[0].shutdown(socket.SHUT_WR)
    assert not containerd.close_io.wait(0.1)
    reader = os.open(names.stdin, os.O_RDONLY | os.O_NONBLOCK)
    pumping.before_start(target)
    assert containerd.close_io.wait(10)
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    pumping.after_exit("c1")


def test_pumped_input_stays_open_without_stdin_once(
    pumping: StreamService, containerd: Containerd, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The next session goes on typing."""
    target = Target(log_driver="none", stdin_once=False)
    names = pumping.uris(target)
    pumping.before_start(target)
    pumping.attach(target, None, pair[1], b"", AttachOptions(stdin=True, stdout=True))
    reader = os.open(names.stdin, os.O_RDONLY)
    pair[0].sendall(b"one")
    assert os.read(reader, 100) == b"one"
    pair[0].shutdown(socket.SHUT_WR)
    assert pair[0].recv(100) == b""
    assert not containerd.close_io.is_set()
    again, server = socket.socketpair()
    pumping.attach(target, None, server, b"two", AttachOptions(stdin=True, stdout=True))
    assert os.read(reader, 100) == b"two"
    again.close()
    os.close(reader)
    pumping.after_exit("c1")


def test_a_session_without_input_survives_the_end_of_its_sending_half(
    pumping: StreamService, pair: tuple[socket.socket, socket.socket]
) -> None:
    """``docker run`` without -i closes it at once."""
    target = Target(log_driver="none")
    names = pumping.uris(target)
    pumping.attach(target, None, pair[1], b"", AttachOptions(stdout=True, multiplexed=False))
    pumping.before_start(target)
    pair[0].shutdown(socket.SHUT_WR)
    out = open_write(names.stdout)
    os.write(out, b"still here")
    assert pair[0].recv(100) == b"still here"
    os.close(out)
    pumping.after_exit("c1")
    assert pair[0].recv(1) == b""


def test_detach_keys_end_a_pumped_session(pumping: StreamService, pair: tuple[socket.socket, socket.socket]) -> None:
    """On a terminal only; the process goes on."""
    target = Target(tty=True, log_driver="none")
    names = pumping.uris(target)
    assert names.stderr == ""
    pumping.before_start(target)
    pumping.attach(target, None, pair[1], b"", AttachOptions(stdin=True, stdout=True, multiplexed=False))
    reader = os.open(names.stdin, os.O_RDONLY)
    pair[0].sendall(b"a\x10")
    assert os.read(reader, 10) == b"a"
    pair[0].sendall(b"\x11")
    assert pair[0].recv(10) == b""
    os.close(reader)
    pumping.after_exit("c1")


def test_a_slow_session_holds_the_process_back(
    pumping: StreamService, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The FIFO fills up; when the client reads, everything arrives."""
    target = Target(log_driver="none")
    names = pumping.uris(target)
    pumping.attach(target, None, pair[1], b"", AttachOptions(stdout=True, multiplexed=False))
    total = 16 << 20
    written = threading.Event()

    def write() -> None:
        out = open_write(names.stdout)
        left = total
        while left:
            left -= os.write(out, b"x" * min(left, 65536))
        os.close(out)
        written.set()

    threading.Thread(target=write).start()
    assert not written.wait(0.3)
    got = 0
    while got < total:
        got += len(pair[0].recv(1 << 20))
    assert written.wait(10)
    pumping.after_exit("c1")
    assert pair[0].recv(1) == b""


def test_a_client_that_leaves_lets_the_process_go_on(
    pumping: StreamService, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Even when it was the one that held it back."""
    target = Target(log_driver="none")
    names = pumping.uris(target)
    pumping.attach(target, None, pair[1], b"", AttachOptions(stdout=True, multiplexed=False))
    written = threading.Event()

    def write() -> None:
        out = open_write(names.stdout)
        for _ in range(256):
            os.write(out, b"x" * 65536)
        os.close(out)
        written.set()

    threading.Thread(target=write).start()
    assert not written.wait(0.2)
    pair[0].close()
    assert written.wait(10)
    pumping.after_exit("c1")


def test_a_pump_is_taken_up_again_after_a_restart(
    config: Config, reactor: Reactor, containerd: Containerd, tmp_path: Path
) -> None:
    """What the process wrote while no engine was there is in the log, once."""
    target = Target(log_path=str(tmp_path / "c1-json.log"))
    first = StreamService(config, containerd, reactor)  # type: ignore[arg-type]
    first.start()
    names = first.uris(target)
    out, reader = open_write(names.stdout), os.open(names.stdout, os.O_RDONLY | os.O_NONBLOCK)
    os.write(out, b"one\n")
    done = threading.Event()
    first.close()
    reactor.call_soon(done.set)
    assert done.wait(10)
    os.write(out, b"two\n")
    second = StreamService(config, containerd, reactor)  # type: ignore[arg-type]
    second.start()
    second.restore(target)
    os.write(out, b"three\n")
    os.close(out)
    second.after_exit("c1")
    os.close(reader)
    records = [jsonfile.parse(line).log for line in Path(target.log_path).read_bytes().splitlines()]
    assert records == [b"one\n", b"two\n", b"three\n"]


def test_forgetting_a_container_closes_who_waited(
    pumping: StreamService, pair: tuple[socket.socket, socket.socket], config: Config
) -> None:
    """Its start failed."""
    pumping.attach(Target(log_driver="none"), None, pair[1], b"", ALL)
    pumping.forget("c1")
    assert pair[0].recv(1) == b""
    assert not os.path.exists(config.container_state("c1"))
