"""gantry-stdio: the json-file log, attached sessions, hand-over of connections; by a cold shim and by a forked one."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.stdio import framing
from gantry.ttrpc import Code


def test_output_is_logged_with_nobody_attached(shim):
    """Both streams reach the json-file; an unfinished last line has no newline."""
    world = shim(args=["sh", "-c", "echo out; echo err >&2; printf tail"])
    world.create(stdout=world.uri(), stderr=world.uri())
    world.start()
    assert world.wait().exit_status == 0
    assert sorted(world.logged()) == sorted([("stdout", "out\n"), ("stderr", "err\n"), ("stdout", "tail")])
    world.delete()
    assert not os.path.exists(world.root / "attach.sock")


def test_sessions_see_all_output_and_then_the_end(shim, harness):
    """Two clients attached before the start, one raw and one multiplexed, read every byte; so does the log."""
    world = shim(args=["sh", "-c", "seq 1 30000; echo done >&2"])
    world.create(stdout=world.uri(), stderr=world.uri())
    reply, raw = world.attach()
    assert reply.code == 0, reply.message
    reply, both = world.attach(stderr=True, framing=stdio_pb2.FRAMING_MULTIPLEXED)
    assert reply.code == 0, reply.message
    results = {}
    threads = [
        threading.Thread(target=lambda n=n, c=c: results.update({n: harness.receive(c)}))
        for n, c in (("raw", raw), ("both", both))
    ]
    for thread in threads:
        thread.start()
    world.start()
    assert world.wait().exit_status == 0
    for thread in threads:
        thread.join()
    numbers = b"".join(b"%d\n" % n for n in range(1, 30001))
    assert results["raw"] == numbers
    split = {1: b"", 2: b""}
    for stream, data in framing.Decoder().feed(results["both"]):
        split[stream] += data
    assert split == {1: numbers, 2: b"done\n"}
    assert "".join(text for stream, text in world.logged() if stream == "stdout").encode() == numbers
    raw.close()
    both.close()


def test_stdin_ends_with_the_client(shim, harness):
    """early_input first, then what is sent; a half-close ends the input when the session says so."""
    world = shim(args=["sh", "-c", "cat; echo end"])
    world.create(stdin=world.uri(), stdout=world.uri())
    reply, client = world.attach(stdin=True, early_input=b"early ", close_stdin_on_eof=True)
    assert reply.code == 0
    world.start()
    client.sendall(b"late\n")
    assert harness.receive(client, until=b"late\n") == b"early late\n"
    client.shutdown(socket.SHUT_WR)
    assert harness.receive(client) == b"end\n"
    assert world.wait().exit_status == 0
    client.close()


def test_stdin_stays_open_for_the_next_client(shim, harness):
    """Without close_stdin_on_eof the half-close ends the session alone, and another client goes on typing."""
    world = shim(args=["cat"])
    world.create(stdin=world.uri("none"), stdout=world.uri("none"))
    world.start()
    for text in (b"one\n", b"two\n"):
        _, client = world.attach(stdin=True)
        client.sendall(text)
        assert harness.receive(client, until=text) == text
        client.shutdown(socket.SHUT_WR)
        assert harness.receive(client) == b""
        client.close()
    world.call("CloseIO", world.api.CloseIORequest(id=world.id, stdin=True))
    assert world.wait().exit_status == 0


def test_a_lot_of_input(shim, harness):
    """Megabytes of input arrive whole, while output comes back the same way."""
    world = shim(args=["sh", "-c", "cat"])
    world.create(stdin=world.uri("none"), stdout=world.uri("none"))
    _, client = world.attach(stdin=True, close_stdin_on_eof=True)
    world.start()
    data = os.urandom(5 << 20)
    got = []
    reader = threading.Thread(target=lambda: got.append(harness.receive(client)))
    reader.start()
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    reader.join()
    assert got[0] == data
    assert world.wait().exit_status == 0
    client.close()


def test_a_terminal_session(shim, harness):
    """A terminal echoes; the detach keys end the session and leave the process; a new client can come."""
    world = shim(args=["sh", "-c", "while read x; do echo got $x; done"], terminal=True)
    world.create(stdin=world.uri(), stdout=world.uri(), terminal=True)
    reply, client = world.attach(stdin=True, detach_keys="ctrl-x,x")
    assert reply.code == 0, reply.message
    world.start()
    client.sendall(b"one\n")
    assert harness.receive(client, until=b"got one\r\n") == b"one\r\ngot one\r\n"
    client.sendall(b"\x18")
    client.sendall(b"xlost")
    assert harness.receive(client) == b""
    client.close()
    _, client = world.attach(stdin=True)
    client.sendall(b"two\n")
    assert harness.receive(client, until=b"got two\r\n").endswith(b"got two\r\n")
    world.kill()
    assert harness.receive(client) == b""
    assert world.wait().exit_status == 137
    assert ("stdout", "got one\r\n") in world.logged()
    client.close()


def test_the_last_words_of_a_terminal(shim, harness):
    """What is written right before the exit reaches the client and the log, time after time."""
    world = shim(args=["sleep", "100"])
    world.create(stdout=world.uri())
    world.start()
    for n in range(10):
        world.exec(f"e{n}", ["sh", "-c", "seq 1 500"], stdout=world.uri("none"), terminal=True)
        _, client = world.attach(exec_id=f"e{n}")
        world.start(f"e{n}")
        assert harness.receive(client).endswith(b"\r\n499\r\n500\r\n")
        assert world.wait(f"e{n}").exit_status == 0
        world.delete(f"e{n}")
        client.close()


def test_a_session_for_an_exec_waits_for_its_start(shim, harness):
    """A client that comes before the exec's start gets its first byte, and the end when it ends."""
    world = shim(args=["sleep", "100"])
    world.create(stdout=world.uri())
    world.start()
    reply, _ = world.attach(exec_id="e")
    assert reply.code == Code.NOT_FOUND
    world.exec("e", ["sh", "-c", "read x; echo $x; (sleep 50 &) ; exit 4"], stdin=world.uri("none"),
               stdout=world.uri("none"))  # fmt: skip
    reply, client = world.attach(exec_id="e", stdin=True, early_input=b"first\n", close_stdin_on_eof=True)
    assert reply.code == 0, reply.message
    world.start("e")
    begin = time.monotonic()
    assert harness.receive(client) == b"first\n"
    assert world.wait("e").exit_status == 4
    # The background process holds the pipe for 50 s; nobody waits for it.
    assert time.monotonic() - begin < 5
    reply, _ = world.attach(exec_id="e")
    assert reply.code == Code.FAILED_PRECONDITION
    client.close()


