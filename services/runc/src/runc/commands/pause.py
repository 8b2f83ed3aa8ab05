"""`runc pause`: stop every process of a container."""

from __future__ import annotations

from runc import cli, state
from runc.cgroups import control
from runc.errors import ContainerNotRunning
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Suspends all processes of a container by its freezer cgroup."
FLAGS: tuple[Flag, ...] = ()


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    cli.expect_arguments("pause", arguments, 1)
    container = state.load(context.root, arguments[0])
    if container.status not in ("running", "created"):
        raise ContainerNotRunning
    control.freeze(control.paths_of(container))
    return 0
