"""The containerd that the engine starts for itself when it is not told which one to use.

It is a daemon of its own: detached, in its own session, known by its socket alone. So a killed engine leaves it, the
next one finds it, and it does not matter which process once started it.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from dockerd.config import Config
from dockerd.server.reactor import READ, Reactor

__all__ = ["StartError", "Supervisor", "ensure", "find_program", "peer_pid", "stop"]

START_SECONDS = 30.0
STOP_SECONDS = 10.0
RESTART_SECONDS = (0.1, 30.0)
"""Between an unexpected end and a new start: at first, and at most."""

_log = logging.getLogger(__name__)


class StartError(Exception):
    """There is no containerd, and none could be started."""


def ensure(config: Config) -> str:
    """Return the address of the engine's own containerd, which runs when this returns. Raises :class:`StartError`."""
    root, state = config.own_containerd()
    address = os.path.join(state, "containerd.sock")
    if peer_pid(address) is not None:
        _log.info("found containerd at %s", address)
        return address
    for path, mode in ((root, 0o711), (state, 0o711)):
        os.makedirs(path, mode=mode, exist_ok=True)
    program = find_program("containerd")
    arguments = [program, "--root", root, "--state", state, "--address", address]
    arguments += ["--log-level", "debug" if config.debug else config.log_level]
    _log.info("starting containerd at %s", address)
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=_environment(),
    )
    deadline = time.monotonic() + START_SECONDS
    while peer_pid(address) is None:
        status = process.poll()
        if status is not None:
            raise StartError(
                f"failed to start containerd: {program} ended with status {status}; see its messages above"
            )
        if time.monotonic() > deadline:
            process.kill()
            raise StartError(f"failed to start containerd: timeout waiting for it to listen on {address}")
        time.sleep(0.02)
    return address


def _environment() -> dict[str, str]:
    """This process's, without what its service manager said to it alone."""
    own = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")
    return {name: value for name, value in os.environ.items() if name not in own} | {"PATH": search_path()}


def search_path() -> str:
    """Where programs are looked for: beside this daemon's own, then in PATH."""
    own = os.path.dirname(os.path.abspath(sys.argv[0]))
    return os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def find_program(name: str) -> str:
    """Find a program of the engine. Raises :class:`StartError`."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise StartError(f"{name} was found neither beside dockerd nor in PATH: install it, or use --containerd")
    return found


def peer_pid(address: str) -> int | None:
    """The process that listens on a unix socket, None when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


class Supervisor:
    """Starts the engine's own containerd again when it ends while the engine runs.

    Lives in a worker's reactor; it knows containerd by its socket, whoever started it.
    """

    def __init__(self, config: Config, reactor: Reactor) -> None:
        self._config = config
        self._reactor = reactor
        self._address = os.path.join(config.own_containerd()[1], "containerd.sock")
        self._delay = RESTART_SECONDS[0]
        self._closed = False

    def start(self) -> None:
        """Begin to watch."""
        self._reactor.call_soon(self._watch)

    def close(self) -> None:
        """Watch no more; containerd goes on."""
        self._closed = True

    def _watch(self) -> None:
        pid = peer_pid(self._address)
        try:
            descriptor = -1 if pid is None else os.pidfd_open(pid)
        except ProcessLookupError:
            descriptor = -1
        if pid is None or descriptor < 0:
            self._start_again()
            return
        begun = time.monotonic()

        def ended(_events: int) -> None:
            self._reactor.unwatch(descriptor)
            os.close(descriptor)
            _reap(pid)
            if self._closed:
                return
            _log.error("containerd (pid %d) has ended unexpectedly: it is started again", pid)
            if time.monotonic() - begun > RESTART_SECONDS[1]:
                self._delay = RESTART_SECONDS[0]
            self._start_again()

        self._reactor.watch(descriptor, READ, ended)

    def _start_again(self) -> None:
        delay, self._delay = self._delay, min(self._delay * 2, RESTART_SECONDS[1])
        self._reactor.call_later(delay, lambda: threading.Thread(target=self._ensure, daemon=True).start())

    def _ensure(self) -> None:
        if self._closed:
            return
        try:
            ensure(self._config)
        except (OSError, StartError) as error:
            _log.error("%s", error)
        self._reactor.call_soon(self._watch)


def _reap(pid: int) -> None:
    """Take the exit status of a containerd that was this process's child."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def stop(address: str) -> None:
    """Ask the containerd at ``address`` to end, and wait until it has; containers and their shims go on."""
    pid = peer_pid(address)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        ended, _, _ = select.select([descriptor], [], [], STOP_SECONDS)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    if not ended:
        _log.warning("containerd (pid %d) did not end within %d seconds", pid, STOP_SECONDS)
