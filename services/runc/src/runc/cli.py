"""The command line: global flags, the choice of the command, and how failures become log lines and exit codes.

`main` takes sys.argv and may be called any number of times in one process, or in a process forked from one that
called `runc.preload()`: it keeps nothing between calls and writes by descriptor, never through sys.stdout.
"""

from __future__ import annotations

import gc
import os
import sys

from runc import SPEC_VERSION, __version__, flags
from runc.errors import EXIT_EXEC_FAILURE, EXIT_FAILURE, RuntimeFailure, UsageFailure, describe
from runc.flags import Flag
from runc.logs import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Protocol

    class Command(Protocol):
        """A module of runc.commands."""

        USAGE: str
        ARGUMENTS: str
        DESCRIPTION: str
        FLAGS: tuple[Flag, ...]
        INTERSPERSED: bool

        @staticmethod
        def run(context: Context, options: flags.Options, arguments: list[str]) -> int:
            """Do the command; gives the exit code. Raises RuntimeFailure."""


DEFAULT_ROOT = "/run/runc"

GLOBAL_FLAGS = (
    Flag("debug", "enable debug logging"),
    Flag("log", "set the log file to write runc logs to (default is '/dev/stderr')", value=str),
    Flag("log-format", "set the log format ('text' (default), or 'json')", value=str, default='"text"'),
    Flag(
        "root",
        "root directory for storage of container state (this should be located in tmpfs)",
        value=str,
        default=f'"{DEFAULT_ROOT}"',
    ),
    Flag("criu", "path to the criu binary used for checkpoint and restore", value=str, default='"criu"'),
    Flag(
        "systemd-cgroup",
        'enable systemd cgroup support, expects cgroupsPath to be of form "slice:prefix:name" '
        'for e.g. "system.slice:runc:434234"',
    ),
    Flag("rootless", "ignore cgroup permission errors ('true', 'false', or 'auto')", value=str, default='"auto"'),
    Flag("help", "show help", short="h"),
    Flag("version", "print the version", short="v"),
)

COMMANDS = {
    "create": "create a container",
    "delete": "delete any resources held by the container often used with detached container",
    "events": "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    "exec": "execute new process inside the container",
    "features": "show the enabled features",
    "kill": "kill sends the specified signal (default: SIGTERM) to the container's init process",
    "list": "lists containers started by runc with the given root",
    "pause": "pause suspends all processes inside the container",
    "ps": "ps displays the processes running inside a container",
    "resume": "resumes all processes that have been previously paused",
    "run": "create and run a container",
    "spec": "create a new specification file",
    "start": "executes the user defined process in a created container",
    "state": "output the state of a container",
    "update": "update container resource constraints",
}

_UNSUPPORTED = {"checkpoint", "restore"}
_HELP_WORDS = {"-h", "--help"}
# They put a process among those of a container, who see it from its first moment on.
_ENTERING = {"exec"}
_HELP_FLAG = Flag("help", "show help", short="h")


class Context:
    """What the global flags say."""

    __slots__ = ("debug", "log", "root", "rootless", "systemd")

    def __init__(self, root: str, log: Log, rootless: bool, debug: bool) -> None:
        self.root = root
        self.log = log
        self.rootless = rootless
        """Are control groups optional?"""
        self.systemd = False
        """Are new containers' control groups systemd's?"""
        self.debug = debug


def out(text: str) -> None:
    """Write to standard output, whole."""
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(1, data) :]


def main() -> NoReturn:
    """The console entry point: raises SystemExit with the exit code; the program itself just ends."""
    # One call allocates little and ends soon: looking for circular garbage costs more than it could free, and in a
    # process forked from a template it would touch, and so copy, every page.
    collecting = gc.isenabled()
    gc.disable()
    _open_streams()
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        code = _call(sys.argv[1:])
    finally:
        os.fchdir(directory)
        os.close(directory)
        if collecting:
            gc.enable()
    if _runs_alone():
        # Everything is written, and what is left to do about the rest the kernel does faster.
        os._exit(code)
    raise SystemExit(code)


def _runs_alone() -> bool:
    """Was this process started for this one call, by the console script or by `protection`?"""
    path = getattr(sys.modules["__main__"], "__file__", None) or ""
    return os.path.basename(path) in ("runc", "_restart.py")


