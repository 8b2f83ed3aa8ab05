"""`runc create`: make a container and leave it waiting for `start`."""

from __future__ import annotations

import os

from runc import creation, protection
from runc import spec as specification
from runc.cli import expect_arguments
from runc.errors import RuntimeFailure, describe
from runc.flags import Flag, Options
from runc.job import CreateOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Creates the container of a bundle, a directory with config.json and a root file system."
FLAGS = (
    Flag(
        "bundle",
        "path to the root of the bundle directory, defaults to the current directory",
        short="b",
        value=str,
    ),
    Flag(
        "console-socket",
        "path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the console's "
        "pseudoterminal",
        value=str,
    ),
    Flag(
        "pidfd-socket",
        "path to an AF_UNIX socket which will receive a file descriptor referencing the init process",
        value=str,
    ),
    Flag("pid-file", "specify the file to write the process id to", value=str),
    Flag(
        "no-pivot",
        "do not use pivot root to jail process inside rootfs.  This should be used whenever the rootfs is on top of "
        "a ramdisk",
    ),
    Flag(
        "no-new-keyring",
        "do not create a new session keyring for the container.  This will cause the container to inherit the calling "
        "processes session key",
    ),
    Flag(
        "preserve-fds",
        "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)",
        value=int,
        default="0",
    ),
)


def create_options(options: Options, *, detached: bool) -> CreateOptions:
    """The bundle and the flags that `create` and `run` share; the bundle becomes the working directory.

    Raises RuntimeFailure.
    """
    bundle = os.path.realpath(options.text("bundle") or ".")
    # Other paths are the caller's: made absolute before the directory changes.
    paths = {
        name: os.path.abspath(options.text(name)) if options.text(name) else ""
        for name in ("console-socket", "pid-file", "pidfd-socket")
    }
    try:
        directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFailure(f"chdir {describe(error)}") from error
    try:
        chosen = CreateOptions(bundle, specification.load(bundle))
        # This may start the program once more, with the paths as the caller gave them: the directory changes after it.
        chosen.launcher_fd = protection.launcher_or_restart(chosen.spec)
        os.fchdir(directory)
    finally:
        os.close(directory)
    chosen.console_socket = paths["console-socket"]
    chosen.pid_file = paths["pid-file"]
    chosen.pidfd_socket = paths["pidfd-socket"]
    chosen.no_pivot = options.has("no-pivot")
    chosen.no_new_keyring = options.has("no-new-keyring")
    chosen.preserve_fds = options.number("preserve-fds")
    check_terminal(chosen.spec["process"].get("terminal", False), detached, chosen.console_socket)
    return chosen


def check_terminal(wants_terminal: bool, detached: bool, console_socket: str) -> None:
    """Raises RuntimeFailure when terminal and console socket do not fit together."""
    if detached and wants_terminal and not console_socket:
        raise RuntimeFailure("cannot allocate tty if runc will detach without setting console socket")
    if console_socket and not (detached and wants_terminal):
        raise RuntimeFailure("cannot use console socket if runc will not detach or allocate tty")


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    expect_arguments("create", arguments, 1)
    try:
        creation.create(context, arguments[0], create_options(options, detached=True), None)
    except RuntimeFailure as failure:
        raise failure.within("runc create failed") from failure
    return 0
