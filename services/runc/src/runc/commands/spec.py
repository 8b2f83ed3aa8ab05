"""`runc spec`: write a starter configuration."""

from __future__ import annotations

import os

from runc import cli, example, jsontext
from runc import spec as specification
from runc.errors import RuntimeFailure, describe
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "[arguments...]"
DESCRIPTION = 'Writes "config.json" for a shell, to be edited.'
FLAGS = (
    Flag("bundle", "path to the root of the bundle directory", short="b", value=str),
    Flag("rootless", "generate a configuration for a rootless container"),
)


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    cli.expect_arguments("spec", arguments, 0)
    path = os.path.join(options.text("bundle") or ".", specification.CONFIG_FILE)
    cgroup2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    if options.has("rootless"):
        document = example.rootless(os.geteuid(), os.getegid(), cgroup2=cgroup2)
    else:
        document = example.specification(cgroup2=cgroup2)
    text = jsontext.dumps(document, "\t")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise RuntimeFailure(f"File {specification.CONFIG_FILE} exists. Remove it first") from None
    except OSError as error:
        raise RuntimeFailure(describe(error)) from error
    with os.fdopen(fd, "w") as file:
        file.write(text)
    return 0
