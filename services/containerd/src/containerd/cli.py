"""The command ``containerd``: the daemon, ``config default``, ``config dump`` and ``publish``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from containerd import config as configuration
from containerd import logs, systemd, version
from containerd.config import Config, ConfigError

__all__ = ["main"]

_log = logging.getLogger("containerd")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.version:
        print(f"containerd gantry {version.VERSION} {version.REVISION}")
        return 0
    try:
        config = _config(arguments)
        if arguments.command == "config":
            print(configuration.dump(Config() if arguments.action == "default" else config), end="")
            return 0
        if arguments.command == "publish":
            # The service's client is loaded only here: --version and config answer without it.
            from containerd.publish import publish

            return publish(config.resolved().address, arguments.namespace, arguments.topic, sys.stdin.buffer)
        logs.configure(config.log_level, config.log_format)
    except (ConfigError, ValueError) as error:
        print(f"containerd: {error}", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print("containerd: must be run as root", file=sys.stderr)
        return 1
    return asyncio.run(_serve(config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="containerd",
        description="Container daemon: images, snapshots and tasks over gRPC.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="PATH", help=f"configuration file ({configuration.DEFAULT_PATH})")
    parser.add_argument("-l", "--log-level", metavar="LEVEL", help=f"one of {', '.join(logs.LEVELS)}")
    parser.add_argument("-a", "--address", metavar="PATH", help="socket of the gRPC services")
    parser.add_argument("--root", metavar="PATH", help=f"what is kept ({configuration.DEFAULT_ROOT})")
    parser.add_argument("--state", metavar="PATH", help=f"what a reboot may remove ({configuration.DEFAULT_STATE})")
    parser.add_argument("-v", "--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    command = commands.add_parser("config", help="print the configuration", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("default", help="print what is used without a file")
    actions.add_parser("dump", help="print what is used with the file and the flags")
    command = commands.add_parser("publish", help="publish the event on standard input", allow_abbrev=False)
    command.add_argument("--namespace", required=True, help="namespace of the event")
    command.add_argument("--topic", required=True, help="topic of the event: /tasks/exit and the like")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    path = arguments.config
    config = configuration.load(path or configuration.DEFAULT_PATH, required=path is not None)
    flags = {name: getattr(arguments, name) for name in ("root", "state", "address", "log_level")}
    return replace(config, **{name: value for name, value in flags.items() if value is not None})


async def _serve(config: Config) -> int:
    # The services are imported when they are needed: --version and config answer without them.
    from containerd.daemon import Daemon, DaemonError

    for warning in config.warnings:
        _log.warning(warning)
    _set_oom_score(config.oom_score)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    _log.info("starting containerd", extra={"version": version.VERSION, "revision": version.REVISION})
    daemon = Daemon(config, debug=config.log_level in ("debug", "trace"))
    try:
        await daemon.start()
    except DaemonError as error:
        _log.critical("containerd: %s", error)
        return 1
    _log.info("serving...", extra={"address": daemon.config.ttrpc_address})
    _log.info("serving...", extra={"address": daemon.config.address})
    systemd.notify("READY=1")
    await stopping.wait()
    _log.info("stopping containerd")
    systemd.notify("STOPPING=1")
    await daemon.stop()
    return 0


def _set_oom_score(score: int) -> None:
    """Apply ``oom_score``. A value below the inherited one needs CAP_SYS_RESOURCE: a lack of that is no error."""
    if score == 0:
        return
    with contextlib.suppress(FileNotFoundError):
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(score))
        except (PermissionError, OSError) as error:
            _log.warning("oom_score %d cannot be set: %s", score, error.strerror)
