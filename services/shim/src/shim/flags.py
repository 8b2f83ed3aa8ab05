"""The command line in the syntax of Go's flag package: one or two dashes, `-name value` or `-name=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class UsageError(Exception):
    """The command line is not understood; the text is Go's."""


@dataclass(slots=True)
class Flags:
    """All flags of the shim, and what follows them."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug_socket: str = ""
    debug: bool = False
    v: bool = False
    info: bool = False
    arguments: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """The first argument: start, delete, template, or empty for serving."""
        return self.arguments[0] if self.arguments else ""


_NAMES = {name.replace("_", "-"): name for name in Flags.__slots__ if name != "arguments"} | {"version": "v"}


def parse(arguments: Sequence[str]) -> Flags:
    """Reads flags up to the first argument that is none. UsageError as Go's parser words it."""
    flags = Flags()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        if name in ("h", "help"):
            raise UsageError("flag: help requested")
        if name not in _NAMES:
            raise UsageError(f"flag provided but not defined: -{name}")
        attribute = _NAMES[name]
        if isinstance(getattr(flags, attribute), bool):
            setattr(flags, attribute, _boolean(name, value) if equals else True)
            continue
        if not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        setattr(flags, attribute, value)
    flags.arguments = rest
    return flags


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')


USAGE = """Usage of containerd-shim-runc-v2:
  -address string
    \tgrpc address back to main containerd
  -bundle string
    \tpath to the bundle if not workdir
  -debug
    \tenable debug output in logs
  -debug-socket string
    \tdebug socket path to serve
  -id string
    \tid of the task
  -info
    \tget the option protobuf from stdin, print the shim info protobuf to stdout, and exit
  -namespace string
    \tnamespace that owns the shim
  -publish-binary string
    \tpath to publish binary (ignored: events go to TTRPC_ADDRESS)
  -socket string
    \tsocket path to serve
  -v
  -version
    \tshow the shim version and exit
Commands: start, delete, template (serve when none is given)
"""
