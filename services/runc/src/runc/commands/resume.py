"""`runc resume`: let the processes of a paused container go on."""

from __future__ import annotations

from runc import cli, state
from runc.cgroups import control
from runc.errors import RuntimeFailure
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Resumes all processes of a paused container."
FLAGS: tuple[Flag, ...] = ()


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    cli.expect_arguments("resume", arguments, 1)
    container = state.load(context.root, arguments[0])
    if container.status != "paused" and not (container.is_running and control.is_frozen(container)):
        raise RuntimeFailure("container not paused")
    control.thaw(control.paths_of(container))
    return 0
