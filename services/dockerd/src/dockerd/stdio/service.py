"""Who carries a container's bytes: the shim, when it can take connections, else the engine's pump.

Life of a container's streams, seen from :mod:`dockerd.containers`::

    names = streams.uris(target)                   # before Tasks.Create: its stdin, stdout, stderr
    Tasks.Create(...names...)
    streams.before_start(target)                   # sessions that wait are attached: no first byte is lost
    Tasks.Start
    ...
    streams.after_exit(target.id)                  # after Tasks.Delete: the streams are drained, sessions end
    streams.forget(target.id)                      # the container is removed, or its start failed

The same for an exec, with ``exec_id``. An attach may come at any time; before the start it waits.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dockerd.config import Config
from dockerd.server.reactor import Reactor

if TYPE_CHECKING:
    from dockerd.containerd_client import Client

__all__ = ["AttachOptions", "StandardStreams", "StreamService", "StreamTarget"]


class StreamTarget(Protocol):
    """What the streams need to know of a container; ``dockerd.containers.Container`` has it."""

    @property
    def id(self) -> str: ...
    @property
    def tty(self) -> bool: ...
    @property
    def open_stdin(self) -> bool: ...
    @property
    def stdin_once(self) -> bool: ...
    @property
    def log_driver(self) -> str:
        """``json-file`` or ``none``."""

    @property
    def log_path(self) -> str:
        """Absolute path of the json-file log, empty without one."""

    @property
    def log_options(self) -> Mapping[str, str]:
        """The ``--log-opt`` values: max-size, max-file, labels, env, tag ..."""

    @property
    def log_attributes(self) -> Mapping[str, str]:
        """What is added to each log record as ``attrs``: the labels and variables that the options chose."""


@dataclass(frozen=True)
class StandardStreams:
    """The three fields of Tasks.Create and Tasks.Exec. Empty: the process has /dev/null."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


@dataclass(frozen=True)
class AttachOptions:
    """One client's view. ``multiplexed`` false means raw; ``detach_keys`` empty means the default keys."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    multiplexed: bool = True
    detach_keys: str = ""
    close_stdin_on_eof: bool = False


class StreamService:
    """See the module's description."""

    def __init__(self, config: Config, containerd: Client, reactor: Reactor) -> None:
        self._config = config
        self._containerd = containerd
        self._reactor = reactor

    def start(self) -> None:
        """Find out whether this containerd's shims take connections, and find the running pumps' streams again."""

    def close(self) -> None:
        """Let go of what the pump holds; sessions that were handed over go on."""

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
        raise NotImplementedError

    def before_start(self, target: StreamTarget, exec_id: str | None = None) -> None:
        """To be called between Tasks.Create (or Exec) and Tasks.Start."""

    def after_exit(self, container_id: str, exec_id: str | None = None) -> None:
        """To be called once the process has ended and was deleted at containerd."""

    def forget(self, container_id: str) -> None:
        """Close the sessions that wait for a start which will not come."""

    def attach(
        self,
        target: StreamTarget,
        exec_id: str | None,
        client: socket.socket,
        early_input: bytes,
        options: AttachOptions,
    ) -> None:
        """Give ``client`` (an upgraded connection, owned by this call) the process's streams."""
        raise NotImplementedError
