"""`runc kill`: send a signal to a container's first process, or to all of them."""

from __future__ import annotations

import os

from runc import signals, state
from runc.cgroups import control
from runc.cli import expect_arguments
from runc.errors import ContainerNotRunning, RuntimeFailure, describe
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id> [signal]"
DESCRIPTION = "Sends a signal, by name or number, to the container's init process."
FLAGS = (Flag("all", "send the specified signal to all processes inside the container", short="a"),)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    expect_arguments("kill", arguments, 1, 2)
    container = state.load(context.root, arguments[0])
    number = signals.parse(arguments[1] if len(arguments) > 1 else "SIGTERM")
    paths = control.paths_of(container)
    exists = any(map(os.path.isdir, paths.directories))
    if options.has("all"):
        if exists:
            control.signal_all(paths, number)
        elif not paths.directories:
            _signal_without_groups(container, number)
        return 0
    if number == signals.NUMBERS["KILL"] and "pid" not in container.namespaces and exists and control.processes(paths):
        # Without a pid namespace of its own the first process takes nobody with it, and the others may outlive it.
        control.signal_all(paths, number)
        return 0
    if not container.is_running:
        raise ContainerNotRunning
    try:
        os.kill(container.pid, number)
    except ProcessLookupError:
        raise ContainerNotRunning from None
    except OSError as error:
        raise RuntimeFailure(f"unable to signal init: {describe(error)}") from error
    if number == signals.NUMBERS["KILL"] and container.status == "paused" and "freezer" in container.cgroup_paths:
        # A v1 freezer keeps even a killed process.
        control.thaw(paths)
    return 0


def _signal_without_groups(container: state.Container, number: int) -> None:
    from runc import rootless

    for pid in rootless.processes(container):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it has ended meanwhile
