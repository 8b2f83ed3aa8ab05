"""The shims' registry, against a shim that is a few lines of Python."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from containerd.anyvalue import AnyValue
from containerd.config import Config
from containerd.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound, Unknown
from containerd.events import Envelope, Exchange
from containerd.metadata.containers import Container
from containerd.runtime.bootstrap import Bootstrap, write_bootstrap
from containerd.runtime.bundle import Bundles
from containerd.runtime.shims import Shims
from containerd.tasks import ProcessIO, Tasks
from gantry.contracts.containerd.events.task_pb2 import TaskExit
from gantry.contracts.containerd.task.v2 import shim_pb2 as shim_v2_pb2
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.ttrpc import Code, TTRPCError, address
from gantry.ttrpc.aio_server import Server

NS = "ns"


class FakeShim:
    """Serves task API 3 in this process and counts the calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[str] = []
        self.exits: dict[str, asyncio.Future[int]] = {}
        self.status = 2
        self.created = False
        self.hang = False
        self.failure: TTRPCError | None = None
        self.contract: Any = shim_pb2
        self.comes_back = False
        self._server = Server()

    async def serve(self) -> None:
        self._server = Server()
        self._server.add_service(self.contract.DESCRIPTOR.services_by_name["Task"], self)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        await self._server.serve(address.listen(f"unix://{self.path}"))

    async def die(self) -> None:
        await self._server.close()
        self.path.unlink()

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)

        async def unserved(request: Any, call: Any) -> Any:
            raise TTRPCError(Code.UNIMPLEMENTED, name)

        return unserved

    async def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.hang:
            await asyncio.sleep(3600)
        if self.failure is not None:
            raise self.failure

    async def Create(self, request: Any, call: Any) -> Any:
        await self._enter("Create")
        self.created = True
        return shim_pb2.CreateTaskResponse(pid=4711)

    async def State(self, request: Any, call: Any) -> Any:
        await self._enter("State")
        if not self.created:
            raise TTRPCError(Code.NOT_FOUND, "container not created: not found")
        response = shim_pb2.StateResponse(id=request.id, pid=4711, exit_status=9 if self.status == 3 else 0)
        response.status = self.status  # type: ignore[assignment]
        response.exited_at.seconds = 5
        return response

    async def Wait(self, request: Any, call: Any) -> Any:
        await self._enter("Wait")
        future = self.exits.setdefault(request.exec_id, asyncio.get_running_loop().create_future())
        return shim_pb2.WaitResponse(exit_status=await asyncio.shield(future))

    async def Delete(self, request: Any, call: Any) -> Any:
        await self._enter("Delete")
        return shim_pb2.DeleteResponse(pid=4711, exit_status=9)

    async def Shutdown(self, request: Any, call: Any) -> Any:
        self.calls.append("Shutdown")
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._end()))
        return Empty()

    async def _end(self) -> None:
        await self.die()
        if self.comes_back:
            await self.serve()


class World:
    """Shims and tasks over one fake shim, whose command line is a script."""

    def __init__(self, tmp_path: Path, shim: FakeShim) -> None:
        self.tmp_path = tmp_path
        self.shim = shim
        self.deletes = tmp_path / "deletes"
        self.binary = tmp_path / "containerd-shim-fake-v1"
        reply = f'{{"version":3,"address":"unix://{shim.path}","protocol":"ttrpc"}}'
        self.binary.write_text(
            f"#!{sys.executable} -IS\nimport sys\nif sys.argv[-1] == 'start':\n    print({reply!r})\n"
            f"elif sys.argv[-1] == 'delete':\n    open({str(self.deletes)!r}, 'a').write('x')\n"
            "    sys.stdout.buffer.write(bytes.fromhex('0807108901'))\n"
        )
        self.binary.chmod(0o755)
        self.config = Config(
            root=str(tmp_path / "root"),
            state=str(tmp_path / "state"),
            timeouts={
                **Config().timeouts,
                "io.containerd.timeout.task.state": 0.5,
                "io.containerd.timeout.shim.load": 1.0,
            },
        ).resolved()
        self.events = Exchange()
        self.heard: list[Envelope] = []
        self.events.listen(self.heard.append)
        os.makedirs(self.config.shim_sockets, exist_ok=True)
        self.bundles = Bundles(f"{self.config.state}/t", f"{self.config.root}/t")
        self.shims = Shims(self.config, self.bundles, self.events, lambda namespace, name: str(self.binary))
        self.tasks = Tasks(self.config, self.shims, self._container)

    def _container(self, namespace: str, name: str) -> Container:
        if name == "unknown":
            raise NotFound(f'container "{name}" in namespace "{namespace}": not found')
        return Container(id=name, runtime=str(self.binary), spec=AnyValue("spec", b"{}"))

    async def create(self) -> int:
        return await self.tasks.create(NS, "web", [], ProcessIO(), None, "", None)

    def exits(self) -> list[TaskExit]:
        return [TaskExit.FromString(e.event.value) for e in self.heard if e.topic == "/tasks/exit"]


