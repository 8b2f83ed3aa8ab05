"""`runc ps`: the processes of a container."""

from __future__ import annotations

import os

from runc import cli, jsontext, state
from runc.cgroups import control
from runc.errors import RuntimeFailure, describe
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id> [ps options]"
DESCRIPTION = "Lists the container's processes as ps(1) of the host shows them, or their numbers as JSON."
INTERSPERSED = False
FLAGS = (Flag("format", "select one of: table or json", short="f", value=str, default='"table"'),)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    if not arguments:
        cli.expect_arguments("ps", arguments, 1)
    # As with the real one, the format may follow the id: what ps(1) gets are the words behind it.
    form, words = options.text("format", "table"), arguments[1:]
    if words[:1] in (["--format"], ["-f"]) and len(words) == 2 and words[1] in ("json", "table"):
        form, words = words[1], []
    container = state.load(context.root, arguments[0])
    paths = control.paths_of(container)
    if any(map(os.path.isdir, paths.directories)):
        pids = control.processes(paths)
    else:
        pids = [] if paths.directories else _without_groups(container)
    if form == "json":
        cli.out(jsontext.dumps(sorted(pids)) + "\n" if pids else "null\n")
    elif form == "table":
        cli.out(_table(words or ["-ef"], set(pids)))
    else:
        raise RuntimeFailure("invalid format option")
    return 0


def _without_groups(container: state.Container) -> list[int]:
    from runc import rootless

    return rootless.processes(container)


def _table(words: list[str], pids: set[int]) -> str:
    lines = _ps(words).splitlines()
    if not lines:
        raise RuntimeFailure("ps: no output")
    header = lines[0].split()
    if "PID" not in header:
        raise RuntimeFailure("couldn't find PID field in ps output")
    column = header.index("PID")
    kept = [lines[0]]
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            kept.append(line)
    return "\n".join(kept) + "\n"


def _ps(words: list[str]) -> str:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            "ps", ["ps", *words], dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)], setsigdef=[13, 25]
        )
    except OSError as error:
        os.close(reader)
        raise RuntimeFailure(f"ps: {describe(error)}") from error
    finally:
        os.close(writer)
    pieces = []
    while piece := os.read(reader, 65536):
        pieces.append(piece)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeFailure(f"ps: exit status {status}")
    return b"".join(pieces).decode("utf-8", "surrogateescape")
