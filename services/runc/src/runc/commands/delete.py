"""`runc delete`: remove a stopped container, or with --force any."""

from __future__ import annotations

import os

from runc import deletion, state
from runc.cli import expect_arguments
from runc.errors import ContainerNotFound, RuntimeFailure
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Removes everything that is held for a container."
FLAGS = (Flag("force", "Forcibly deletes the container if it is still running (uses SIGKILL)", short="f"),)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    expect_arguments("delete", arguments, 1)
    container_id, force = arguments[0], options.has("force")
    try:
        container = state.load(context.root, container_id)
    except ContainerNotFound:
        if force:
            # A runtime that was killed before it had written the state has left a directory at most.
            state.remove_directory(os.path.join(context.root, container_id))
            return 0
        raise
    status = container.status
    if status == "stopped":
        deletion.destroy(container, context.log)
    elif status == "created" or force:
        deletion.kill(container)
        deletion.destroy(container, context.log)
    else:
        raise RuntimeFailure(f"cannot delete container {container_id} that is not stopped: {status}")
    return 0