def test_a_slow_client_loses_nothing_and_holds_nothing_but_the_process(shim, harness):
    """Megabytes for a client that does not read: the process waits, the shim answers, and all arrives in the end."""
    world = shim(args=["sh", "-c", "dd if=/dev/zero bs=65536 count=64 2>/dev/null; echo end >&2"])
    world.create(stdout=world.uri("none"), stderr=world.uri("none"))
    _, client = world.attach()
    _, errors = world.attach(stdout=False, stderr=True)
    world.start()
    errors.settimeout(0.5)
    with pytest.raises(TimeoutError):
        errors.recv(10)
    assert world.state().status == 2
    assert len(harness.receive(client)) == 64 * 65536
    errors.settimeout(10)
    assert harness.receive(errors) == b"end\n"
    assert world.wait().exit_status == 0
    client.close()
    errors.close()


def test_output_survives_delete_and_shutdown(shim, harness):
    """A client that reads late gets everything even after the container and its shim are asked to go."""
    world = shim(args=["sh", "-c", "seq 1 60000"])
    world.create(stdout=world.uri("none"))
    _, client = world.attach()
    world.start()
    expected = b"".join(b"%d\n" % n for n in range(1, 60001))
    assert world.wait().exit_status == 0
    world.delete()
    world.call("Shutdown", world.api.ShutdownRequest(id=world.id))
    assert harness.receive(client) == expected
    client.close()
    harness.wait_gone(world.shim_pid)
    world.connection.close()
    world.connection = None


def test_a_client_that_dies_disturbs_nobody(shim, harness):
    """A broken connection is dropped; the process and the others go on."""
    world = shim(args=["sh", "-c", "while read x; do seq 1 5000; done"])
    world.create(stdin=world.uri(), stdout=world.uri())
    world.start()
    _, dying = world.attach()
    _, client = world.attach(stdin=True)
    dying.close()
    for _ in range(3):
        client.sendall(b"go\n")
        assert harness.receive(client, until=b"5000\n").endswith(b"4999\n5000\n")
    status = harness.ask(str(world.root / "attach.sock"), stdio_pb2.Request(status=stdio_pb2.Status()), stdio_pb2.Reply)
    assert [(s.bytes_in, s.bytes_out > 60000) for s in status.sessions] == [(9, True)]
    client.close()
    world.kill()
    assert world.wait().exit_status == 137


