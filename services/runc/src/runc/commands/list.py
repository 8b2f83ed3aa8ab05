"""`runc list`: the containers under the root."""

from __future__ import annotations

from runc import cli, jsontext, state
from runc.commands import state as state_command
from runc.errors import RuntimeFailure
from runc.flags import Flag, Options
from runc.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = ""
DESCRIPTION = 'Lists the containers under the directory given by the global option "--root".'
FLAGS = (
    Flag("format", "select one of: table or json", short="f", value=str, default='"table"'),
    Flag("quiet", "display only container IDs", short="q"),
)


def owner_name(uid: int) -> str:
    """The name of a user of the host, its number when it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    cli.expect_arguments("list", arguments, 0)
    containers = state.load_all(context.root)
    if options.has("quiet"):
        cli.out("".join(f"{container.id}\n" for container in containers))
        return 0
    form = options.text("format", "table")
    if form == "json":
        described = [state_command.described(c, owner_name(c.owner)) for c in containers]
        cli.out((jsontext.dumps(described) if described else "null") + "\n")
    elif form == "table":
        cli.out(_table(containers))
    else:
        raise RuntimeFailure("invalid format option")
    return 0


def _table(containers: list[Container]) -> str:
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    for container in containers:
        status = container.status
        pid = 0 if status == "stopped" else container.pid
        rows.append((container.id, str(pid), status, container.bundle, container.created, owner_name(container.owner)))
    # Columns at least 12 wide, one space between, the last one as it is.
    widths = [max(12, *(len(row[index]) + 1 for row in rows)) for index in range(len(rows[0]) - 1)]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    return "\n".join(lines) + "\n"
