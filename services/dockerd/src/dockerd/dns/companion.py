"""The engine's side of the companion: starting it, finding it again, talking to it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from dockerd.dns import ADDRESS
from dockerd.version import VERSION

__all__ = ["Companion", "bind_sockets", "stop"]

_PORT = 53
_SOCKET = "dns.sock"
_LOG = "dns.log"
_PATIENCE = 5.0

_log = logging.getLogger(__name__)

Json = dict[str, Any]


def bind_sockets() -> tuple[socket.socket, socket.socket]:
    """The sockets (datagram, stream) of a container, in the calling thread's network namespace, where lo is up.

    Raises OSError, as when something in the container has the port.
    """
    with contextlib.ExitStack() as stack:
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        streams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        for own in (datagrams, streams):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((ADDRESS, _PORT))
        streams.listen(16)
        stack.pop_all()
    return datagrams, streams


class Companion:
    """The companion of the engine with this exec root. Threads may use it at the same time."""

    def __init__(self, exec_root: str, on_lost: Callable[[], None]) -> None:
        self._exec_root = exec_root
        self._on_lost = on_lost  # it ended although nobody wanted that
        self._lock = threading.Lock()
        self._watch: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def find(self) -> bool:
        """Whether one runs, from an earlier engine or this one; it is watched from then on.

        One of another version is ended: what it has is given to a new one.
        """
        with self._lock:
            return self._watch is not None or self._adopt()

    def ensure(self) -> None:
        """Start one unless one runs. Raises OSError."""
        with self._lock:
            if self._watch is not None or self._adopt():
                return
            self._spawn()
            if not self._adopt():
                raise ConnectionError(f"the DNS companion ended at once: see {self._exec_root}/{_LOG}")

    def request(self, body: Json, sockets: Sequence[socket.socket] = ()) -> Json:
        """Ask the companion for something; raises OSError when there is none or it refuses."""
        with _connect(self._exec_root) as connection:
            return _exchange(connection, body, sockets)

    def close(self) -> None:
        """The engine ends; the companion goes on while there are containers."""
        with self._lock:
            self._closed = True
            if self._watch is not None:
                # The thread that reads from it wakes up and closes it.
                with contextlib.suppress(OSError):
                    self._watch.shutdown(socket.SHUT_RDWR)

    def _adopt(self) -> bool:
        if self._closed:
            raise ConnectionError("the engine is going down")
        try:
            watch = _connect(self._exec_root)
        except OSError:
            return False
        try:
            version = _exchange(watch, {"op": "watch"}).get("version")
            if version != VERSION:
                _log.info("the DNS companion of version %s is replaced", version)
                _exchange(watch, {"op": "stop"})
                watch.recv(1)  # until it has ended
                watch.close()
                return False
        except OSError:
            watch.close()
            return False
        watch.settimeout(None)
        self._watch = watch
        threading.Thread(target=self._wait, args=(watch,), name="dns-companion", daemon=True).start()
        return True

    def _wait(self, watch: socket.socket) -> None:
        with contextlib.suppress(OSError):
            watch.recv(1)
        with self._lock:
            self._watch = None
            watch.close()
            process, self._process = self._process, None
            closed = self._closed
        if closed:
            return
        if process is not None:
            process.wait()
        _log.error("the DNS companion has ended unexpectedly: it is started again")
        self._on_lost()

    def _spawn(self) -> None:
        with contextlib.ExitStack() as stack:
            directory = os.open(self._exec_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_SOCKET, dir_fd=directory)
            path = f"/proc/self/fd/{directory}/{_SOCKET}"
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(16)
            log = stack.enter_context(open(os.path.join(self._exec_root, _LOG), "wb"))
            number = listener.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dockerd.dns", str(number)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(number,),
                start_new_session=True,
                cwd="/",
            )


def stop(exec_root: str) -> None:
    """End the companion of a stopped engine; without one there is nothing to do."""
    with contextlib.suppress(OSError), _connect(exec_root) as connection:
        _exchange(connection, {"op": "stop"})
        connection.recv(1)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(exec_root, _SOCKET))


def _connect(exec_root: str) -> socket.socket:
    directory = os.open(exec_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(f"/proc/self/fd/{directory}/{_SOCKET}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def _exchange(connection: socket.socket, body: Json, sockets: Sequence[socket.socket] = ()) -> Json:
    data = json.dumps(body).encode()
    message = len(data).to_bytes(4, "big") + data
    if sockets:
        sent = socket.send_fds(connection, [message], [own.fileno() for own in sockets])
        connection.sendall(message[sent:])
    else:
        connection.sendall(message)
    size = int.from_bytes(_read(connection, 4), "big")
    reply: Json = json.loads(_read(connection, size))
    if "error" in reply:
        raise ConnectionError(f"the DNS companion refuses: {reply['error']}")
    return reply


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the DNS companion has ended")
        data += part
    return data
