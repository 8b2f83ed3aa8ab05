"""A world for the container service: every layer below it as a fake that keeps what it was asked."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockerd import errors
from dockerd.config import Config
from dockerd.containers import ContainerService, ExecService, starting
from dockerd.containers.host import Host
from dockerd.containers.store import SCHEMA
from dockerd.containers.users import ROOT
from dockerd.server.reactor import Reactor
from dockerd.stdio import StandardStreams
from gantry.contracts.containerd.events import task_pb2 as task_events
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.containerd.types import event_pb2, mount_pb2
from gantry.contracts.containerd.v1.types import task_pb2
from gantry.database import Database

FIXTURES = Path(__file__).parent / "fixtures"
TIMEOUT = 10.0


def fixture(name: str) -> Any:
    """A body that the real engine sent."""
    return json.loads((FIXTURES / name).read_text())


@dataclass
class Task:
    """A task in the fake containerd."""

    container_id: str
    pid: int
    status: int = task_pb2.CREATED
    exit_status: int = 0
    signals: list[int] = field(default_factory=list)


class Stream:
    """A subscription: an iterator that can be cancelled."""

    def __init__(self) -> None:
        self.queue: queue.Queue[event_pb2.Envelope | None] = queue.Queue()

    def __iter__(self) -> Iterator[event_pb2.Envelope]:
        while (envelope := self.queue.get()) is not None:
            yield envelope

    def cancel(self) -> None:
        self.queue.put(None)


class FakeContainerd:
    """Containers, snapshots, tasks and events. ``dies_of`` are the signals that end a task; ``fail`` maps a method to
    the error that its next call raises."""

    namespace = "moby"
    address = "/run/fake.sock"

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.live_tasks: dict[str, Task] = {}
        self.snapshot_keys: dict[str, str] = {}
        self.calls: list[str] = []
        self.fail: dict[str, errors.EngineError] = {}
        self.dies_of = {9, 15}
        self.streams: list[Stream] = []
        self.pids = itertools.count(1000)
        self.exec_specs: dict[str, Any] = {}
        self.before_start: Callable[[str], None] = lambda _container_id: None
        self.containers = SimpleNamespace(
            Create=self.create_container, Delete=self.delete_container, List=self.list_containers
        )
        self.snapshots = SimpleNamespace(
            Prepare=self.prepare,
            Mounts=lambda request, timeout=None: snapshots_pb2.MountsResponse(mounts=[mount_pb2.Mount(type="bind")]),
            Remove=self.remove_snapshot,
            List=self.list_snapshots,
            Usage=lambda request, timeout=None: snapshots_pb2.UsageResponse(size=4096),
        )
        self.tasks = SimpleNamespace(
            Create=self.create_task,
            Start=self.start_task,
            Delete=self.delete_task,
            DeleteProcess=self.delete_process,
            Kill=self.kill,
            Wait=lambda request, timeout=None: None,
            List=self.list_tasks,
            Get=self.get_task,
            Pause=lambda request, timeout=None: self.call("Tasks.Pause"),
            Resume=lambda request, timeout=None: self.call("Tasks.Resume"),
            Update=lambda request, timeout=None: self.call("Tasks.Update"),
            ResizePty=lambda request, timeout=None: self.call("Tasks.ResizePty"),
            Exec=self.exec,
        )
        self.events = SimpleNamespace(Subscribe=self.subscribe, Publish=self.publish)

    def call(self, method: str) -> None:
        self.calls.append(method)
        error = self.fail.pop(method, None)
        if error is not None:
            raise error

    def subscribe(self, request: Any) -> Stream:
        stream = Stream()
        self.streams.append(stream)
        return stream

    def publish(self, request: Any, timeout: float | None = None) -> None:
        for stream in self.streams:
            stream.queue.put(event_pb2.Envelope(namespace="moby", topic=request.topic, event=request.event))

    def send(self, topic: str, event: Any) -> None:
        envelope = event_pb2.Envelope(namespace="moby", topic=topic)
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        for stream in self.streams:
            stream.queue.put(envelope)

    def create_container(self, request: Any, timeout: float | None = None) -> None:
        self.call("Containers.Create")
        if request.container.id in self.records:
            raise errors.Conflict("already exists")
        self.records[request.container.id] = request.container

    def delete_container(self, request: Any, timeout: float | None = None) -> None:
        self.call("Containers.Delete")
        if self.records.pop(request.id, None) is None:
            raise errors.NotFound(request.id)

    def list_containers(self, request: Any, timeout: float | None = None) -> Any:
        return SimpleNamespace(containers=list(self.records.values()))

    def prepare(self, request: Any, timeout: float | None = None) -> Any:
        self.call("Snapshots.Prepare")
        self.snapshot_keys[request.key] = request.parent
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[mount_pb2.Mount(type="bind", source="/")])

    def remove_snapshot(self, request: Any, timeout: float | None = None) -> None:
        self.call("Snapshots.Remove")
        if self.snapshot_keys.pop(request.key, None) is None:
            raise errors.NotFound(request.key)

    def list_snapshots(self, request: Any, timeout: float | None = None) -> Any:
        infos = [snapshots_pb2.Info(name=name) for name in self.snapshot_keys]
        return [snapshots_pb2.ListSnapshotsResponse(info=infos)]

    def create_task(self, request: Any, timeout: float | None = None) -> Any:
        self.call("Tasks.Create")
        task = self.live_tasks[request.container_id] = Task(request.container_id, next(self.pids))
        return tasks_pb2.CreateTaskResponse(container_id=request.container_id, pid=task.pid)

    def start_task(self, request: Any, timeout: float | None = None) -> Any:
        self.call("Tasks.Start")
        self.before_start(request.container_id)
        if request.exec_id:
            return tasks_pb2.StartResponse(pid=next(self.pids))
        task = self.live_tasks[request.container_id]
        if task.status == task_pb2.CREATED:
            task.status = task_pb2.RUNNING
        return tasks_pb2.StartResponse(pid=task.pid)

    def delete_task(self, request: Any, timeout: float | None = None) -> Any:
        self.call("Tasks.Delete")
        task = self.live_tasks.get(request.container_id)
        if task is None:
            raise errors.NotFound(request.container_id)
        if task.status in (task_pb2.RUNNING, task_pb2.PAUSED):
            raise errors.Conflict("task must be stopped before deletion")
        del self.live_tasks[request.container_id]
        return tasks_pb2.DeleteResponse(pid=task.pid, exit_status=task.exit_status)

    def delete_process(self, request: Any, timeout: float | None = None) -> None:
        self.call("Tasks.DeleteProcess")

    def kill(self, request: Any, timeout: float | None = None) -> None:
        self.call("Tasks.Kill")
        task = self.live_tasks.get(request.container_id)
        if task is None or task.status == task_pb2.STOPPED:
            raise errors.NotFound("process already finished")
        task.signals.append(request.signal)
        if request.signal in self.dies_of:
            self.end(request.container_id, 128 + request.signal)

    def list_tasks(self, request: Any, timeout: float | None = None) -> Any:
        tasks = [
            task_pb2.Process(id=task.container_id, pid=task.pid, status=task.status, exit_status=task.exit_status)
            for task in self.live_tasks.values()
        ]
        return tasks_pb2.ListTasksResponse(tasks=tasks)

    def get_task(self, request: Any, timeout: float | None = None) -> Any:
        if request.exec_id:
            status = task_pb2.STOPPED if request.exec_id in self.exec_specs else task_pb2.RUNNING
            return tasks_pb2.GetResponse(process=task_pb2.Process(status=status, exit_status=5))
        task = self.live_tasks.get(request.container_id)
        if task is None:
            raise errors.NotFound(request.container_id)
        process = task_pb2.Process(id=task.container_id, pid=task.pid, status=task.status, exit_status=task.exit_status)
        return tasks_pb2.GetResponse(process=process)

    def exec(self, request: Any, timeout: float | None = None) -> None:
        self.call("Tasks.Exec")
        self.exec_specs[request.exec_id] = json.loads(request.spec.value)

    def end(self, container_id: str, code: int, *, tell: bool = True) -> None:
        """The container's process ends."""
        task = self.live_tasks[container_id]
        task.status, task.exit_status = task_pb2.STOPPED, code
        if tell:
            event = task_events.TaskExit(container_id=container_id, id=container_id, pid=task.pid, exit_status=code)
            self.send("/tasks/exit", event)


