"""What happens when a container's process has ended: its state, its network, who waits, a new start or its removal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dockerd import errors
from dockerd.containers import restart, timestamps
from dockerd.containers.model import Container, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.starting import Starting, delete_container, delete_task
from dockerd.containers.wait import Condition, Outcome

__all__ = ["Exits"]

_log = logging.getLogger(__name__)


class Exits:
    """Follows up on exits. ``remove`` removes a container that was to go with its process (``--rm``)."""

    def __init__(self, parts: Parts, starting: Starting, remove: Callable[[Handle], None]) -> None:
        self._parts = parts
        self._starting = starting
        self._remove = remove

    def handle(self, handle: Handle, pid: int, exit_code: int, finished_at: str) -> None:
        """The process ``pid`` has ended with ``exit_code``. The caller holds the container.

        An exit of another process than the container's present one (a failed start's, or one told twice) is not news.
        """
        container = handle.container
        state = container.state
        if not state.running or (pid and state.pid and pid != state.pid):
            return
        parts = self._parts
        network = parts.helpers.submit(parts.networks.release, container.id)
        deleted = self._delete_task(container)
        # What was asked for last is not waited for before the news is told.
        forgotten = parts.helpers.submit(self._forget, container)
        parts.streams.after_exit(container.id)
        self._starting.after_exit(container)
        network.result()
        policy = container.host_config.restart_policy
        again = restart.should_restart(policy, exit_code, state.restart_count, state.stopped_by_user)
        ended = parts.change(
            handle,
            status=Status.RESTARTING if again else Status.EXITED,
            pid=0,
            exit_code=exit_code,
            finished_at=finished_at,
        )
        ran_for = _seconds_between(state.started_at, finished_at)
        parts.publish(ended, "die", {"exitCode": str(exit_code), "execDuration": str(int(ran_for))})
        handle.waiters.exited(Outcome(exit_code))
        parts.streams.answer(container.id, (Condition.NOT_RUNNING, Condition.NEXT_EXIT), exit_code)
        handle.clean = forgotten.result() and deleted
        if again:
            self.schedule(handle, ran_for)
        elif container.host_config.auto_remove and not handle.restarting_by_user:
            self._remove(handle)

    def schedule(self, handle: Handle, ran_for: float) -> None:
        """Start the container again when its delay is over. The caller holds it; its state is RESTARTING."""
        handle.restart_delay = restart.next_delay(handle.restart_delay, ran_for)
        handle.restart_timer = self._parts.reactor.call_later(
            handle.restart_delay, lambda: self._in_background(lambda: handle.submit(lambda: self._restart(handle)))
        )

    def cancel(self, handle: Handle) -> bool:
        """Give up a start that was to come; whether there was one. The caller holds the container."""
        timer, handle.restart_timer = handle.restart_timer, None
        if timer is not None:
            timer.cancel()
        if handle.container.state.status is not Status.RESTARTING:
            return False
        self._parts.change(handle, status=Status.EXITED, stopped_by_user=True)
        return True

    def _in_background(self, action: Callable[[], None]) -> None:
        self._parts.in_background(action)

    def _restart(self, handle: Handle) -> None:
        handle.restart_timer = None
        state = handle.container.state
        if state.status is not Status.RESTARTING or handle.removed:
            return
        self._parts.change(handle, restart_count=state.restart_count + 1)
        try:
            self._starting.start(handle)
        except errors.EngineError as error:
            _log.warning("container %s: restart failed: %s", handle.id[:12], error)
            policy = handle.container.host_config.restart_policy
            failed = handle.container.state
            if restart.should_restart(policy, failed.exit_code or 1, failed.restart_count, stopped_by_user=False):
                self.schedule(handle, 0.0)
            else:
                self._parts.change(handle, status=Status.EXITED)

    def _delete_task(self, container: Container) -> bool:
        try:
            delete_task(self._parts, container.id)
        except errors.EngineError as error:
            # The exit is a fact all the same. What is left in containerd goes with the next start or the removal.
            _log.warning("container %s: cannot delete its task: %s", container.id[:12], error)
            return False
        return True

    def _forget(self, container: Container) -> bool:
        try:
            delete_container(self._parts, container.id)
        except errors.EngineError as error:
            _log.warning("container %s: containerd keeps it: %s", container.id[:12], error)
            return False
        return True


def _seconds_between(started_at: str, finished_at: str) -> float:
    started = timestamps.to_nanoseconds(started_at)
    finished = timestamps.to_nanoseconds(finished_at) or time.time_ns()
    return max(0.0, (finished - started) / 1e9)
