"""The template, played by a program that answers as the contract says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists
from containerd.runtime.bootstrap import Bootstrap, ShimBinary
from containerd.runtime.bundle import Bundle
from containerd.runtime.template import Template

PROGRAM = """
import os, socket, sys
from gantry.contracts.containerd.types.introspection_pb2 import RuntimeInfo
from gantry.contracts.gantry.shim.template.v1 import template_pb2 as t
here = os.path.dirname(os.path.abspath(__file__))
version = open(here + "/version").read()
if sys.argv[-1] == "-info":
    info = RuntimeInfo(annotations={"io.gantry.shim.template.v1": "1"} if version else {})
    info.version.version = version
    sys.stdout.buffer.write(info.SerializeToString())
    sys.exit(int(not os.path.exists(here + "/knows-info")))
if os.path.exists(here + "/broken"):
    sys.exit("no template today")
assert sys.argv[1:5] == ["-address", "/c.sock", "-socket", sys.argv[4]] and sys.argv[-1] == "template", sys.argv
assert os.getsid(0) == os.getpid()
open(here + "/started", "a").write("x")
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[4])
listener.listen()
while True:
    connection, _ = listener.accept()
    request = t.Request.FromString(connection.recv(262144))
    reply = t.Reply()
    if request.HasField("ping"):
        reply.pong.version, reply.pong.pid = version, os.getpid()
    elif request.HasField("fork") and request.fork.id == "taken":
        reply.code, reply.message = 6, "a shim for taken runs"
    elif request.HasField("fork"):
        open(here + "/fork", "wb").write(request.fork.SerializeToString())
        reply.bootstrap.version, reply.bootstrap.address, reply.bootstrap.protocol = 3, "unix:///shim", "ttrpc"
    connection.send(reply.SerializeToString())
    connection.close()
    if request.HasField("stop"):
        sys.exit()
"""


class World:
    """A template client and the program that it starts."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.program = tmp_path / "shim"
        self.program.write_text(f"#!{sys.executable}\n{PROGRAM}")
        self.program.chmod(0o755)
        (tmp_path / "version").write_text("1.0")
        (tmp_path / "knows-info").touch()
        self.binary = ShimBinary(str(self.program), "/c.sock", "/c.sock.ttrpc", "/sockets")
        self.template = self.client()

    def client(self) -> Template:
        return Template(self.binary, str(self.path / "run" / "t.sock"))

    def bundle(self, name: str = "web") -> Bundle:
        return Bundle("ns", name, f"/bundles/{name}")

    def starts(self) -> int:
        started = self.path / "started"
        return len(started.read_text()) if started.exists() else 0

    async def pid(self, template: Template) -> int:
        return (await template._ping()).pid


@contextlib.asynccontextmanager
async def _world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        await world.template.stop()
        world.template.close()


def _run(tmp_path: Path, work: Callable[[World], Any]) -> None:
    async def outer() -> None:
        async with _world(tmp_path) as world:
            await asyncio.wait_for(work(world), 30)

    asyncio.run(outer())


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)


def test_a_shim_is_forked_with_all_that_start_would_tell_it(tmp_path: Path) -> None:
    """The first fork starts the template; the request carries argv, environment and options of the bootstrap."""
    from gantry.contracts.gantry.shim.template.v1.template_pb2 import Fork

    async def work(world: World) -> None:
        options = AnyValue("containerd.runc.v1.Options", b"\x01")
        assert await world.template.fork(world.bundle(), options, 5) == Bootstrap(3, "unix:///shim")
        fork = Fork.FromString((tmp_path / "fork").read_bytes())
        assert (fork.namespace, fork.id, fork.bundle, fork.address) == ("ns", "web", "/bundles/web", "/c.sock")
        assert (fork.ttrpc_address, fork.socket_dir, fork.debug) == ("/c.sock.ttrpc", "/sockets", False)
        assert fork.environment["TTRPC_ADDRESS"] == "/c.sock.ttrpc"
        assert (fork.options.type_url, fork.options.value) == (options.type_url, options.value)
        await world.template.fork(world.bundle("db"), None, 5)
        assert not Fork.FromString((tmp_path / "fork").read_bytes()).HasField("options")
        with pytest.raises(AlreadyExists, match="a shim for taken runs"):
            await world.template.fork(world.bundle("taken"), None, 5)
        assert world.starts() == 1

    _run(tmp_path, work)


def test_a_running_template_is_found_again(tmp_path: Path) -> None:
    """A daemon that starts later uses the same process."""

    async def work(world: World) -> None:
        assert await world.template.ensure()
        pid = await world.pid(world.template)
        world.template.close()
        later = world.client()
        assert await later.ensure()
        assert await world.pid(later) == pid
        later.close()

    _run(tmp_path, work)


def test_a_template_of_another_version_is_replaced(tmp_path: Path) -> None:
    """At the daemon's start, and while it runs, as soon as the program on disk is another one."""

    async def work(world: World) -> None:
        await world.template.ensure()
        first = await world.pid(world.template)
        (tmp_path / "version").write_text("1.1")
        os.utime(world.program, ns=(1, 1))
        assert await world.template.fork(world.bundle(), None, 5) is not None
        second = await world.pid(world.template)
        assert second != first
        (tmp_path / "version").write_text("1.2")
        later = world.client()
        assert await later.ensure()
        assert await world.pid(later) != second
        assert world.starts() == 3
        later.close()

    _run(tmp_path, work)


def test_a_template_that_dies_comes_back(tmp_path: Path) -> None:
    """The kernel tells of its death, and nobody has to ask for it before the next one is there."""

    async def work(world: World) -> None:
        await world.template.ensure()
        pid = await world.pid(world.template)
        os.kill(pid, signal.SIGKILL)
        await _until(lambda: world.starts() == 2 and world.template.running)
        assert await world.pid(world.template) != pid

    _run(tmp_path, work)


def test_a_fork_survives_the_templates_death(tmp_path: Path) -> None:
    """A fork that finds nobody starts another template at once."""

    async def work(world: World) -> None:
        await world.template.ensure()
        pid = await world.pid(world.template)
        world.template._watch(0)  # as if the news had not arrived yet
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
        assert await world.template.fork(world.bundle(), None, 5) == Bootstrap(3, "unix:///shim")

    _run(tmp_path, work)


@pytest.mark.parametrize("reason", ["broken", "old", "plain"])
def test_without_a_template_shims_start_by_themselves(tmp_path: Path, reason: str) -> None:
    """A template that cannot start, a shim without -info, one without the annotation: None says so, quickly."""

    async def work(world: World) -> None:
        if reason == "broken":
            (tmp_path / "broken").touch()
        elif reason == "old":
            (tmp_path / "knows-info").unlink()
        else:
            (tmp_path / "version").write_text("")
        assert await world.template.fork(world.bundle(), None, 5) is None
        begin = time.monotonic()
        assert await world.template.fork(world.bundle(), None, 5) is None
        assert time.monotonic() - begin < 0.05, "the program was asked again"
        assert not world.template.running

    _run(tmp_path, work)
