"""The restart monitor: keeps the tasks of containers as their restart labels want them.

A client says what it wants with labels, as it does to a real containerd:

==========================================  ==========================================================================
``containerd.io/restart.status``            ``running`` or ``stopped``; without it the container is left alone
``containerd.io/restart.policy``            ``always`` (also when there is none), ``unless-stopped``, ``on-failure``,
                                            ``on-failure:N`` (N restarts at most), ``no``
``containerd.io/restart.count``             how often the monitor has restarted it: the monitor counts
``containerd.io/restart.explicitly-stopped``  ``true`` keeps ``unless-stopped`` from starting it
``containerd.io/restart.loguri``            where the output goes: ``file://``, ``binary://``
``containerd.io/restart.logpath``           the same as a plain path (containerd 1.x)
==========================================  ==========================================================================

Everything is looked at once when the daemon starts and then every ``interval``. A container that ends again and again
within ten seconds is given longer pauses, up to a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from containerd.errors import ContainerdError, InvalidArgument, NotFound
from containerd.events import Exchange
from containerd.metadata.containers import Container, ContainerStore
from containerd.metadata.restarts import RestartStore
from containerd.mounts import Mount
from containerd.tasks import Mount as TaskMount
from containerd.tasks import ProcessIO, ProcessState, Tasks
from gantry.contracts.containerd.events.container_pb2 import ContainerUpdate
from gantry.contracts.containerd.v1.types import task_pb2 as task_types

__all__ = ["CAPABILITIES", "DEFAULT_INTERVAL", "Action", "Begun", "Monitor", "Policy", "decide"]

_log = logging.getLogger(__name__)

STATUS_LABEL = "containerd.io/restart.status"
POLICY_LABEL = "containerd.io/restart.policy"
COUNT_LABEL = "containerd.io/restart.count"
STOPPED_LABEL = "containerd.io/restart.explicitly-stopped"
LOG_URI_LABEL = "containerd.io/restart.loguri"
LOG_PATH_LABEL = "containerd.io/restart.logpath"

CAPABILITIES = ("no", "always", "on-failure", "unless-stopped")
DEFAULT_INTERVAL = 10.0
STEADY = 10.0
"""Seconds that a restarted task has to run for the next pause to be a short one again."""
LONGEST_PAUSE = 60.0
_LIMIT = 120.0
"""Seconds for one restart: a shim that is stuck is tried again later."""
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_Key = tuple[str, str]


class Action(enum.Enum):
    """What has to be done to a task."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True)
class Policy:
    """A restart policy; ``maximum`` bounds the restarts of ``on-failure``, 0 is without end."""

    name: str
    maximum: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read the label's value; empty is ``always``. Raises :class:`InvalidArgument`."""
        name, colon, maximum = text.partition(":")
        if name not in ("", *CAPABILITIES):
            raise InvalidArgument(f'restart policy "{text}" not supported: invalid argument')
        if not colon:
            return cls(name or "always")
        if name != "on-failure":
            raise InvalidArgument(f'restart policy "{name}" not support max retry count: invalid argument')
        try:
            return cls(name, int(maximum))
        except ValueError:
            raise InvalidArgument(f"invalid max retry count: {maximum}: invalid argument") from None

    def wants(self, labels: Mapping[str, str], exit_status: int, *, resumed: bool = False) -> bool:
        """Tell whether a task that ended with ``exit_status`` has to be started again.

        ``resumed`` is a restart that an earlier daemon began: it has been counted. Raises :class:`InvalidArgument`.
        """
        match self.name:
            case "always":
                return True
            case "unless-stopped":
                return labels.get(STOPPED_LABEL, "") not in _TRUE
            case "on-failure":
                count = _count(labels)
                return resumed or (exit_status != 0 and (not self.maximum or count < self.maximum))
            case _:
                return False


class Begun(enum.Enum):
    """Whether a restart of the container was begun and has not been finished."""

    NO = "no"
    FAILED = "by this daemon, and it failed"
    RESUMED = "by an earlier daemon"


