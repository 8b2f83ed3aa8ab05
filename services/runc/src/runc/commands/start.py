"""`runc start`: let a created container run its program."""

from __future__ import annotations

from runc import starting, state
from runc.cli import expect_arguments
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Starts the program of a created container."
FLAGS: tuple[Flag, ...] = ()


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    expect_arguments("start", arguments, 1)
    starting.start(state.load(context.root, arguments[0]), context.log)
    return 0