class FakeStreams:
    """Names streams, keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.answers: list[tuple[str, tuple[str, ...], int]] = []

    def uris(self, target: Any, exec_id: str | None = None, **_: Any) -> StandardStreams:
        return StandardStreams("", f"/fifo/{exec_id or target.id}", "", False)

    def before_start(self, target: Any, exec_id: str | None = None) -> None:
        self.told.append(("before_start", exec_id or target.id))

    def after_exit(self, container_id: str, exec_id: str | None = None) -> None:
        self.told.append(("after_exit", exec_id or container_id))

    def forget(self, container_id: str) -> None:
        self.told.append(("forget", container_id))

    def restore(self, target: Any) -> None:
        self.told.append(("restore", target.id))

    def answer(self, container_id: str, conditions: Iterable[str], exit_code: int, error: str = "") -> None:
        self.answers.append((container_id, tuple(conditions), exit_code))


class FakeNetworks:
    """Gives every container a namespace."""

    gateway = "10.0.0.1"

    def __init__(self) -> None:
        self.allocated: dict[str, str] = {}
        self.live: list[str] | None = None
        self.fail: errors.EngineError | None = None

    def allocate(self, container_id: str, *, mode: str, **_: Any) -> Any:
        if self.fail is not None:
            raise self.fail
        self.allocated[container_id] = mode
        return SimpleNamespace(
            netns_path=f"/netns/{container_id}",
            address="10.0.0.2",
            addresses=("10.0.0.2",),
            gateway="10.0.0.1",
            resolver=False,
            settings={},
        )

    def check(self, memberships: Mapping[str, Any]) -> None:
        return

    def release(self, container_id: str) -> None:
        self.allocated.pop(container_id, None)

    def restore(self, live_ids: Iterable[str]) -> None:
        self.live = list(live_ids)

    def settings(self, container_id: str, mode: str = "default", *_: Any, **__: Any) -> Mapping[str, Any]:
        return {"Ports": {}, "Networks": {}}

    def rename(self, container_id: str, name: str) -> None:
        return


class FakeVolumes:
    """Volumes that are always full."""

    def __init__(self) -> None:
        self.used: dict[str, set[str]] = {}
        self.removed: list[str] = []
        self.numbers = itertools.count()

    def ensure(self, name: str | None, **_: Any) -> Any:
        given = name or f"anonymous{next(self.numbers)}"
        self.used.setdefault(given, set())
        return SimpleNamespace(name=given, mountpoint=f"/volumes/{given}")

    def acquire(self, name: str, container_id: str) -> None:
        self.used[name].add(container_id)

    def release(self, container_id: str) -> Sequence[str]:
        names = [name for name, users in self.used.items() if container_id in users]
        for name in names:
            self.used[name].discard(container_id)
        return names

    def remove(self, name: str, force: bool = False) -> None:
        self.removed.append(name)

    def is_empty(self, name: str) -> bool:
        return False


class FakeImages:
    """One image, ``busybox``."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"Cmd": ["sh"], "Env": ["FOO=bar"]}

    def resolve(self, reference: str) -> Any:
        if not reference.startswith("busybox"):
            raise errors.NotFound(f"No such image: {reference}:latest")
        return SimpleNamespace(id="sha256:1", chain_id="sha256:c", config=self.config)

    def ensure_unpacked(self, image: Any) -> None:
        return

    def on_usage(self, uses: Callable[[], Any]) -> None:
        self.uses = uses


