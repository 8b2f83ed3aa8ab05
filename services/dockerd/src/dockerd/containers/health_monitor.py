"""Running health checks: each is an exec, its output is read in the reactor, and timers say when. No thread waits.

What a container's events tell (start, pause, end) begins and ends its checks; after a restart of the engine they go on.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from dockerd import errors
from dockerd.containers import health, timestamps
from dockerd.containers.model import Container, HealthResult, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.server.reactor import READ
from dockerd.stdio import AttachOptions
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2

if TYPE_CHECKING:
    from dockerd.containers.exec import ExecService
    from dockerd.server.reactor import Reactor, Timer

__all__ = ["HealthMonitor"]

_log = logging.getLogger(__name__)

_OUTPUT_BYTES = 4096
# What a process wrote before its end has come by then; something that it left running may write for ever.
_DRAIN_SECONDS = 0.5


class HealthMonitor:
    """The health checks of all containers that run."""

    def __init__(self, parts: Parts, execs: ExecService) -> None:
        self._parts = parts
        self._execs = execs
        self._lock = threading.Lock()
        self._watches: dict[str, _Watch] = {}

    def resume(self) -> None:
        """Go on with the checks of containers that run already."""
        for handle in self._parts.registry.all():
            if handle.container.state.status is Status.RUNNING:
                self._begin(handle)

    def follow(self, container: Container, action: str) -> None:
        """Something has happened to a container; whoever tells it holds the container."""
        if health.command(container) is None:
            return
        handle = self._parts.registry.get(container.id)
        if handle is None:
            return
        if action in ("start", "unpause"):
            self._begin(handle)
        elif action in ("pause", "die"):
            self._end(container.id)
            state = handle.container.state
            if state.health is not None and state.health.status != health.UNHEALTHY:
                # Unchecked counts as unhealthy, with the real engine.
                self._parts.change(handle, health=msgspec.structs.replace(state.health, status=health.UNHEALTHY))
        elif action == "destroy":
            self._end(container.id)

    def _begin(self, handle: Handle) -> None:
        if health.command(handle.container) is None:
            return
        watch = _Watch(handle)
        with self._lock:
            earlier = self._watches.get(handle.id)
            self._watches[handle.id] = watch
        if earlier is not None:
            earlier.stop()
        self._schedule(watch)

    def _end(self, container_id: str) -> None:
        with self._lock:
            watch = self._watches.pop(container_id, None)
        if watch is not None:
            watch.stop()

    def _schedule(self, watch: _Watch) -> None:
        seconds = health.delay(watch.handle.container, time.time_ns()) / 1e9
        watch.timer = self._parts.reactor.call_later(
            seconds, lambda: self._parts.in_background(lambda: self._probe(watch))
        )

    def _probe(self, watch: _Watch) -> None:
        """Run one check: begin it here, the rest follows in the reactor."""
        if watch.stopped:
            return
        container = watch.handle.container
        started = timestamps.now()

        def report(exit_code: int, output: str) -> None:
            result = HealthResult(start=started, end=timestamps.now(), exit_code=exit_code, output=output)
            self._parts.in_background(lambda: watch.handle.submit(lambda: self._apply(watch, result)))

        try:
            self._run(container, report)
        except errors.EngineError as error:
            _log.debug("container %s: its health cannot be checked: %s", container.id[:12], error)
            report(-1, str(error))

    def _run(self, container: Container, report: Callable[[int, str], None]) -> None:
        config = container.config
        made = self._execs.create(
            container.id,
            {
                "Cmd": health.command(container),
                "AttachStdout": True,
                "AttachStderr": True,
                "User": config.user,
                "WorkingDir": config.working_dir,
            },
        )
        prepared = self._execs.prepare(made.id)
        ours, theirs = socket.socketpair()
        failures: list[errors.EngineError] = []
        run = _Run(self._parts.reactor, ours, report, health.timeout(container), lambda: self._kill(made.id, container))
        self._execs.on_end(made.id, run.ended)

        def start() -> None:
            try:
                self._execs.start(made.id)
            except errors.EngineError as error:
                failures.append(error)
                raise

        options = AttachOptions(stdout=True, stderr=True, multiplexed=False)
        try:
            self._parts.streams.start_exec(prepared, made.id, theirs, b"", options, start)
        except BaseException:
            run.drop()
            raise
        finally:
            self._execs.clean(made.id)
        if failures:
            run.drop()
            raise failures[0]
        run.begin()

    def _kill(self, exec_id: str, container: Container) -> None:
        request = tasks_pb2.KillRequest(container_id=container.id, exec_id=exec_id, signal=9)

        def kill() -> None:
            try:
                self._parts.containerd.tasks.Kill(request)
            except errors.EngineError as error:
                _log.debug("container %s: a check that takes too long: %s", container.id[:12], error)

        self._parts.in_background(kill)

    def _apply(self, watch: _Watch, result: HealthResult) -> None:
        """Take note of a result. The caller holds the container."""
        handle = watch.handle
        if watch.stopped or handle.removed:
            return
        before = handle.container.state.health
        now = health.after(handle.container, result)
        if before is not None and before.status == now.status:
            handle.container = handle.container.with_state(health=now)  # not worth a write to the disk
        else:
            self._parts.publish(self._parts.change(handle, health=now), f"health_status: {now.status}")
        self._schedule(watch)


class _Watch:
    """The checks of one run of a container."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.stopped = False
        self.timer: Timer | None = None

    def stop(self) -> None:
        """No more checks; the result of one under way is not taken note of."""
        self.stopped = True
        if self.timer is not None:
            self.timer.cancel()


