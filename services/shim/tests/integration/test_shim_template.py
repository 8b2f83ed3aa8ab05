"""The template process: forks, parked connections, what it leaves and what it survives."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.ttrpc import Code, TTRPCError


def test_a_forked_shim_is_like_another(world, ours, template):
    """A container runs through its life; its shim shows its own command line and leaves no socket."""
    world.make_bundle(["sh", "-c", "exit 9"])
    bootstrap = template.fork(world)
    assert bootstrap.protocol == "ttrpc"
    with open(f"/proc/{world.shim_pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").decode().split("\0")
    assert words[1:5] == ["-namespace", "shimtest", "-id", world.id]
    assert os.readlink(f"/proc/{world.shim_pid}/cwd") == str(world.bundle)
    world.create()
    world.start()
    assert world.wait().exit_status == 9
    world.delete()
    world.shutdown()
    assert not os.path.exists(bootstrap.address.removeprefix("unix://"))


def test_parked_sessions_are_born_with_the_shim(world, ours, template, harness):
    """A client that came before the container reads its first byte."""
    world.make_bundle(["sh", "-c", "cat; echo bye >&2"])
    client, theirs = socket.socketpair()
    reply = template.park(world, theirs.fileno(), id="p1", stdin=True, early_input=b"a", close_stdin_on_eof=True)
    assert reply.code == 0, reply.message
    theirs.close()
    client.sendall(b"b")
    assert template.ping().parked == 1
    template.fork(world)
    assert template.ping().parked == 0
    world.create(stdin=world.uri(), stdout=world.uri(), stderr=world.uri())
    world.start()
    client.sendall(b"c\n")
    client.shutdown(socket.SHUT_WR)
    client.settimeout(10)
    assert harness.receive(client) == b"abc\n"
    assert world.wait().exit_status == 0
    client.close()


def test_a_parked_session_ends_when_create_fails(world, ours, template, harness):
    """The client reads an end, not silence."""
    world.make_bundle(["nosuchprogram"])
    client, theirs = socket.socketpair()
    assert template.park(world, theirs.fileno()).code == 0
    theirs.close()
    template.fork(world)
    with pytest.raises(TTRPCError, match="executable file not found"):
        world.create(stdout=world.uri())
    client.settimeout(10)
    assert harness.receive(client) == b""
    client.close()
    world.shutdown()


def test_parked_clients_that_hang_up_are_let_go(world, ours, template):
    """No descriptor stays for a client that went away."""
    descriptors = f"/proc/{template.process.pid}/fd"
    template.ping()
    before = len(os.listdir(descriptors))
    for _ in range(3):
        client, theirs = socket.socketpair()
        assert template.park(world, theirs.fileno()).code == 0
        theirs.close()
        client.close()
    deadline = time.monotonic() + 5
    while template.ping().parked or len(os.listdir(descriptors)) > before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unpark_ends_the_connections(world, ours, template, harness):
    """A container that does not come: its clients read an end."""
    client, theirs = socket.socketpair()
    assert template.park(world, theirs.fileno()).code == 0
    theirs.close()
    unpark = template_pb2.Request(unpark=template_pb2.Unpark(namespace="shimtest", id=world.id))
    assert template.ask(unpark).code == 0
    client.settimeout(10)
    assert harness.receive(client) == b""
    assert template.ask(unpark).code == 0
    client.close()


def test_refusals(world, ours, template, harness):
    """What the contract forbids has the code that it names."""
    fork = template_pb2.Fork(namespace="shimtest", id=world.id, bundle=str(world.bundle))
    assert template.ask(template_pb2.Request(fork=fork)).code == Code.FAILED_PRECONDITION
    unknown = template_pb2.Request.FromString(b"\x7a\x00")
    assert template.ask(unknown).code == Code.UNIMPLEMENTED
    world.make_bundle(["true"])
    template.fork(world)
    client, theirs = socket.socketpair()
    assert template.park(world, theirs.fileno()).code == Code.ALREADY_EXISTS
    again = template_pb2.Fork(
        namespace="shimtest", id=world.id, bundle=str(world.bundle), address=world.address,
        socket_dir=str(template.sockets),
    )  # fmt: skip
    assert template.ask(template_pb2.Request(fork=again)).code == Code.ALREADY_EXISTS
    world.shutdown()
    assert template.park(world, theirs.fileno(), exec_id="e").code == Code.INVALID_ARGUMENT
    park = template_pb2.Park(namespace="shimtest", id=world.id, session=harness.session_of())
    assert template.ask(template_pb2.Request(park=park)).code == Code.INVALID_ARGUMENT
    client.close()
    theirs.close()


def test_the_interpreter_cannot_be_written(ours, template):
    """/proc/PID/exe of the template, and so of its children, is on a read-only mount."""
    assert os.statvfs(f"/proc/{template.process.pid}/exe").f_flag & os.ST_RDONLY
    with pytest.raises(OSError, match=r"Text file busy|Read-only file system"):
        os.open(f"/proc/{template.process.pid}/exe", os.O_WRONLY)


def test_many_forks_at_once(tmp_path, ours, template, harness):
    """Several callers at once each get their own shim, and no zombie stays."""
    worlds = [harness.World(tmp_path / str(n), None) for n in range(8)]
    for world in worlds:
        world.root.mkdir()
        world.make_bundle(["true"], rootfs=False)
    threads = [threading.Thread(target=template.fork, args=(world,)) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({world.shim_pid for world in worlds}) == 8
    for world in worlds:
        world.shutdown()
        world.close()


def test_an_idle_shim_is_small_and_sleeps(world, ours, template):
    """Its own memory stays below the budget, and it does not wake up while nothing happens."""
    world.make_bundle(["sleep", "100"])
    template.fork(world)
    world.create(stdout=world.uri())
    world.start()
    world.events.topics(2)

    def memory():
        with open(f"/proc/{world.shim_pid}/smaps_rollup") as file:
            return {line.split(":")[0]: int(line.split()[1]) for line in file if line.split()[-1] == "kB"}

    def switches():
        with open(f"/proc/{world.shim_pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))

    private = memory()["Private_Dirty"] + memory()["Private_Clean"]
    print("private", private, "KiB, PSS", memory()["Pss"], "KiB")
    # The acknowledgement of the last event may still be on its way.
    time.sleep(0.3)
    before = switches()
    time.sleep(0.5)
    assert switches() == before
    assert private <= 5632