def test_silent_clients_are_let_go(shim, harness):
    """A client that hangs up is forgotten at once, even when the process never writes."""
    world = shim(args=["sleep", "100"])
    world.create(stdout=world.uri())
    world.start()
    before = len(os.listdir(f"/proc/{world.shim_pid}/fd"))
    for _ in range(5):
        _, client = world.attach()
        client.close()
    deadline = time.monotonic() + 5
    # One descriptor more stays: the epoll set for hang-ups.
    while len(os.listdir(f"/proc/{world.shim_pid}/fd")) > before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_detach_by_request(shim, harness):
    """Detach ends a session by its id; an unknown one is NOT_FOUND."""
    world = shim(args=["sleep", "100"])
    world.create(stdout=world.uri())
    world.start()
    _, client = world.attach(id="abc")
    reply, _ = world.attach(id="abc")
    assert reply.code == Code.ALREADY_EXISTS
    path = str(world.root / "attach.sock")
    detach = stdio_pb2.Request(detach=stdio_pb2.Detach(session_id="abc"))
    assert harness.ask(path, detach, stdio_pb2.Reply).code == 0
    assert harness.receive(client) == b""
    assert harness.ask(path, detach, stdio_pb2.Reply).code == Code.NOT_FOUND
    client.close()


def test_bad_requests(shim, harness):
    """What the contract forbids has the code that it names, and nothing is taken over."""
    world = shim(args=["sleep", "100"])
    world.create(stdout=world.uri())
    world.start()
    path = str(world.root / "attach.sock")
    reply, client = world.attach(framing=stdio_pb2.FRAMING_UNSPECIFIED)
    assert reply.code == Code.INVALID_ARGUMENT
    client.close()
    reply, client = world.attach(detach_keys="ctrl-1")
    assert (reply.code, reply.message) == (Code.INVALID_ARGUMENT, "Invalid detach keys (ctrl-1) provided")
    client.close()
    request = stdio_pb2.Request(attach=stdio_pb2.Attach(session=harness.session_of()))
    assert harness.ask(path, request, stdio_pb2.Reply).code == Code.INVALID_ARGUMENT
    unknown = stdio_pb2.Request.FromString(b"\x7a\x00")
    assert harness.ask(path, unknown, stdio_pb2.Reply).code == Code.UNIMPLEMENTED
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        sock.send(b"\xff\xff\xff")
        assert stdio_pb2.Reply.FromString(sock.recv(65536)).code == Code.INVALID_ARGUMENT
        assert sock.recv(10) == b""


def test_rotation(shim):
    """max-size and max-file hold for a container's log."""
    world = shim(args=["sh", "-c", "seq 1 2000"])
    world.create(stdout=world.uri(max_size=20_000, max_file=3))
    world.start()
    assert world.wait().exit_status == 0
    assert sorted(p.name for p in world.root.glob("log.json*")) == ["log.json", "log.json.1", "log.json.2"]
    assert world.logged()[-1] == ("stdout", "2000\n")
    assert 20_000 <= (world.root / "log.json.1").stat().st_size < 20_100


def test_a_full_disk_does_not_stop_the_container(shim, harness):
    """A log that cannot be written costs log lines, once noted, and neither output nor the process."""
    world = shim(args=["sh", "-c", "seq 1 3000"])
    os.symlink("/dev/full", world.root / "full")
    uri = world.uri().replace("log.json", "full")
    os.unlink(world.root / "full")
    os.mknod(world.root / "full", 0o20666, os.makedev(1, 7))
    world.create(stdout=uri)
    _, client = world.attach()
    world.start()
    assert harness.receive(client).endswith(b"2999\n3000\n")
    assert world.wait().exit_status == 0
    assert world.shim_log().count("No space left on device") == 1
    client.close()


def test_a_failed_create_ends_the_sessions_of_the_shim(shim, harness):
    """When Create fails the attach socket is gone and a second Create may use its path."""
    world = shim(args=["nosuchprogram"])
    for _ in range(2):
        with pytest.raises(Exception, match="executable file not found"):
            world.create(stdout=world.uri())
    assert not os.path.exists(world.root / "attach.sock")
