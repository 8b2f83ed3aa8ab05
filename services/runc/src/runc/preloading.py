"""The modules that `runc.preload` imports: all that a call can need, so that a forked process imports nothing."""

from __future__ import annotations

import importlib


def load() -> None:
    """Import them all, and what the standard library brings in late."""
    from runc import cli

    for name in (
        "copying",
        "creation",
        "deletion",
        "example",
        "execution",
        "foreground",
        "idmap",
        "init",
        "keyring",
        "listener",
        "netdevices",
        "protection",
        "resctrl",
        "rootless",
        "scheduling",
        "seccomp",
        "starting",
        "cgroups.bpf",
        "cgroups.dbus",
        "cgroups.stats",
        "cgroups.systemd",
        *(f"commands.{command}" for command in cli.COMMANDS),
    ):
        importlib.import_module(f"runc.{name}")
    for name in ("pwd", "termios", "tty", "encodings.utf_8"):
        importlib.import_module(name)
