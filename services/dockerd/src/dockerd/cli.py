"""The ``dockerd`` command: reads flags, then becomes the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dockerd.config import SETTINGS, Config, ConfigError, Setting, load, parse_pool
from dockerd.version import COMMIT, VERSION

__all__ = ["main"]


class _UsageError(Exception):
    """The command line is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def _boolean(text: str) -> bool:
    """Go's spelling of booleans."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise argparse.ArgumentTypeError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def _pool(text: str) -> Any:
    try:
        return parse_pool(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _options(setting: Setting) -> dict[str, Any]:
    options: dict[str, Any] = {"dest": setting.attribute, "help": setting.help, "default": argparse.SUPPRESS}
    if setting.kind == "bool":
        return options | {"nargs": "?", "const": True, "type": _boolean, "metavar": "BOOL"}
    if setting.kind == "int":
        return options | {"type": int, "metavar": "INT"}
    if setting.kind == "string":
        return options | {"metavar": "STRING"}
    kinds = {"list": str, "map": _key_value, "pools": _pool}
    return options | {"action": "append", "type": kinds[setting.kind], "metavar": setting.kind.upper()}


def _parser() -> _Parser:
    parser = _Parser(
        prog="dockerd",
        usage="dockerd [OPTIONS]\n       dockerd remove-network [OPTIONS]   remove a stopped engine's bridge and rules",
        description="A self-sufficient runtime for containers.",
        add_help=False,
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        parser.add_argument(*setting.flags, **_options(setting))
    parser.add_argument("--help", action="store_true", help="Print usage")
    parser.add_argument("--validate", action="store_true", help="Validate daemon configuration and exit")
    parser.add_argument("-v", "--version", action="store_true", help="Print version information and quit")
    return parser


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse; returns the namespace and, by field of Config, what was set."""
    namespace, rest = _parser().parse_known_args(_attach_values(arguments))
    for argument in rest:
        if argument.startswith("-"):
            raise _UsageError(f"unknown flag: {argument.partition('=')[0]}")
        raise _UsageError(f'"dockerd" accepts no arguments, got "{argument}"')
    flags = {}
    for setting in SETTINGS:
        if setting.attribute in namespace:
            value = getattr(namespace, setting.attribute)
            if setting.kind == "map":
                value = dict(value)
            flags[setting.attribute] = tuple(value) if isinstance(value, list) else value
    return namespace, flags


def _attach_values(arguments: Sequence[str]) -> list[str]:
    """Keep a boolean flag from taking the word behind it: as in Go, its value comes with ``=`` only."""
    booleans = {flag for setting in SETTINGS if setting.kind == "bool" for flag in setting.flags}
    return [
        f"{argument}=true"
        if argument.startswith("--") and argument in booleans
        else "--debug=true"
        if argument == "-D"
        else argument
        for argument in arguments
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Errors go to stderr in the real daemon's words."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    removal = words[:1] == ["remove-network"]
    try:
        namespace, flags = _read(words[1:] if removal else words)
        if namespace.help:
            print(_parser().format_help())
            return 0
        if namespace.version:
            print(f"Docker version {VERSION}, build {COMMIT}")
            return 0
        config = load(flags)
    except _UsageError as error:
        print(f"{error}\nSee 'dockerd --help'.", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if namespace.validate:
        print("configuration OK")
        return 0
    from dockerd.daemon import DaemonError, run

    if removal:
        return _remove_network(config)
    try:
        return run(config, lambda: load(flags))
    except DaemonError as error:
        print(f"failed to start daemon: {error}" if not error.complete else error, file=sys.stderr)
        return 1


def _remove_network(config: Config) -> int:
    """The command ``remove-network``: what a stopped engine leaves in the kernel for the next one."""
    from dockerd.daemon import DaemonError, PidFile, make_directories
    from dockerd.errors import EngineError
    from dockerd.networks.removal import remove_network

    try:
        make_directories(config)
        claim = PidFile(config.pidfile, config.data_root)
        try:
            print(remove_network(config))
        finally:
            claim.remove()
    except (DaemonError, EngineError) as error:
        print(f"cannot remove the network: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