@contextlib.asynccontextmanager
async def _world(tmp_path: Path) -> AsyncIterator[World]:
    shim = FakeShim(tmp_path / "shim.sock")
    await shim.serve()
    world = World(tmp_path, shim)
    try:
        yield world
    finally:
        await world.shims.stop()
        with contextlib.suppress(FileNotFoundError):
            await shim.die()


def _run(tmp_path: Path, work: Callable[[World], Any]) -> None:
    async def outer() -> None:
        async with _world(tmp_path) as world:
            await asyncio.wait_for(work(world), 30)

    asyncio.run(outer())


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)


def test_a_task_lives_and_ends(tmp_path: Path) -> None:
    """Create, get, delete; afterwards the shim is gone, its bundle too, and no cold `delete` was needed."""

    async def work(world: World) -> None:
        assert await world.create() == 4711
        state = await world.tasks.get(NS, "web", "", None)
        assert (state.pid, state.status, state.id) == (4711, 2, "web")
        assert [s.id for s in await world.tasks.list(NS)] == ["web"]
        assert await world.tasks.list("other") == []
        with pytest.raises(AlreadyExists, match=r"^task web: already exists$"):
            await world.create()
        assert (await world.tasks.delete(NS, "web", None)).status == 9
        with pytest.raises(NotFound, match=r"^task web not found$"):
            await world.tasks.get(NS, "web", "", None)
        await _until(lambda: not list(world.bundles.all()))
        assert world.shim.calls[-2:] == ["Delete", "Shutdown"]
        assert not world.deletes.exists()

    _run(tmp_path, work)


def test_a_new_task_of_a_name_waits_for_the_old_ones_end(tmp_path: Path) -> None:
    """Delete answers at once; what is left to clean up is in nobody's way."""

    async def work(world: World) -> None:
        world.shim.comes_back = True
        await world.create()
        await world.tasks.delete(NS, "web", None)
        assert [bundle.id for bundle in world.bundles.all()] == ["web"]
        assert await world.create() == 4711
        assert world.shim.calls[-2:] == ["Shutdown", "Create"]
        assert [bundle.id for bundle in world.bundles.all()] == ["web"]

    _run(tmp_path, work)


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    """The runtime's own text reaches the caller; shim and bundle are gone."""

    async def work(world: World) -> None:
        world.shim.failure = TTRPCError(Code.UNKNOWN, "OCI runtime create failed: boom: unknown")
        with pytest.raises(Unknown, match=r"^failed to create shim task: OCI runtime create failed: boom: unknown$"):
            await world.create()
        assert list(world.bundles.all()) == []
        assert world.shims.get(NS, "web") is None
        assert "Shutdown" in world.shim.calls
        assert not world.deletes.exists()

    _run(tmp_path, work)


def test_a_cancelled_create_leaves_nothing(tmp_path: Path) -> None:
    """A client that goes away in the middle takes the half-made task with it."""

    async def work(world: World) -> None:
        world.shim.hang = True
        creating = asyncio.ensure_future(world.create())
        await _until(lambda: "Create" in world.shim.calls)
        world.shim.hang = False
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await _until(lambda: not list(world.bundles.all()))
        assert world.shims.get(NS, "web") is None
        assert world.deletes.read_text() == "x"

    _run(tmp_path, work)


def test_a_shim_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    """What the program printed is the error."""

    async def work(world: World) -> None:
        world.binary.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
        with pytest.raises(Unknown, match=r"^failed to start shim: no such luck: exit status 1$"):
            await world.create()
        assert list(world.bundles.all()) == []

    _run(tmp_path, work)


def test_the_container_is_looked_for_before_the_task(tmp_path: Path) -> None:
    """Clients tell a container that is not there from one that does not run."""

    async def work(world: World) -> None:
        with pytest.raises(NotFound, match=r'^container "unknown" in namespace "ns": not found$'):
            await world.tasks.kill(NS, "unknown", "", 9, False, None)
        with pytest.raises(NotFound, match=r"^task web not found$"):
            await world.tasks.kill(NS, "web", "", 9, False, None)

    _run(tmp_path, work)


