"""What the streams need to know: of a container, of a process's three streams, of one client's view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dockerd.errors import InvalidParameter
from gantry.stdio import detachkeys

__all__ = ["AttachOptions", "StandardStreams", "StreamTarget"]


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
    """The four fields of Tasks.Create and Tasks.Exec. Empty: the process has /dev/null."""

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

    def check(self) -> None:
        """Raises InvalidParameter when the detach keys name a key that does not exist."""
        try:
            detachkeys.parse(self.detach_keys)
        except detachkeys.InvalidDetachKeys as error:
            raise InvalidParameter(str(error)) from None
