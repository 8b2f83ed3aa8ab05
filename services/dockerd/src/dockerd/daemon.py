"""The daemon as a process of the machine: its directories, its pid file, its sockets, its containerd.

All of this happens in the master, before gunicorn and without the engine's libraries. What it starts outlives it: a
containerd of the engine's own is detached, is found again by its socket, and is ended only by an ordinary stop of the
daemon. Containers go on in every case, and the next start finds them.
"""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import socket
import stat
import time
from collections.abc import Callable

from dockerd import containerd_process, log
from dockerd.config import Config

__all__ = ["DaemonError", "run"]

_log = logging.getLogger(__name__)

_SYSTEMD_FIRST_FD = 3


class DaemonError(Exception):
    """The daemon cannot start. ``complete``: the message needs no introduction."""

    def __init__(self, message: str, complete: bool = False) -> None:
        super().__init__(message)
        self.complete = complete


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Be the daemon until it is told to stop; returns the exit status.

    ``reread`` gives the configuration anew, for SIGHUP. Raises :class:`DaemonError`.
    """
    log.set_up(config.log_level, config.debug)
    if os.geteuid() != 0:
        raise DaemonError("dockerd needs to be started with root privileges", complete=True)
    _log.info("Starting up")
    # Files that clients and containers must not see are made with their own modes; this keeps the rest private.
    os.umask(0o022)
    make_directories(config)
    pidfile = PidFile(config.pidfile, config.data_root)
    try:
        address = config.containerd.removeprefix("unix://")
        if not address:
            address = containerd_process.ensure(config)
        listeners = open_listeners(config)
    except (OSError, containerd_process.StartError) as error:
        pidfile.remove()
        raise DaemonError(str(error)) from error
    return _serve(config, listeners, address, pidfile, reread)


def _serve(
    config: Config, listeners: list[socket.socket], address: str, pidfile: PidFile, reread: Callable[[], Config]
) -> int:
    from dockerd.server.application import Application

    paths = [sock.getsockname() for sock in listeners]
    numbers = [sock.detach() for sock in listeners]

    def stopped() -> None:
        if not config.containerd:
            containerd_process.stop(address)
        for path in paths:
            _unlink(path)
        pidfile.remove()
        _log.info("Daemon shutdown complete")

    try:
        Application(config, numbers, address, stopped, reread).run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def make_directories(config: Config) -> None:
    """Make the engine's directories, or set their modes: container data is nobody's business but root's."""
    for path, mode in (
        (config.data_root, 0o710),
        (os.path.join(config.data_root, "containers"), 0o710),
        (config.exec_root, 0o700),
        (os.path.join(config.exec_root, "containers"), 0o700),
    ):
        try:
            os.makedirs(path, mode=0o711, exist_ok=True)
            os.chmod(path, mode)
        except OSError as error:
            raise DaemonError(f"cannot make the directory {path}: {error.strerror}") from error
    os.makedirs(os.path.dirname(config.pidfile), mode=0o755, exist_ok=True)


class PidFile:
    """The claim of one running daemon to its pid file and its data root.

    Both are locked as long as the daemon and its workers live, so neither a pid that was used again nor a copy of
    the file misleads. Raises :class:`DaemonError` when another daemon holds one of them.
    """

    def __init__(self, path: str, data_root: str, patience: float = 3.0) -> None:
        self._path = path
        self._locks: list[int] = []
        # A killed daemon's worker may take a moment longer to be gone than its master.
        deadline = time.monotonic() + patience
        for name in (os.path.join(data_root, "engine.lock"), path):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._locks.append(descriptor)
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    self._refuse(_read_pid(path) or _read_pid(name))
                time.sleep(0.05)
        other = _read_pid(path)
        if other and other != os.getpid() and _is_dockerd(other):
            self._refuse(other)
        for descriptor in self._locks:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def _refuse(self, pid: int | None) -> None:
        for descriptor in self._locks:
            os.close(descriptor)
        owner = f"process with PID {pid} is still running" if pid else "another daemon is still running"
        raise DaemonError(
            f"failed to start daemon, ensure docker is not running or delete {self._path}: {owner}", complete=True
        )

    def remove(self) -> None:
        """Give the claim up."""
        _unlink(self._path)
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks.clear()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(path: str) -> int | None:
    try:
        with open(path, "rb") as file:
            text = file.read(32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _is_dockerd(pid: int) -> bool:
    """Whether ``pid`` runs a daemon that does not lock its pid file, such as the real one."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) == b"dockerd" for word in words[:2])


def open_listeners(config: Config) -> list[socket.socket]:
    """Open a listening socket for each ``unix://`` host; those of ``fd://`` are taken from systemd by gunicorn."""
    listeners = []
    for host in config.hosts:
        scheme, _, path = host.partition("://")
        if scheme == "fd":
            if os.environ.get("LISTEN_PID") != str(os.getpid()) or not os.environ.get("LISTEN_FDS", "0").isdigit():
                raise OSError("no sockets found via socket activation: make sure the service was started by systemd")
            continue
        listeners.append(listen(path, _group_id(config.group)))
    return listeners


def listen(path: str, group: int | None) -> socket.socket:
    """Listen on a unix socket, mode 0660, taking the place of one that nobody listens on any more."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(f"can't create unix socket {path}: it is in the way and is not a socket")
        if answers(path):
            raise OSError(f"can't create unix socket {path}: another process listens on it")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o777)  # nobody connects before owner and mode are set
    try:
        listener.bind(path)
    finally:
        os.umask(previous)
    os.chown(path, 0, 0 if group is None else group)
    os.chmod(path, 0o660)
    listener.listen(2048)
    return listener


def answers(path: str) -> bool:
    """Whether a process accepts connections on the unix socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _group_id(name: str) -> int | None:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        if name != "docker":
            _log.warning("could not change group of the socket to %s: no such group", name)
        return None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