def test_all_who_wait_share_one_call(tmp_path: Path) -> None:
    """A hundred waiters cost the shim one call; a cancelled one takes nothing from the others."""

    async def work(world: World) -> None:
        await world.create()
        waiting = [asyncio.ensure_future(world.tasks.wait(NS, "web", "")) for _ in range(100)]
        await _until(lambda: "" in world.shim.exits)
        waiting.pop().cancel()
        world.shim.exits[""].set_result(7)
        assert {exit_.status for exit_ in await asyncio.gather(*waiting)} == {7}
        assert world.shim.calls.count("Wait") == 1

    _run(tmp_path, work)


def test_an_exit_event_ends_the_waiting_too(tmp_path: Path) -> None:
    """Whichever comes first: the event or the answer."""

    async def work(world: World) -> None:
        await world.create()
        init = asyncio.ensure_future(world.tasks.wait(NS, "web", ""))
        command = asyncio.ensure_future(world.tasks.wait(NS, "web", "e1"))
        await _until(lambda: len(world.shim.exits) == 2)
        world.events.publish("/tasks/exit", TaskExit(container_id="web", id="e1", pid=2, exit_status=1), NS)
        assert (await command).status == 1
        assert not init.done()
        world.events.publish("/tasks/exit", TaskExit(container_id="web", id="web", pid=1, exit_status=3), NS)
        assert (await init).status == 3
        assert next(world.bundles.all()).exited()

    _run(tmp_path, work)


def test_the_shims_errors_keep_their_kind(tmp_path: Path) -> None:
    """Code and text of an answer go through."""

    async def work(world: World) -> None:
        await world.create()
        world.shim.failure = TTRPCError(Code.FAILED_PRECONDITION, "task must be stopped before deletion: running")
        with pytest.raises(FailedPrecondition, match=r"^failed to delete task: task must be stopped"):
            await world.tasks.delete(NS, "web", None)
        assert world.shims.get(NS, "web") is not None

    _run(tmp_path, work)


def test_a_stuck_shim_holds_nobody_up(tmp_path: Path) -> None:
    """A call ends at the caller's deadline, a listing at its own, with the task in it."""

    async def work(world: World) -> None:
        await world.create()
        world.shim.hang = True
        with pytest.raises(DeadlineExceeded, match=r"did not answer Delete within 0.1 s"):
            await world.tasks.delete(NS, "web", 0.1)
        with pytest.raises(DeadlineExceeded, match=r"did not answer State"):
            await world.tasks.get(NS, "web", "", None)
        assert [(s.id, s.status) for s in await world.tasks.list(NS)] == [("web", 0)]

    _run(tmp_path, work)


def test_a_dead_shim_is_reported_and_cleaned_up_after(tmp_path: Path) -> None:
    """Exit and delete are published with 137, who waits is told, the bundle is gone."""

    async def work(world: World) -> None:
        await world.create()
        waiting = asyncio.ensure_future(world.tasks.wait(NS, "web", ""))
        await _until(lambda: "" in world.shim.exits)
        await world.shim.die()
        assert (await waiting).status == 137
        assert [(e.container_id, e.id, e.pid, e.exit_status) for e in world.exits()] == [("web", "web", 7, 137)]
        assert world.heard[-1].topic == "/tasks/delete"
        assert list(world.bundles.all()) == []
        assert world.deletes.read_text() == "x"
        with pytest.raises(NotFound, match=r"^task web not found$"):
            await world.tasks.get(NS, "web", "", None)

    _run(tmp_path, work)


def test_a_shim_that_replaces_itself_is_connected_to_again(tmp_path: Path) -> None:
    """A connection that ends is not yet a death: those who wait go on waiting."""

    async def work(world: World) -> None:
        await world.create()
        waiting = asyncio.ensure_future(world.tasks.wait(NS, "web", ""))
        await _until(lambda: "" in world.shim.exits)
        await world.shim.die()
        await world.shim.serve()
        await _until(lambda: world.shim.calls.count("Wait") == 2)
        world.shim.exits[""].set_result(5)
        assert (await waiting).status == 5
        assert world.exits() == []

    _run(tmp_path, work)


def test_a_shim_that_is_slow_to_come_back_is_not_buried(tmp_path: Path) -> None:
    """It listens: that is enough to keep its container."""

    async def work(world: World) -> None:
        await world.create()
        await world.shim.die()
        world.shim.hang = True
        await world.shim.serve()
        await _until(lambda: "State" in world.shim.calls)
        await asyncio.gather(*world.shims._background)
        assert world.shims.get(NS, "web") is not None
        assert world.exits() == []
        assert not world.deletes.exists()

    _run(tmp_path, work)