class FakeEvents:
    """Keeps events, and lets a test wait for one."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, str, Mapping[str, str]]] = []
        self._changed = threading.Condition()

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:  # noqa: A002
        with self._changed:
            self.published.append((type, action, actor_id, attributes))
            self._changed.notify_all()

    def actions(self) -> list[str]:
        return [action for _, action, _, _ in self.published]

    def wait_for(self, action: str, count: int = 1) -> Mapping[str, str]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.actions().count(action) >= count, TIMEOUT), self.actions()
        return [entry for entry in self.published if entry[1] == action][count - 1][3]


class World:
    """The service and all that it stands on. ``build`` makes another engine over the same world."""

    def __init__(self, tmp_path: Path) -> None:
        self.config = Config(data_root=str(tmp_path / "data"), exec_root=str(tmp_path / "exec"))
        (tmp_path / "data").mkdir()
        (tmp_path / "exec").mkdir()
        self.database = Database(tmp_path / "engine.db", [SCHEMA])
        self.containerd = FakeContainerd()
        self.streams = FakeStreams()
        self.networks = FakeNetworks()
        self.volumes = FakeVolumes()
        self.images = FakeImages()
        self.events = FakeEvents()
        self.reactor = Reactor()
        self.reactor.start()
        self.services: list[ContainerService] = []
        self.service = self.build()
        self.execs = self.build_execs(self.service)

    def build(self) -> ContainerService:
        service = ContainerService(
            config=self.config,
            database=self.database,
            containerd=self.containerd,  # type: ignore[arg-type]
            reactor=self.reactor,
            events=self.events,  # type: ignore[arg-type]
            streams=self.streams,  # type: ignore[arg-type]
            images=self.images,  # type: ignore[arg-type]
            networks=self.networks,  # type: ignore[arg-type]
            volumes=self.volumes,  # type: ignore[arg-type]
        )
        self.services.append(service)
        return service

    def build_execs(self, service: ContainerService) -> ExecService:
        return ExecService(service, self.containerd, self.events, self.streams)  # type: ignore[arg-type]

    def run(self, name: str = "c1", **body: Any) -> str:
        """Create and start a container; returns its id."""
        container, _ = self.service.create({"Image": "busybox", **body}, name)
        self.service.start_container(container.id)
        return container.id

    def restart_engine(self) -> ContainerService:
        """The engine goes and another one comes."""
        self.service.close()
        for stream in self.containerd.streams:
            stream.cancel()
        self.containerd.streams.clear()
        self.service = self.build()
        self.execs = self.build_execs(self.service)
        self.service.start()
        return self.service

    def close(self) -> None:
        for service in self.services:
            service.close()
        self.reactor.close()
        self.database.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A started service over fakes."""
    monkeypatch.setattr(starting, "identity_of", lambda mounts, user, groups: ROOT)
    starting._identities.clear()
    made = World(tmp_path)
    made.service.start()
    yield made
    made.close()


@pytest.fixture
def host() -> Host:
    """A machine with four processors and every limit."""
    return Host(cpus=frozenset(range(4)), init="/usr/bin/docker-init")