def decide(labels: Mapping[str, str], state: ProcessState | None, begun: Begun = Begun.NO) -> Action:
    """Return what the labels ask for, given how the task is (None: there is none).

    Of a task that is gone nobody knows how it ended: ``on-failure`` takes that for a success, unless it went because
    it was being restarted. Raises :class:`InvalidArgument` for labels that cannot be understood.
    """
    wanted = labels.get(STATUS_LABEL, "")
    if wanted == "stopped":
        return Action.NOTHING if state is None or state.status == task_types.STOPPED else Action.STOP
    if wanted != "running":
        return Action.NOTHING
    policy = Policy.parse(labels.get(POLICY_LABEL, ""))
    if state is not None and state.status == task_types.STOPPED:
        start = policy.wants(labels, state.exit_status)
    elif state is None or state.status == task_types.CREATED:
        start = policy.wants(labels, int(begun is not Begun.NO), resumed=begun is Begun.RESUMED)
    else:
        start = False  # it runs, is paused, or does not say
    return Action.START if start else Action.NOTHING


def _count(labels: Mapping[str, str]) -> int:
    text = labels.get(COUNT_LABEL, "") or "0"
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"{COUNT_LABEL} is not a number: {text}: invalid argument") from None


def output(labels: Mapping[str, str], *, terminal: bool) -> ProcessIO:
    """Return where the streams of a restarted task go. Raises :class:`InvalidArgument` for a bad URI."""
    uri, path = labels.get(LOG_URI_LABEL, ""), labels.get(LOG_PATH_LABEL, "")
    if uri and not urlsplit(uri).scheme:
        raise InvalidArgument(f"{LOG_URI_LABEL} is not a URI: {uri}: invalid argument")
    if not uri and path:
        uri = f"file://{quote(path)}"
    return ProcessIO(stdout=uri, stderr="" if terminal else uri, terminal=terminal)


@dataclass(frozen=True)
class _Attempt:
    """The last restart of a container: when (nanoseconds since 1970), and how many in a row did not last."""

    at: int
    short: int = 0