def _open_streams() -> None:
    """Have something at the standard streams: else a descriptor of ours would take their place, and be passed on."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
            os.set_inheritable(fd, True)


def _call(argv: list[str]) -> int:
    log = Log()
    name = ""
    try:
        options, words = flags.parse(GLOBAL_FLAGS, argv, interspersed=False)
        if options.has("version"):
            out(version_text())
            return 0
        if options.has("help") or not words:
            out(global_help())
            return 0
        context = _context(options)
        log = context.log
        name = words[0]
        return _dispatch(context, name, words[1:])
    except UsageFailure as failure:
        out(f"{failure.notice}\n\n" + (command_help(name) if name in COMMANDS else global_help()))
        return _fail(log, failure.message, EXIT_EXEC_FAILURE if name == "exec" else EXIT_FAILURE)
    except RuntimeFailure as failure:
        return _fail(log, failure.message, failure.code)
    except OSError as error:
        return _fail(log, describe(error), EXIT_EXEC_FAILURE if name == "exec" else EXIT_FAILURE)


def _fail(log: Log, message: str, code: int) -> int:
    try:
        log.error(message)
        if log.to_stderr:
            return code
    except OSError as error:
        message = f"{message} (log {log.path}: {describe(error)})"
    os.write(2, (message + "\n").encode("utf-8", "surrogateescape"))
    return code


def _context(options: flags.Options) -> Context:
    form = options.text("log-format", "text")
    if form not in ("text", "json"):
        raise RuntimeFailure(f'invalid log-format "{form}"')
    rootless = options.text("rootless", "auto")
    if rootless not in ("auto", "true", "false"):
        raise RuntimeFailure(f'invalid value "{rootless}" for --rootless: expected true, false or auto')
    log = Log(options.text("log"), form, options.has("debug"))
    log.open_check()
    root = options.text("root")
    lenient = rootless == "true"
    if not is_root_of_the_machine():
        from runc import rootless as ordinary

        lenient = ordinary.ignores_cgroup_errors(rootless)
        root = root or ordinary.default_root()
    context = Context(os.path.abspath(root or DEFAULT_ROOT), log, lenient, options.has("debug"))
    context.systemd = options.has("systemd-cgroup")
    return context


def is_root_of_the_machine() -> bool:
    """Is the caller root outside of any user namespace, as most are? The rest is told apart by `rootless`."""
    if os.geteuid() != 0:
        return False
    try:
        fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return os.read(fd, 4096).split() == [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)


def _dispatch(context: Context, name: str, argv: list[str]) -> int:
    if name in ("help", "h"):
        out(command_help(argv[0]) if argv and argv[0] in COMMANDS else global_help())
        return 0
    if name in _UNSUPPORTED:
        if _HELP_WORDS.intersection(argv):
            out(f"NAME:\n   runc {name} - not supported by this runtime: it needs CRIU\n")
            return 0
        raise RuntimeFailure(f"{name} is not supported by this runtime: it needs CRIU")
    if name not in COMMANDS:
        raise RuntimeFailure(f"No help topic for '{name}'", 3)
    if name in _ENTERING:
        # First of all: what a second start of the program would load again is not loaded before it.
        from runc import protection

        protection.ensure()
    command = load_command(name)
    try:
        options, arguments = flags.parse(
            (*command.FLAGS, _HELP_FLAG), argv, interspersed=getattr(command, "INTERSPERSED", True)
        )
        if options.has("help"):
            out(command_help(name))
            return 0
        return command.run(context, options, arguments)
    except OSError as error:
        raise RuntimeFailure(describe(error), EXIT_EXEC_FAILURE if name == "exec" else EXIT_FAILURE) from error


def load_command(name: str) -> Command:
    """The module of a command."""
    module: Any = __import__(f"runc.commands.{name}", fromlist=["run"])
    command: Command = module
    return command


def expect_arguments(name: str, arguments: list[str], least: int, most: int | None = None) -> None:
    """Raises UsageFailure unless there are as many arguments as the command takes."""
    most = least if most is None else most
    if least <= len(arguments) <= most:
        return
    if least == most:
        raise UsageFailure(f'runc: "{name}" requires exactly {least} argument(s)')
    if len(arguments) < least:
        raise UsageFailure(f'runc: "{name}" requires a minimum of {least} argument(s)')
    raise UsageFailure(f'runc: "{name}" requires a maximum of {most} argument(s)')


def version_text() -> str:
    """What --version prints."""
    return f"runc version {__version__}\ncommit: gantry-{__version__}\nspec: {SPEC_VERSION}\n"


def global_help() -> str:
    """What --help prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"   {name:<{width}}  {usage}" for name, usage in COMMANDS.items())
    return f"""NAME:
   runc - Open Container Initiative runtime

Creates and runs containers from bundles. A bundle is a directory with a configuration,
"config.json", and a root file system:

    # runc run [ -b bundle ] <container-id>

USAGE:
   runc [global options] command [command options] [arguments...]

VERSION:
   {__version__}
commit: gantry-{__version__}
spec: {SPEC_VERSION}

COMMANDS:
{commands}
   {"help, h":<{width}}  Shows a list of commands or help for one command

GLOBAL OPTIONS:
{flags.options_help(GLOBAL_FLAGS)}
"""


def command_help(name: str) -> str:
    """What `runc COMMAND --help` prints."""
    command = load_command(name)
    options = "[command options] " if command.FLAGS else ""
    text = f"NAME:\n   runc {name} - {COMMANDS[name]}\n\nUSAGE:\n   runc {name} {options}{command.ARGUMENTS}\n"
    if command.DESCRIPTION:
        text += f"\nDESCRIPTION:\n   {command.DESCRIPTION}\n"
    if command.FLAGS:
        text += f"\nOPTIONS:\n{flags.options_help(command.FLAGS)}\n"
    return text + "\n"
