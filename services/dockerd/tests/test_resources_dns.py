"""The DNS companion: messages as values, and the server in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockerd.dns import forward, message, zone
from dockerd.dns.companion import Companion, bind_sockets, stop
from dockerd.networks import netlink
from gantry.linux.namespaces import CLONE_NEWNET, unshare

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def encode(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, kind: int = message.A, identifier: int = 7, size: int = 0) -> bytes:
    extra = b"\0" + struct.pack(">HHIH", 41, size, 0, 0) if size else b""
    header = struct.pack(">HHHHHH", identifier, 0x0100, 1, 0, 0, 1 if size else 0)
    return header + encode(name) + struct.pack(">HH", kind, 1) + extra


def addresses(data: bytes) -> list[str]:
    """The A records of an answer whose names are all the question's."""
    count = struct.unpack_from(">H", data, 6)[0]
    end = len(data)
    return [socket.inet_ntoa(data[end - 16 * number - 4 : end - 16 * number]) for number in range(count)]


def rcode(data: bytes) -> int:
    return data[3] & 15


TABLE = zone.Table("net", {"web": ("10.0.0.2", "10.0.0.3"), "db": ("10.0.0.4",)}, {"10.0.0.4": "db"})


def test_a_query_is_read() -> None:
    """Name in lower case, kind, number, and how much fits a datagram."""
    query = message.parse_query(question("WeB.Example", message.AAAA, 99, 1232))
    assert (query.id, query.name, query.type, query.udp_size) == (99, "web.example", message.AAAA, 1232)
    assert message.parse_query(question("web")).udp_size == 512
    assert message.parse_query(question("web", size=65535)).udp_size == message.MAX_UDP
    assert message.parse_query(question("")).name == ""


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (struct.pack(">HHHHHH", 1, 0x8000, 1, 0, 0, 0) + b"\0\0\1\0\1", None),  # a response
        (struct.pack(">HHHHHH", 1, 0x2800, 1, 0, 0, 0) + b"\0\0\1\0\1", message.NOTIMP),  # an update
        (struct.pack(">HHHHHH", 1, 0, 0, 0, 0, 0), message.FORMERR),
        (struct.pack(">HHHHHH", 1, 0, 65535, 0, 0, 0) + b"\0\0\1\0\1", message.FORMERR),
        (struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", message.FORMERR),  # points at itself
        (struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x3fabc", message.FORMERR),
        (struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\1a" * 200 + b"\0\0\1\0\1", message.FORMERR),
        (struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\1a\0\0\1", message.FORMERR),
        (struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\1a\0\0\1\0\3", message.NOTIMP),  # of class CHAOS
    ],
)
def test_what_is_no_query(data: bytes, answer: int | None) -> None:
    """It is refused, or not answered at all."""
    with pytest.raises(message.Malformed) as caught:
        message.parse_query(data)
    assert caught.value.rcode == answer
    if answer is not None:
        assert rcode(message.refusal(data, answer)) == answer


def test_no_bytes_do_harm() -> None:
    """Whatever comes is a query or malformed; what was a query can be answered."""
    chance = random.Random(5)
    valid = bytearray(question("some.name.of.somebody", size=1232))
    for _ in range(20000):
        data = bytearray(valid)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = bytes(data[: chance.randrange(len(data) + 1)])
        try:
            query = message.parse_query(cut)
        except message.Malformed:
            continue
        zone.answer(query, [TABLE])
        assert len(message.response(query, message.SERVFAIL)) < 300


def test_a_dot_within_a_label_is_no_separator() -> None:
    """``w.eb`` as one label is not the name w.eb."""
    data = struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\4w.eb\0\0\1\0\1"
    assert message.parse_query(data).name == "w\\.eb"


def test_names_of_containers() -> None:
    """Addresses in turn, none of other kinds, by the network's name too; nothing about what is unknown."""

    def ask(name: str, kind: int = message.A) -> list[bytes] | None:
        return zone.answer(message.parse_query(question(name, kind)), [zone.Table(), TABLE])

    assert ask("db") == [message.address_record("10.0.0.4")]
    assert ask("DB.NET") == ask("db")
    assert ask("db", message.AAAA) == ask("db", 15) == []
    assert ask("nope") is None
    assert ask("db.other") is None
    assert ask("4.0.0.10.in-addr.arpa", message.PTR) == [message.name_record("db.net")]
    assert ask("9.0.0.10.in-addr.arpa", message.PTR) is None
    assert ask("x.in-addr.arpa", message.PTR) is None
    firsts = {bytes((ask("web") or [b""])[0]) for _ in range(200)}
    assert firsts == {message.address_record("10.0.0.2"), message.address_record("10.0.0.3")}


def test_a_link_is_a_name_of_the_askers_own() -> None:
    """It stands for the other's name; without it the name is unknown."""
    query = message.parse_query(question("Base"))
    assert zone.answer(query, [TABLE], {"base": "db"}) == [message.address_record("10.0.0.4")]
    assert zone.answer(query, [TABLE]) is None


def test_an_answer_that_is_too_long_says_so() -> None:
    """Only whole records, and the flag that makes askers come again by stream."""
    query = message.parse_query(question("web"))
    records = [message.address_record(f"10.0.0.{number}") for number in range(100)]
    data = message.response(query, message.NOERROR, records, 512)
    assert len(data) <= 512
    assert data[2] & 2
    assert len(addresses(data)) == 30
    assert not message.response(query, message.NOERROR, records)[2] & 2


def test_only_the_answer_to_the_question_is_taken() -> None:
    """Number, direction and question must be those that were sent."""
    query = message.parse_query(question("web"))
    good = message.with_id(message.response(query, 0), 1234)
    assert message.is_reply_to(good, 1234, query)
    assert not message.is_reply_to(good, 1235, query)
    assert not message.is_reply_to(question("web", identifier=1234), 1234, query)
    other = message.response(message.parse_query(question("wob")), 0)
    assert not message.is_reply_to(message.with_id(other, 1234), 1234, query)
    assert not message.is_reply_to(b"", 1234, query)


def test_messages_of_a_stream() -> None:
    """Each has its length before it, and may come in pieces."""
    buffer = bytearray(b"\0")
    assert forward.take_frame(buffer) is None
    buffer += b"\3ab"
    assert forward.take_frame(buffer) is None
    buffer += b"c\0\0\0"
    assert (forward.take_frame(buffer), forward.take_frame(buffer)) == (b"abc", b"")
    assert buffer == b"\0"


def test_the_hosts_servers(tmp_path: Path) -> None:
    """They are read again when the file is another."""
    path = tmp_path / "resolv.conf"
    servers = forward.HostServers(str(path))
    assert servers.current() == []
    path.write_text("search x\nnameserver 192.0.2.1\nnameserver\n")
    assert servers.current() == ["192.0.2.1"]
    (tmp_path / "new").write_text("nameserver 192.0.2.2\n")
    os.rename(tmp_path / "new", path)
    assert servers.current() == ["192.0.2.2"]


def alone(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test in a network namespace of its own with lo up."""

    def wrapper(tmp_path: Path) -> None:
        failure: list[BaseException] = []

        def run() -> None:
            try:
                unshare(CLONE_NEWNET)
                with netlink.RouteSocket() as own:
                    own.run([netlink.set_up(1, "lo")])
                test(tmp_path)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    wrapper.__doc__ = test.__doc__
    return wrapper


@contextlib.contextmanager
def serving(directory: Path, servers: list[str], forwards: bool = True) -> Iterator[Companion]:
    """A companion that answers a container in this thread's namespace."""
    lost = threading.Event()
    companion = Companion(str(directory), lost.set)
    try:
        companion.ensure()
        names = {"web": ["10.0.0.2", "10.0.0.3"], "many": [f"10.1.{n // 250}.{n % 250}" for n in range(400)]}
        companion.request({"op": "network", "id": "n", "name": "net", "names": names, "addresses": {}})
        with contextlib.ExitStack() as stack:
            sockets = bind_sockets()
            for own in sockets:
                stack.enter_context(own)
            body = {
                "op": "container",
                "id": "c",
                "networks": ["n"],
                "servers": servers,
                "links": {},
                "forward": forwards,
            }
            assert companion.request(body, sockets) == {}
        yield companion
    finally:
        companion.close()
        stop(str(directory))
    assert not lost.is_set()


def ask(data: bytes, stream: bool = False) -> bytes:
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as own:
        own.settimeout(10)
        own.connect(("127.0.0.11", 53))
        if not stream:
            own.send(data)
            return own.recv(65535)
        own.sendall(len(data).to_bytes(2, "big") + data)
        buffer = bytearray()
        while (reply := forward.take_frame(buffer)) is None:
            part = own.recv(65535)
            assert part
            buffer += part
        return reply


def upstream(address: str) -> socket.socket:
    """A name server in this namespace that says 192.0.2.99 to everything, by datagram."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))

    def run() -> None:
        while True:
            try:
                data, asker = server.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            query = message.parse_query(data)
            server.sendto(message.response(query, 0, [message.address_record("192.0.2.99")]), asker)

    threading.Thread(target=run, daemon=True).start()
    return server


@root
@alone
def test_a_container_is_answered(tmp_path: Path) -> None:
    """By datagram and stream, many at once on a connection, and malformed ones do not end it."""
    with serving(tmp_path, []):
        assert set(addresses(ask(question("web")))) == {"10.0.0.2", "10.0.0.3"}
        assert len(addresses(ask(question("many"), stream=True))) == 400
        assert ask(question("many"))[2] & 2
        assert rcode(ask(b"\0\1\x28\0\0\0\0\0\0\0\0\0")) == message.NOTIMP
        with socket.create_connection(("127.0.0.11", 53), timeout=5) as own:
            one = question("web")
            own.sendall((len(one).to_bytes(2, "big") + one) * 50)
            buffer = bytearray()
            seen = 0
            while seen < 50:
                buffer += own.recv(65535)
                while forward.take_frame(buffer) is not None:
                    seen += 1
        assert set(addresses(ask(question("web")))) == {"10.0.0.2", "10.0.0.3"}


@root
@alone
def test_a_companion_without_an_engine(tmp_path: Path) -> None:
    """It is found again by its socket, goes on for its containers, and ends when the last has gone."""
    with serving(tmp_path, []) as first:
        first.close()
        assert set(addresses(ask(question("web")))) == {"10.0.0.2", "10.0.0.3"}
        second = Companion(str(tmp_path), lambda: None)
        assert second.find()
        assert second.request({"op": "list"}) == {"containers": ["c"], "networks": ["n"]}
        second.close()
        gone = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        gone.connect(str(tmp_path / "dns.sock"))
        assert Companion(str(tmp_path), lambda: None).request({"op": "forget", "id": "c"}) == {}
        gone.settimeout(10)
        assert gone.recv(1) == b""
        gone.close()
        assert not Companion(str(tmp_path), lambda: None).find()


@root
@alone
def test_nothing_is_forwarded_from_where_nothing_leaves(tmp_path: Path) -> None:
    """An internal network's container gets no answer from outside."""
    with serving(tmp_path, ["127.0.0.1"], forwards=False), upstream("127.0.0.1"):
        assert rcode(ask(question("example.org"))) == message.SERVFAIL
        assert set(addresses(ask(question("web")))) == {"10.0.0.2", "10.0.0.3"}


@root
@alone
def test_other_names_are_asked_for(tmp_path: Path) -> None:
    """One server after the other; one that nobody serves at costs no time."""
    with upstream("127.0.0.2"), serving(tmp_path, ["127.0.0.3", "127.0.0.2"]):
        begun = time.monotonic()
        reply = ask(question("example.org", identifier=4711))
        assert addresses(reply) == ["192.0.2.99"]
        assert struct.unpack_from(">H", reply)[0] == 4711
        assert time.monotonic() - begun < 2
        assert rcode(ask(question("example.org"), stream=True)) == message.SERVFAIL  # that one has no stream


def test_little_is_imported() -> None:
    """The companion is small: neither the engine's libraries nor what they need."""
    code = "import sys, dockerd.dns.server; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"grpc", "flask", "msgspec", "sqlite3", "ctypes", "asyncio", "dockerd.config", "dockerd.networks"}
    assert not loaded & heavy