class Monitor:
    """Looks after the containers with restart labels. Used in the event loop.

    ``mounts(namespace, snapshotter, key)`` gives a snapshot's mounts; it is called in a thread.
    """

    def __init__(
        self,
        interval: float,
        containers: ContainerStore,
        restarts: RestartStore,
        tasks: Tasks,
        mounts: Callable[[str, str, str], Sequence[Mount]],
        events: Exchange,
    ) -> None:
        self._interval = interval or DEFAULT_INTERVAL
        self._containers = containers
        self._restarts = restarts
        self._tasks = tasks
        self._mounts = mounts
        self._events = events
        self._since = time.time_ns()
        self._attempts: dict[_Key, _Attempt] = {}
        self._created: dict[_Key, int] = {}
        self._busy: dict[_Key, asyncio.Task[None]] = {}
        self._complaints: dict[_Key, str] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at once, and from now on at every interval."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop looking. A restart that is under way is finished by the next daemon."""
        work = [*self._busy.values()]
        if self._loop is not None:
            work.append(self._loop)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.check()
            except Exception:
                _log.exception("restart monitor: check failed")
            await asyncio.sleep(self._interval)

    async def check(self) -> None:
        """Look at every container with a status label, and begin what has to be done."""
        found = await asyncio.to_thread(self._containers.with_label, STATUS_LABEL)
        watched = {(namespace, container.id): container for namespace, container in found}
        begun = await asyncio.to_thread(self._restarts.under_way)
        for key in begun - watched.keys():
            await asyncio.to_thread(self._restarts.end, *key)
        memories: tuple[dict[_Key, Any], ...] = (self._attempts, self._complaints, self._created)
        for memory in memories:
            for key in memory.keys() - watched.keys():
                del memory[key]
        await asyncio.gather(
            *(self._look(key, item, key in begun) for key, item in watched.items() if key not in self._busy)
        )

    async def _look(self, key: _Key, container: Container, begun: bool) -> None:
        mark = Begun.NO if not begun else Begun.FAILED if key in self._attempts else Begun.RESUMED
        try:
            state = await self._state(key)
            action = decide(container.labels, state, mark)
        except ContainerdError as error:
            self._complain(key, str(error))
            return
        if begun and state is not None and state.status == task_types.RUNNING:
            await asyncio.to_thread(self._restarts.end, *key)
        if action is Action.START and mark is Begun.NO and self._in_the_making(key, container, state):
            return
        self._created.pop(key, None)
        if action is Action.STOP:
            self._begin(key, self._end(key, state))
        elif action is Action.START and self._pause_is_over(key, state):
            self._begin(key, self._restart(key, container, state, counted=mark is Begun.RESUMED))

    def _begin(self, key: _Key, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._bounded(key, work))
        self._busy[key] = task
        task.add_done_callback(lambda _: self._busy.pop(key, None))

    async def _state(self, key: _Key) -> ProcessState | None:
        try:
            return await self._tasks.get(*key, "", None)
        except NotFound:
            return None

    def _in_the_making(self, key: _Key, container: Container, state: ProcessState | None) -> bool:
        """Tell whether a client may be about to start it itself: such a one is left alone for an interval."""
        now = time.time_ns()
        if state is None:
            return container.created_at > self._since and now - container.created_at < self._interval * 1e9
        if state.status != task_types.CREATED:
            return False
        return now - self._created.setdefault(key, now) < self._interval * 1e9

    def _pause_is_over(self, key: _Key, state: ProcessState | None) -> bool:
        attempt = self._attempts.get(key)
        if attempt is None:
            return True
        ended = state.exited_at if state is not None and state.exited_at else attempt.at
        if ended - attempt.at >= STEADY * 1e9:
            del self._attempts[key]
            return True
        pause = min(self._interval * (1 << min(attempt.short, 16)), max(LONGEST_PAUSE, self._interval))
        return time.time_ns() - attempt.at >= pause * 1e9

    async def _bounded(self, key: _Key, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(_LIMIT):
                await work
        except TimeoutError:
            self._complain(key, f"not done within {_LIMIT:g} s")
        except (OSError, ContainerdError) as error:
            self._complain(key, str(error))
        else:
            self._complaints.pop(key, None)

    async def _restart(self, key: _Key, container: Container, state: ProcessState | None, *, counted: bool) -> None:
        last = self._attempts.get(key)
        self._attempts[key] = _Attempt(time.time_ns(), 0 if last is None else last.short + 1)
        streams = output(container.labels, terminal=_has_terminal(container))
        await asyncio.to_thread(self._restarts.begin, *key)
        if not counted:
            await self._count(key, container)
        await self._end(key, state)
        mounts: Sequence[Mount] = ()
        if container.snapshot_key:
            mounts = await asyncio.to_thread(self._mounts, key[0], container.snapshotter, container.snapshot_key)
        rootfs = [TaskMount(mount.type, mount.source, mount.target, mount.options) for mount in mounts]
        await self._tasks.create(*key, rootfs, streams, None, "", None)
        await self._tasks.start(*key, "", None)
        await asyncio.to_thread(self._restarts.end, *key)
        _log.info("container restarted", extra={"id": container.id, "namespace": key[0]})

    async def _count(self, key: _Key, container: Container) -> None:
        change = Container(container.id, labels={COUNT_LABEL: str(_count(container.labels) + 1)})
        updated = await asyncio.to_thread(self._containers.update, key[0], change, [f"labels.{COUNT_LABEL}"])
        event = ContainerUpdate(
            id=updated.id, image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
        )
        self._events.publish("/containers/update", event, key[0])

    async def _end(self, key: _Key, state: ProcessState | None) -> None:
        """End and remove the task; one that is gone already is no error."""
        if state is None:
            return
        with contextlib.suppress(NotFound):
            if state.status != task_types.STOPPED:
                everything = state.status != task_types.CREATED
                await self._tasks.kill(*key, "", signal.SIGKILL, everything, None)
                if state.status in (task_types.PAUSED, task_types.PAUSING):
                    await self._tasks.resume(*key, None)  # a frozen process does not die (cgroup v1)
                await self._tasks.wait(*key, "")
            await self._tasks.delete(*key, None)

    def _complain(self, key: _Key, text: str) -> None:
        """Log what keeps a container from being as it should, once for each reason."""
        if self._complaints.get(key) != text:
            self._complaints[key] = text
            _log.error("restart monitor: %s", text, extra={"id": key[1], "namespace": key[0]})


def _has_terminal(container: Container) -> bool:
    try:
        spec = json.loads(container.spec.value) if container.spec else {}
        terminal: object = spec["process"]["terminal"]
        return terminal is True
    except (ValueError, KeyError, TypeError):
        return False
