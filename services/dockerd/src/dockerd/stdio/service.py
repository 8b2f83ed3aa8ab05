"""Who carries a container's bytes: the shim, when it can take connections, else the engine's pump.

Life of a container's streams, seen from :mod:`dockerd.containers`::

    names = streams.uris(target)                   # before Tasks.Create: its stdin, stdout, stderr
    Tasks.Create(...names...)
    streams.before_start(target)                   # sessions that wait are attached: no first byte is lost
    Tasks.Start
    ...
    streams.after_exit(target.id)                  # after Tasks.Delete: the streams are drained, sessions end
    streams.forget(target.id)                      # the container is removed, or its start failed

The same for an exec, with ``exec_id``. An attach may come at any time; before the start it waits. After a restart of
the engine, ``streams.restore(target)`` takes a running container's streams up again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dockerd.config import Config
from dockerd.errors import Conflict, EngineError, SystemFailure
from dockerd.server.reactor import Reactor
from dockerd.stdio import handoff, pump
from dockerd.stdio.rotation import rotation
from dockerd.stdio.target import AttachOptions, StandardStreams, StreamTarget
from gantry.contracts.containerd.services.introspection.v1 import introspection_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.stdio import detachkeys, framing
from gantry.stdio.jsonfile import LogFile
from gantry.stdio.uri import StdioURI

if TYPE_CHECKING:
    from dockerd.containerd_client import Client

__all__ = ["StreamService", "tell_failure", "wait_chunks"]

TEMPLATE_PLUGIN = "io.gantry.shim.template.v1"

_log = logging.getLogger(__name__)

_Key = tuple[str, str]
"""Container id, and exec id or nothing."""


@dataclass(frozen=True)
class _Waiting:
    """A connection that came before there was anyone to give it to."""

    client: socket.socket
    session: stdio_pb2.Session


class StreamService:
    """See the module's description. Methods may be called from any thread but the reactor's."""

    def __init__(self, config: Config, containerd: Client, reactor: Reactor) -> None:
        self._config = config
        self._containerd = containerd
        self._reactor = reactor
        self._template: str | None = None
        self._hands_over = False
        self._lock = threading.Lock()
        self._waiting: dict[str, list[_Waiting]] = {}
        self._pumps: dict[_Key, pump.Process] = {}

    def start(self) -> None:
        """Find out whether this containerd's shims take connections."""
        request = introspection_pb2.PluginsRequest(filters=[f"type=={TEMPLATE_PLUGIN}"])
        reply = self._containerd.introspection.Plugins(request)
        for plugin in reply.plugins:
            if plugin.type == TEMPLATE_PLUGIN and not plugin.init_err.code:
                self._hands_over = True
                self._template = plugin.exports.get("address") or None
        _log.info("standard streams: %s", "shims take connections over" if self._hands_over else "pumped by the engine")

    def close(self) -> None:
        """Let go of what the pump holds; the processes, and sessions that were handed over, go on."""
        with self._lock:
            pumps = list(self._pumps.values())
            self._pumps.clear()
        for process in pumps:
            self._reactor.call_soon(process.release)

    def uris(
        self,
        target: StreamTarget,
        exec_id: str | None = None,
        *,
        stdin: bool | None = None,
        terminal: bool | None = None,
    ) -> StandardStreams:
        """Make ready and name the streams of the container's first process, or of an exec.

        ``stdin`` and ``terminal`` default to the container's own settings.
        """
        stdin = target.open_stdin if stdin is None else stdin
        terminal = target.tty if terminal is None else terminal
        directory = self._config.container_state(target.id)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if not self._hands_over:
            return self._open_pump(target, exec_id, directory, stdin, terminal)
        uri = _stdio_uri(os.path.join(directory, "attach.sock"), None if exec_id else target)
        return StandardStreams(uri if stdin else "", uri, "" if terminal else uri, terminal)

    def before_start(self, target: StreamTarget, exec_id: str | None = None) -> None:
        """To be called between Tasks.Create (or Exec) and Tasks.Start: attaches who waits here."""
        if not self._hands_over:
            with self._lock:
                process = self._pumps.get((target.id, exec_id or ""))
            if process is not None:
                self._in_loop(process.begin)
                if exec_id is None:  # its FIFOs were opened at Tasks.Create, an exec's will be at Tasks.Start
                    self._in_loop(process.started)
            return
        if exec_id is not None:
            return
        with self._lock:
            waiting = self._waiting.pop(target.id, [])
        for one in waiting:
            try:
                handoff.attach(self._attach_path(target.id), one.session, one.client.fileno())
            except (handoff.HandoffUnavailable, handoff.HandoffRefused) as error:
                _log.error("container %s: a waiting session is lost: %s", target.id, error)
            one.client.close()

    def restore(self, target: StreamTarget) -> None:
        """To be called at the engine's start for each container that runs."""
        if self._hands_over:
            return
        directory = self._config.container_state(target.id)
        names = os.listdir(directory) if os.path.isdir(directory) else []
        for prefix in {name.rpartition("-")[0] for name in names if name.endswith("-stdout")}:
            exec_id = None if prefix == "init" else prefix
            paths = {
                stream: os.path.join(directory, f"{prefix}-{stream}") if f"{prefix}-{stream}" in names else ""
                for stream in ("stdin", "stdout", "stderr")
            }
            # An exec's streams have no log: they are read so that it does not block, and its next session goes on.
            process = self._process(target, exec_id, terminal=not paths["stderr"])
            self._reactor.call_soon(partial(process.open, **paths))
            self._reactor.call_soon(process.begin)
            self._reactor.call_soon(process.started)

    def after_exit(self, container_id: str, exec_id: str | None = None) -> None:
        """To be called once the process has ended and was deleted at containerd: what it wrote is passed on."""
        with self._lock:
            process = self._pumps.pop((container_id, exec_id or ""), None)
        directory = self._config.container_state(container_id)
        if process is not None:
            self._in_loop(process.finish)
            prefix = exec_id or "init"
            for stream in ("stdin", "stdout", "stderr"):
                _unlink(os.path.join(directory, f"{prefix}-{stream}"))

    def forget(self, container_id: str) -> None:
        """Close the sessions that wait for a start which will not come, and remove what the streams left."""
        with self._lock:
            waiting = self._waiting.pop(container_id, [])
            keys = [key for key in self._pumps if key[0] == container_id]
            processes = [self._pumps.pop(key) for key in keys]
        for one in waiting:
            one.client.close()
        for process in processes:
            self._in_loop(process.finish)
        if self._template is not None:
            try:
                handoff.unpark(self._template, self._containerd.namespace, container_id)
            except (handoff.HandoffUnavailable, handoff.HandoffRefused) as error:
                _log.debug("container %s: nothing to drop at the template: %s", container_id, error)
        shutil.rmtree(self._config.container_state(container_id), ignore_errors=True)

    def attach(
        self,
        target: StreamTarget,
        exec_id: str | None,
        client: socket.socket,
        early_input: bytes,
        options: AttachOptions,
    ) -> None:
        """Give ``client`` (an upgraded connection, owned by this call) the process's streams.

        Of an exec it is called between Tasks.Exec and Tasks.Start. Raises SystemFailure; the connection is closed then.
        """
        try:
            if self._hands_over:
                self._hand_over(target, exec_id, client, early_input, options)
            else:
                self._join_pump(target, exec_id, client, early_input, options)
        except BaseException:
            client.close()
            raise

    def start_exec(
        self,
        target: StreamTarget,
        exec_id: str,
        client: socket.socket,
        early_input: bytes,
        options: AttachOptions,
        start: Callable[[], None],
    ) -> None:
        """Attach ``client`` to an exec and run ``start`` (Tasks.Start); its failure is told to the client in the
        stream.

        ``start`` raises an error of :mod:`dockerd.errors`, having deleted the exec at containerd.
        """
        voice = client.dup()
        try:
            self.attach(target, exec_id, client, early_input, options)
            start()
            self._pump_started(target.id, exec_id)
        except EngineError as error:
            tell_failure(voice, str(error), options.multiplexed)
        finally:
            voice.close()

    def hold(self, container_id: str, condition: str, client: socket.socket) -> bool:
        """Let the template keep a connection whose reply is due when the container meets ``condition``.

        So who waits does not notice when this engine is killed or replaced meanwhile. True: the connection is the
        template's now. False: nobody can keep it, it is still the caller's.
        """
        if self._template is None:
            return False
        try:
            handoff.hold(self._template, self._containerd.namespace, container_id, condition, client.fileno())
        except (handoff.HandoffUnavailable, handoff.HandoffRefused) as error:
            _log.debug("container %s: nobody else can wait for it: %s", container_id, error)
            return False
        client.close()
        return True

    def answer(self, container_id: str, conditions: Iterable[str], exit_code: int, error: str = "") -> None:
        """Tell who waits at the template, through this engine or one before it, that the conditions are met."""
        if self._template is None:
            return
        data = wait_chunks(exit_code, error)
        try:
            handoff.answer(self._template, self._containerd.namespace, container_id, conditions, data)
        except (handoff.HandoffUnavailable, handoff.HandoffRefused) as failure:
            _log.debug("container %s: nobody waits at the template: %s", container_id, failure)

    def _attach_path(self, container_id: str) -> str:
        return os.path.join(self._config.container_state(container_id), "attach.sock")

    def _hand_over(
        self,
        target: StreamTarget,
        exec_id: str | None,
        client: socket.socket,
        early_input: bytes,
        options: AttachOptions,
    ) -> None:
        session = stdio_pb2.Session(
            id=secrets.token_hex(16),
            exec_id=exec_id or "",
            stdin=options.stdin,
            stdout=options.stdout,
            stderr=options.stderr,
            framing=stdio_pb2.FRAMING_MULTIPLEXED if options.multiplexed else stdio_pb2.FRAMING_RAW,
            detach_keys=options.detach_keys,
            early_input=early_input,
            close_stdin_on_eof=options.close_stdin_on_eof,
        )
        path = self._attach_path(target.id)
        if exec_id is not None:
            try:
                handoff.attach(path, session, client.fileno())
            except (handoff.HandoffUnavailable, handoff.HandoffRefused) as error:
                raise SystemFailure(f"cannot attach to exec {exec_id}: {error}") from error
            client.close()
            return
        # A shim that is being started listens a few milliseconds after it took over what was parked.
        deadline = time.monotonic() + handoff.TIMEOUT
        while not self._attach_or_park(target.id, path, session, client):
            if time.monotonic() > deadline:
                raise SystemFailure(f"cannot attach to container {target.id}: its shim does not answer")
            time.sleep(0.01)

    def _attach_or_park(self, container_id: str, path: str, session: stdio_pb2.Session, client: socket.socket) -> bool:
        """Give the connection to whoever has the container now. False: neither has it at this moment."""
        try:
            handoff.attach(path, session, client.fileno())
            client.close()
            return True
        except handoff.HandoffUnavailable:
            pass  # no shim yet
        except handoff.HandoffRefused as error:
            if error.code not in (handoff.NOT_FOUND, handoff.FAILED_PRECONDITION):
                raise SystemFailure(f"cannot attach to container {container_id}: {error}") from error
            # Its process has ended: the session is for the next one.
        if self._template is not None:
            try:
                handoff.park(self._template, self._containerd.namespace, container_id, session, client.fileno())
                client.close()
                return True
            except handoff.HandoffRefused as error:
                if error.code == handoff.ALREADY_EXISTS:
                    return False
                raise Conflict(f"cannot attach to container {container_id}: {error}") from error
            except handoff.HandoffUnavailable as error:
                _log.warning("the shim template does not answer: %s", error)
        with self._lock:
            self._waiting.setdefault(container_id, []).append(_Waiting(client, session))
        return True

    def _open_pump(
        self, target: StreamTarget, exec_id: str | None, directory: str, stdin: bool, terminal: bool
    ) -> StandardStreams:
        prefix = exec_id or "init"
        wanted = {"stdin": stdin, "stdout": True, "stderr": not terminal}
        paths = {}
        for stream, want in wanted.items():
            path = os.path.join(directory, f"{prefix}-{stream}")
            paths[stream] = path if want else ""
            if want:
                _make_fifo(path)
        process = self._process(target, exec_id, terminal)
        self._in_loop(lambda: process.open(**paths))
        return StandardStreams(paths["stdin"], paths["stdout"], paths["stderr"], terminal)

    def _process(self, target: StreamTarget, exec_id: str | None, terminal: bool) -> pump.Process:
        """The pump's process, made when it is new."""
        key = (target.id, exec_id or "")
        with self._lock:
            process = self._pumps.get(key)
            if process is None:
                log = None
                if exec_id is None and target.log_driver == "json-file":
                    size, count = rotation(target)
                    log = LogFile(target.log_path, size, count)
                process = self._pumps[key] = pump.Process(
                    self._reactor,
                    terminal,
                    lambda: self._close_io(target.id, exec_id),
                    log,
                    dict(target.log_attributes),
                )
        return process

    def _pump_started(self, container_id: str, exec_id: str | None) -> None:
        """Tasks.Start has answered."""
        with self._lock:
            process = self._pumps.get((container_id, exec_id or ""))
        if process is not None:
            self._reactor.call_soon(process.started)

    def _join_pump(
        self,
        target: StreamTarget,
        exec_id: str | None,
        client: socket.socket,
        early_input: bytes,
        options: AttachOptions,
    ) -> None:
        view = pump.View(
            options.stdin,
            options.stdout,
            options.stderr,
            options.multiplexed,
            detachkeys.parse(options.detach_keys),
            options.close_stdin_on_eof,
        )
        process = self._process(target, exec_id, target.tty)
        self._in_loop(lambda: process.add(pump.Session(process, client, early_input, view)))

    def _close_io(self, container_id: str, exec_id: str | None) -> None:
        request = tasks_pb2.CloseIORequest(container_id=container_id, exec_id=exec_id or "", stdin=True)
        try:
            self._containerd.tasks.CloseIO(request)
        except EngineError as error:
            _log.debug("container %s: its standard input cannot be closed any more: %s", container_id, error)

    def _in_loop(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the reactor's loop and wait for it; what it raises is raised here."""
        done = threading.Event()
        failure: list[Exception] = []

        def run() -> None:
            try:
                callback()
            except Exception as error:
                failure.append(error)
            finally:
                done.set()

        self._reactor.call_soon(run)
        done.wait()
        if failure:
            raise failure[0]


def wait_chunks(exit_code: int, error: str = "") -> bytes:
    """The body of a reply to ``POST /containers/{id}/wait``, chunked, with its end."""
    body: dict[str, object] = {"StatusCode": exit_code}
    if error:
        body["Error"] = {"Message": error}
    text = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)


def tell_failure(client: socket.socket, text: str, multiplexed: bool) -> None:
    """Say into an upgraded connection why nothing will come of it, and end it."""
    data = f"{text}\r\n".encode()
    try:
        client.settimeout(5)
        client.sendall(framing.encode(framing.Stream.STDOUT, data) if multiplexed else data)
        client.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        _log.debug("the client left before it could be told %r: %s", text, error)


def _stdio_uri(path: str, logged: StreamTarget | None) -> str:
    if logged is None or logged.log_driver != "json-file":
        return StdioURI(path).build()
    size, count = rotation(logged)
    return StdioURI(path, "json-file", logged.log_path, size, count, dict(logged.log_attributes)).build()


def _make_fifo(path: str) -> None:
    """Make a FIFO, or keep the one that is there; anything else in its place is removed."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkfifo(path, 0o600)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
