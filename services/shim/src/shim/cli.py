"""`containerd-shim-runc-v2`: the command line."""

from __future__ import annotations

import os
import sys

from shim import flags as flags_module
from shim.flags import Flags, UsageError

NAME = "containerd-shim-runc-v2"


def main() -> None:
    """Console entry point."""
    try:
        flags = flags_module.parse(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"{error}\n{flags_module.USAGE}")
        sys.exit(2)
    if flags.v:
        _print_version()
        return
    try:
        _run(flags)
    except Exception as error:
        sys.stderr.write(f"io.containerd.runc.v2: {error}")
        sys.exit(1)


def _print_version() -> None:
    from shim import __version__

    version = sys.version.split()[0]
    print(f"{NAME}:\n  Version:  {__version__}\n  Revision: \n  Python version: {version}\n")


def _run(flags: Flags) -> None:
    if flags.info:
        from shim import info

        sys.stdout.buffer.write(info.runtime_info(sys.stdin.buffer.read(10 << 20)))
        return
    if flags.verb == "template":
        from shim import template

        template.run(flags)
        return
    if flags.verb == "template-stop":
        from shim import template

        template.stop(flags)
        return
    if not flags.namespace:
        raise UsageError("shim namespace cannot be empty")
    if flags.verb == "start":
        from shim import bootstrap

        sys.stdout.write(bootstrap.start(flags, os.environ))
        sys.stdout.flush()
    elif flags.verb == "delete":
        from shim import delete, logs

        logs.set_up(flags.debug)
        sys.stdout.buffer.write(delete.delete(flags))
    elif not flags.verb:
        from shim import bootstrap

        bootstrap.serve(flags, os.environ)
    else:
        raise UsageError(f"unknown command {flags.verb!r}: start, delete, template, template-stop, or none to serve")
