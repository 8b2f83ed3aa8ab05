"""Stop, kill, restart, pause: what users do to containers that run.

Nobody holds a container while it is given time to stop: others can kill it meanwhile. Whoever waits for an exit is told
by the one who handles it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from dockerd import errors
from dockerd.containers import signals
from dockerd.containers.exits import Exits
from dockerd.containers.model import Container, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.starting import Starting
from dockerd.containers.wait import Condition, Outcome
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2

__all__ = ["Lifecycle"]

_DEFAULT_STOP_TIMEOUT = 10
_KILL_TIMEOUT = 10.0
_SIGKILL = 9


class Lifecycle:
    """Operations on running containers."""

    def __init__(self, parts: Parts, starting: Starting, exits: Exits, discard: Callable[[Handle], None]) -> None:
        self._parts = parts
        self._starting = starting
        self._exits = exits
        self._discard = discard

    def start(self, handle: Handle) -> None:
        """Start a container. Raises NotModified when it runs, Conflict when it is paused or being removed."""
        with handle.exclusive():
            _require_present(handle)
            status = handle.container.state.status
            if status is Status.PAUSED:
                raise errors.Conflict("cannot start a paused container, try unpause instead")
            if status is Status.RUNNING:
                raise errors.NotModified("")
            if status in (Status.REMOVING, Status.DEAD):
                raise errors.Conflict("container is marked for removal and cannot be started")
            self._exits.cancel(handle)
            handle.restart_delay = 0.0
            self._parts.change(handle, restart_count=0)
            try:
                self._starting.start(handle)
            except errors.EngineError:
                if handle.container.host_config.auto_remove:
                    self._discard(handle)
                raise

    def stop(self, handle: Handle, timeout: int | None = None, signal: str = "") -> None:
        """Ask the process to end, and after ``timeout`` seconds make it; -1 waits for ever.

        Raises NotModified when it does not run.
        """
        with handle.exclusive():
            _require_present(handle)
            if self._exits.cancel(handle):
                return
            if not handle.container.state.running:
                raise errors.NotModified("")
        self._stop(handle, timeout, signal)
        self._parts.publish(handle.container, "stop")

    def kill(self, handle: Handle, signal: str = "") -> None:
        """Send a signal, SIGKILL when none is named; after SIGKILL the process has ended. Raises Conflict."""
        container = handle.container
        prefix = f"cannot kill container: {container.name}"
        try:
            number = signals.parse(signal) if signal else _SIGKILL
        except errors.InvalidParameter as error:
            raise errors.InvalidParameter(f"{prefix}: {error}") from None
        with _Exit(handle) as ended:
            with handle.exclusive():
                _require_present(handle)
                if self._exits.cancel(handle) and number == _SIGKILL:
                    return
                if not handle.container.state.running:
                    raise errors.Conflict(f"{prefix}: container {handle.id} is not running")
                if number in (_SIGKILL, _stop_signal(container)):
                    # The user has ended it: its policy does not start it again.
                    self._parts.change(handle, stopped_by_user=True)
                self._signal(handle, number)
            if number == _SIGKILL and not ended.wait(_KILL_TIMEOUT):
                raise errors.SystemFailure(f"{prefix}: tried to kill container, but did not receive an exit event")

    def restart(self, handle: Handle, timeout: int | None = None, signal: str = "") -> None:
        """Stop the container if it runs, and start it."""
        handle.restarting_by_user = True
        try:
            with contextlib.suppress(errors.NotModified):
                self.stop(handle, timeout, signal)
            try:
                self.start(handle)
            except errors.NotModified:  # somebody else was quicker
                return
        finally:
            handle.restarting_by_user = False
        self._parts.publish(handle.container, "restart")

    def pause(self, handle: Handle) -> None:
        """Freeze all processes of the container. Raises Conflict."""
        with handle.exclusive():
            _require_present(handle)
            state = handle.container.state
            if state.status is Status.PAUSED:
                raise errors.Conflict(f"Container {handle.id} is already paused")
            if state.status is Status.RESTARTING:
                raise errors.Conflict(f"Container {handle.id} is restarting, wait until the container is running")
            if not state.running:
                raise errors.Conflict(f"Container {handle.id} is not running")
            try:
                self._parts.containerd.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=handle.id))
            except errors.EngineError as error:
                raise type(error)(f"cannot pause container {handle.id}: {error}") from error
            self._parts.publish(self._parts.change(handle, status=Status.PAUSED), "pause")

    def unpause(self, handle: Handle) -> None:
        """Let a frozen container go on. Raises Conflict."""
        with handle.exclusive():
            _require_present(handle)
            if handle.container.state.status is not Status.PAUSED:
                raise errors.Conflict(f"Container {handle.id} is not paused")
            self._resume(handle)

    def _resume(self, handle: Handle) -> None:
        try:
            self._parts.containerd.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=handle.id))
        except errors.EngineError as error:
            raise type(error)(f"cannot resume container {handle.id}: {error}") from error
        self._parts.publish(self._parts.change(handle, status=Status.RUNNING), "unpause")

    def _stop(self, handle: Handle, timeout: int | None, signal: str) -> None:
        container = handle.container
        number = signals.parse(signal) if signal else _stop_signal(container)
        if timeout is None:
            timeout = container.config.stop_timeout
        if timeout is None:
            timeout = _DEFAULT_STOP_TIMEOUT
        with _Exit(handle) as ended:
            for attempt, seconds in ((number, None if timeout < 0 else float(timeout)), (_SIGKILL, _KILL_TIMEOUT)):
                with handle.exclusive():
                    if not handle.container.state.running:
                        return
                    self._parts.change(handle, stopped_by_user=True)
                    self._signal(handle, attempt)
                if ended.wait(seconds):
                    return
        raise errors.SystemFailure(
            f"cannot stop container: {container.name}: tried to kill container, but did not receive an exit event"
        )

    def _signal(self, handle: Handle, number: int) -> None:
        """Signal the container's process; a frozen one is thawed, or it could not act on it."""
        request = tasks_pb2.KillRequest(container_id=handle.id, signal=number)
        try:
            self._parts.containerd.tasks.Kill(request)
        except (errors.NotFound, errors.Conflict):
            # It ended by itself; that news is on its way.
            return
        finally:
            self._parts.publish(handle.container, "kill", {"signal": str(number)})
        if handle.container.state.status is Status.PAUSED:
            self._resume(handle)


class _Exit:
    """The container's next exit, to be waited for."""

    def __init__(self, handle: Handle) -> None:
        self._event = threading.Event()
        self._forget = handle.waiters.add(Condition.NEXT_EXIT, self._happened)

    def __enter__(self) -> _Exit:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    def wait(self, timeout: float | None) -> bool:
        """Whether it has come within ``timeout`` seconds."""
        return self._event.wait(timeout)

    def _happened(self, _outcome: Outcome) -> None:
        self._event.set()


def _stop_signal(container: Container) -> int:
    return signals.parse(container.config.stop_signal or "SIGTERM")


def _require_present(handle: Handle) -> None:
    if handle.removed:
        raise errors.NotFound(f"No such container: {handle.id}")