class _Run:
    """One check under way, in the reactor: it ends with its process, or when its time is over."""

    def __init__(
        self,
        reactor: Reactor,
        stream: socket.socket,
        report: Callable[[int, str], None],
        timeout: int,
        kill: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._stream: socket.socket | None = stream
        self._report = report
        self._timeout = timeout
        self._kill = kill
        self._output = bytearray()
        self._truncated = False
        self._watched = False
        self._exit_code: int | None = None
        self._timer: Timer | None = None
        self._done = False

    def begin(self) -> None:
        """The process runs."""
        self._reactor.call_soon(self._watch)
        self._timer = self._reactor.call_later(self._timeout / 1e9, self._expire)

    def ended(self, exit_code: int) -> None:
        """The process has ended: the news may come in any thread."""
        self._reactor.call_soon(lambda: self._ended(exit_code))

    def drop(self) -> None:
        """It was never run."""
        self._done = True
        self._reactor.call_soon(self._close)

    def _watch(self) -> None:
        if self._stream is not None:
            self._stream.setblocking(False)
            self._reactor.watch(self._stream.fileno(), READ, lambda _events: self._read())
            self._watched = True

    def _read(self) -> None:
        assert self._stream is not None
        try:
            data = self._stream.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            if self._exit_code is not None:
                self._finish(self._exit_code, self._text())
            return
        room = _OUTPUT_BYTES - len(self._output)
        self._output += data[:room]
        self._truncated = self._truncated or len(data) > room

    def _ended(self, exit_code: int) -> None:
        self._exit_code = exit_code
        if self._stream is None:
            self._finish(exit_code, self._text())
        else:
            self._reactor.call_later(_DRAIN_SECONDS, lambda: self._finish(exit_code, self._text()))

    def _expire(self) -> None:
        if self._done or self._exit_code is not None:
            return
        self._kill()
        text = f"Health check exceeded timeout ({health.go_duration(self._timeout)})"
        self._finish(-1, f"{text}: {self._text()}" if self._output else text)

    def _finish(self, exit_code: int, output: str) -> None:
        if self._done:
            return
        self._done = True
        if self._timer is not None:
            self._timer.cancel()
        self._close()
        self._report(exit_code, output)

    def _text(self) -> str:
        return self._output.decode("utf-8", "replace") + ("..." if self._truncated else "")

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            if self._watched:
                self._reactor.unwatch(stream.fileno())
            stream.close()
