"""`runc run`: create, start, and stay with a container until it ends."""

from __future__ import annotations

import os

from runc import creation, deletion, foreground, starting
from runc.cli import expect_arguments
from runc.commands import create as create_command
from runc.errors import RuntimeFailure
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context
    from runc.job import CreateOptions
    from runc.state import Container

ARGUMENTS = "<container-id>"
DESCRIPTION = "Creates the container of a bundle, starts it, and waits for its end unless --detach is given."
FLAGS = (
    *create_command.FLAGS,
    Flag("detach", "detach from the container's process", short="d"),
    Flag("keep", "do not delete the container after it exits"),
    Flag("no-subreaper", "disable the use of the subreaper used to reap reparented processes"),
)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it; gives the status of the container's process."""
    expect_arguments("run", arguments, 1)
    try:
        detached = options.has("detach")
        chosen = create_command.create_options(options, detached=detached)
        if detached:
            container = creation.create(context, arguments[0], chosen, None)
            _start(context, container)
            return 0
        terminal = chosen.spec["process"].get("terminal", False)
        front = foreground.Foreground(terminal=terminal, subreaper=not options.has("no-subreaper"))
        return _run_in_front(context, arguments[0], chosen, front, keep=options.has("keep"))
    except RuntimeFailure as failure:
        raise failure.within("runc run failed") from failure


def _start(context: Context, container: Container) -> None:
    try:
        starting.start(container, context.log)
    except RuntimeFailure:
        deletion.kill(container)
        deletion.destroy(container, context.log)
        raise


def _run_in_front(
    context: Context, container_id: str, chosen: CreateOptions, front: foreground.Foreground, *, keep: bool
) -> int:
    with front:
        container = creation.create(context, container_id, chosen, front.child_console)
        try:
            front.started()
            starting.start(container, context.log)
            return front.wait(container.pid)
        finally:
            if container.is_running:
                deletion.kill(container)
                os.waitpid(container.pid, 0)
            if not keep:
                deletion.destroy(container, context.log)