def test_living_shims_are_found_again(tmp_path: Path) -> None:
    """A new daemon finds the task of the old one and goes on with it."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        later = World(tmp_path, world.shim)
        await later.shims.load()
        assert (await later.tasks.get(NS, "web", "", None)).pid == 4711
        await later.tasks.delete(NS, "web", None)
        await later.shims.stop()

    _run(tmp_path, work)


@pytest.mark.parametrize("known", [False, True])
def test_an_exit_that_nobody_heard_of_is_reported_once(tmp_path: Path, known: bool) -> None:
    """A container that ended while no daemon ran is reported, unless a daemon did so before."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        world.shim.status = 3
        if known:
            next(world.bundles.all()).mark_exited()
        later = World(tmp_path, world.shim)
        await later.shims.load()
        if known:
            await asyncio.gather(*later.shims._background)
            assert later.exits() == []
        else:
            await _until(lambda: bool(later.exits()))
            assert [(e.id, e.exit_status, e.exited_at.seconds) for e in later.exits()] == [("web", 9, 5)]
        await later.shims.stop()

    _run(tmp_path, work)


def test_dead_and_half_made_ones_are_cleaned_up_at_the_start(tmp_path: Path) -> None:
    """A shim that died meanwhile is reported; a bundle without one disappears; so does a shim without a task."""

    async def work(world: World) -> None:
        dead = world.bundles.create(NS, "dead", b"{}")
        write_bootstrap(dead, Bootstrap(3, f"unix://{tmp_path}/nobody"))
        world.bundles.create(NS, "half", b"{}")
        leaked = world.bundles.create(NS, "leaked", b"{}")
        write_bootstrap(leaked, Bootstrap(3, f"unix://{world.shim.path}"))
        os.makedirs(f"{world.config.root}/t/{NS}/orphan")
        await world.shims.load()
        assert list(world.bundles.all()) == []
        assert os.listdir(f"{world.config.root}/t/{NS}") == []
        assert [e.container_id for e in world.exits()] == ["dead"]
        assert "Shutdown" in world.shim.calls
        assert world.shims.all(NS) == []

    _run(tmp_path, work)


def test_a_shim_that_no_bundle_knows_is_ended(tmp_path: Path) -> None:
    """A daemon that is killed right after a fork leaves a shim behind; the next one ends it, and a dead socket goes."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        stray = FakeShim(Path(world.config.shim_sockets) / "stray")
        await stray.serve()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{world.config.shim_sockets}/dead")
        later = World(tmp_path, world.shim)
        await later.shims.load()
        assert stray.calls == ["Shutdown"]
        assert os.listdir(world.config.shim_sockets) == []
        assert [shim.id for shim in later.shims.all(NS)] == ["web"]
        await later.shims.stop()

    _run(tmp_path, work)


def test_a_stuck_shim_is_kept_at_the_start(tmp_path: Path) -> None:
    """One that does not answer may be busy: it is kept, and the start is not held up for long."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        world.shim.hang = True
        later = World(tmp_path, world.shim)
        await later.shims.load()
        assert [shim.id for shim in later.shims.all(NS)] == ["web"]
        await later.shims.stop()

    _run(tmp_path, work)


def test_a_shim_older_than_its_program_is_spoken_to_in_its_own_version(tmp_path: Path) -> None:
    """The running shim decides, not the binary on disk."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        await world.shim.die()
        world.shim.contract = shim_v2_pb2
        await world.shim.serve()
        later = World(tmp_path, world.shim)
        await later.shims.load()
        assert [shim.version for shim in later.shims.all(NS)] == [2]
        assert (await later.tasks.get(NS, "web", "", None)).pid == 4711
        await later.shims.stop()


def test_a_shim_that_nobody_understands_is_left_alone(tmp_path: Path) -> None:
    """After a downgrade of the daemon its containers go on, and a newer daemon finds them."""

    async def work(world: World) -> None:
        await world.create()
        await world.shims.stop()
        bundle = next(world.bundles.all())
        newer = FakeShim(Path(world.config.shim_sockets) / "newer")
        await newer.serve()
        write_bootstrap(bundle, Bootstrap(4, f"unix://{newer.path}"))
        later = World(tmp_path, world.shim)
        await later.shims.load()
        assert later.shims.all(NS) == []
        assert os.path.exists(bundle.path)
        assert newer.calls == []
        await newer.die()
        await later.shims.stop()

    _run(tmp_path, work)
