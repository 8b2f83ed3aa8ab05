"""Stop, kill, restart, pause: what users do to containers that run.

Nobody holds a container while it is given time to stop: others can kill it meanwhile. Whoever waits for an exit is told
by the one who handles it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dockerd import errors
from dockerd.containers import signals
from dockerd.containers.exits import Exits
from dockerd.containers.model import Container, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.starting import Starting
from dockerd.containers.wait import Condition, Outcome
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2

if TYPE_CHECKING:
    from dockerd.server.reactor import Timer

__all__ = ["Done", "Lifecycle"]

Done = Callable[[errors.EngineError | None], None]
"""Told once how something ended: None is well."""

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
        """:meth:`begin_stop`, and wait for it. Raises its error."""
        _waiting(lambda done: self.begin_stop(handle, timeout, signal, done))

    def begin_stop(self, handle: Handle, timeout: int | None, signal: str, done: Done) -> None:
        """Ask the process to end, and after ``timeout`` seconds make it; -1 gives it for ever.

        ``done`` is called once, from any thread, when the process has ended, or with the error that keeps it from
        ending. Raises NotModified when it does not run; ``done`` is not called then.
        """
        container = handle.container
        number = signals.parse(signal) if signal else _stop_signal(container)
        with handle.exclusive():
            _require_present(handle)
            cancelled = self._exits.cancel(handle)
            if not cancelled and not handle.container.state.running:
                raise errors.NotModified("")
        if cancelled:
            done(None)
            return
        if timeout is None:
            timeout = container.config.stop_timeout
        if timeout is None:
            timeout = _DEFAULT_STOP_TIMEOUT

        def finish(error: errors.EngineError | None) -> None:
            if error is None:
                self._parts.publish(handle.container, "stop")
            done(error)

        attempts = [(number, None if timeout < 0 else float(timeout)), (_SIGKILL, _KILL_TIMEOUT)]
        _Stop(self._parts, handle, attempts, self._signal, finish).go_on()

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
        """:meth:`begin_restart`, and wait for it. Raises its error."""
        _waiting(lambda done: self.begin_restart(handle, timeout, signal, done))

    def begin_restart(self, handle: Handle, timeout: int | None, signal: str, done: Done) -> None:
        """Stop the container if it runs, and start it; ``done`` as for :meth:`begin_stop`."""
        handle.restarting_by_user = True

        def start(error: errors.EngineError | None) -> None:
            try:
                if error is None:
                    self._start_again(handle)
            except errors.EngineError as failure:
                error = failure
            finally:
                handle.restarting_by_user = False
            done(error)

        try:
            # The news of an end comes in a thread that must not be kept.
            self.begin_stop(handle, timeout, signal, lambda error: self._parts.in_background(lambda: start(error)))
        except errors.NotModified:
            start(None)
        except BaseException:
            handle.restarting_by_user = False
            raise

    def _start_again(self, handle: Handle) -> None:
        try:
            self.start(handle)
        except errors.NotModified:  # somebody else was quicker
            return
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


class _Stop:
    """A stop under way: each of its signals has some seconds to work. Nobody waits for it in a thread."""

    def __init__(
        self,
        parts: Parts,
        handle: Handle,
        attempts: list[tuple[int, float | None]],
        signal: Callable[[Handle, int], None],
        done: Done,
    ) -> None:
        self._parts = parts
        self._handle = handle
        self._attempts = attempts
        self._signal = signal
        self._done = done
        self._timer: Timer | None = None
        self._lock = threading.Lock()  # held for good by whoever finishes
        self._forget = handle.waiters.add(Condition.NEXT_EXIT, lambda _outcome: self._finish(None))

    def go_on(self) -> None:
        """Send the next signal, and come back when its time is over."""
        handle = self._handle
        if not self._attempts:
            self._finish(
                errors.SystemFailure(
                    f"cannot stop container: {handle.container.name}: tried to kill container, but did not receive an "
                    "exit event"
                )
            )
            return
        number, seconds = self._attempts.pop(0)
        try:
            with handle.exclusive():
                running = handle.container.state.running and not self._lock.locked()
                if running:
                    self._parts.change(handle, stopped_by_user=True)
                    self._signal(handle, number)
        except errors.EngineError as error:
            self._finish(error)
            return
        if not running:
            self._finish(None)
        elif seconds is not None and not self._lock.locked():
            self._timer = self._parts.reactor.call_later(seconds, lambda: self._parts.in_background(self.go_on))

    def _finish(self, error: errors.EngineError | None) -> None:
        if not self._lock.acquire(blocking=False):
            return
        self._forget()
        if self._timer is not None:
            self._timer.cancel()
        self._done(error)


def _waiting(begin: Callable[[Done], None]) -> None:
    """Begin something and wait until it is done. Raises its error."""
    event = threading.Event()
    failures: list[errors.EngineError] = []

    def done(error: errors.EngineError | None) -> None:
        if error is not None:
            failures.append(error)
        event.set()

    begin(done)
    event.wait()
    if failures:
        raise failures[0]


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
