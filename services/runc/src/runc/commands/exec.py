"""`runc exec`: run another process in a running container."""

from __future__ import annotations

import os

from runc import console, creation, execution, foreground, jsontext, process, security, state
from runc import spec as specification
from runc.cli import is_root_of_the_machine
from runc.errors import EXIT_EXEC_FAILURE, RuntimeFailure, describe
from runc.flags import Flag, Options
from runc.job import ExecJob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Capabilities, Process
    from runc.cli import Context
    from runc.state import Container

ARGUMENTS = "<container-id> <command> [command options]  || -p process.json <container-id>"
DESCRIPTION = "Runs a command, or the process of a file, in a running container."
INTERSPERSED = False
FLAGS = (
    Flag(
        "console-socket",
        "path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the console's "
        "pseudoterminal",
        value=str,
    ),
    Flag(
        "pidfd-socket",
        "path to an AF_UNIX socket which will receive a file descriptor referencing the exec process",
        value=str,
    ),
    Flag("cwd", "current working directory in the container", value=str),
    Flag("env", "set environment variables", short="e", value=str, many=True),
    Flag("tty", "allocate a pseudo-TTY", short="t"),
    Flag("user", "UID (format: <uid>[:<gid>])", short="u", value=str),
    Flag("additional-gids", "additional gids", short="g", value=int, many=True),
    Flag("process", "path to the process.json", short="p", value=str),
    Flag("detach", "detach from the container's process", short="d"),
    Flag("pid-file", "specify the file to write the process id to", value=str),
    Flag("process-label", "set the asm process label for the process commonly used with selinux", value=str),
    Flag("apparmor", "set the apparmor profile for the process", value=str),
    Flag("no-new-privs", "set the no new privileges value for the process"),
    Flag("cap", "add a capability to the bounding set for the process", short="c", value=str, many=True),
    Flag(
        "preserve-fds",
        "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)",
        value=int,
        default="0",
    ),
    Flag(
        "cgroup",
        "run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.",
        value=str,
        many=True,
    ),
    Flag("ignore-paused", "allow exec in a paused container"),
)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it; gives the status of the process, 255 for failures of its own."""
    if not arguments:
        from runc.errors import UsageFailure

        raise UsageFailure('runc: "exec" requires a minimum of 1 argument(s)')
    try:
        return _run(context, options, arguments)
    except RuntimeFailure as failure:
        raise RuntimeFailure(f"exec failed: {failure.message}", EXIT_EXEC_FAILURE) from failure
    except OSError as error:
        raise RuntimeFailure(f"exec failed: {describe(error)}", EXIT_EXEC_FAILURE) from error


def _run(context: Context, options: Options, arguments: list[str]) -> int:
    if len(arguments) == 1 and not options.text("process"):
        raise RuntimeFailure("process args cannot be empty")
    container = state.load(context.root, arguments[0])
    _check_status(container, options)
    wanted = _process(container, options, arguments[1:])
    detached, console_socket = options.has("detach"), options.text("console-socket")
    terminal = wanted.get("terminal", False)
    if detached and terminal and not console_socket:
        raise RuntimeFailure("cannot allocate tty if runc will detach without setting console socket")
    if console_socket and not (detached and terminal):
        raise RuntimeFailure("cannot use console socket if runc will not detach or allocate tty")
    job = _job(context, container, wanted, options)
    context.log.debug(f"a process is added to {container.id}: {wanted['args'][0]}")
    if detached:
        if console_socket:
            job.console = console.connect(console_socket)
        _started(options, execution.execute(job, options.texts("cgroup")))
        return 0
    with foreground.Foreground(terminal=terminal) as front:
        job.console = front.child_console
        pid = execution.execute(job, options.texts("cgroup"))
        front.started()
        _started(options, pid)
        return front.wait(pid)


def _check_status(container: Container, options: Options) -> None:
    status = container.status
    if status == "stopped":
        raise RuntimeFailure("cannot exec in a stopped container")
    if status == "creating":
        raise RuntimeFailure("cannot exec in a container that is still being created")
    if status == "paused" and not options.has("ignore-paused"):
        raise RuntimeFailure("cannot exec in a paused container (use --ignore-paused to override)")


def _started(options: Options, pid: int) -> None:
    if options.text("pid-file"):
        creation.write_pid_file(options.text("pid-file"), pid)
    if options.text("pidfd-socket"):
        creation.send_pidfd(options.text("pidfd-socket"), pid)


def _job(context: Context, container: Container, wanted: Process, options: Options) -> ExecJob:
    job = ExecJob()
    job.container = container
    job.process = wanted
    job.credentials = process.Credentials(wanted)
    process.check_rlimits(wanted.get("rlimits", []))
    security.check_labels(wanted)
    job.scheduling = creation.planned_scheduling(wanted, container.spec, added=True)
    job.console = None
    job.in_user_namespace = os.geteuid() != 0 and "user" in container.namespaces
    job.through_middle = not is_root_of_the_machine()
    if job.in_user_namespace:
        from runc import rootless

        rootless.check_groups(wanted)
    job.preserved, job.listen_env = creation.preserved_descriptors(options.number("preserve-fds"))
    job.seccomp, job.listener = b"", None
    if container.spec["linux"].get("seccomp"):
        from runc import listener, seccomp

        job.listener = listener.plan(container.spec["linux"]["seccomp"])
        job.seccomp = seccomp.compiled(container.spec["linux"]["seccomp"], context.log)
    return job


def _process(container: Container, options: Options, words: list[str]) -> Process:
    path = options.text("process")
    if path:
        with open(path, "rb", buffering=0) as file:
            text = file.read(specification.MAX_SIZE)
        try:
            return specification.validate_process(jsontext.loads(text))
        except ValueError as error:
            raise RuntimeFailure(f"{path}: not valid JSON: {error}") from None
    wanted: Process = {**container.spec["process"]}
    wanted["args"] = words
    wanted["terminal"] = options.has("tty")
    wanted["env"] = [*wanted.get("env", []), *options.texts("env")]
    if options.text("cwd"):
        wanted["cwd"] = options.text("cwd")
    if options.text("apparmor"):
        wanted["apparmorProfile"] = options.text("apparmor")
    if options.text("process-label"):
        wanted["selinuxLabel"] = options.text("process-label")
    if options.has("no-new-privs"):
        wanted["noNewPrivileges"] = True
    if options.texts("cap"):
        wanted["capabilities"] = _with_capabilities(wanted, options.texts("cap"))
    _set_user(wanted, options)
    return specification.validate_process(wanted)


def _with_capabilities(wanted: Process, names: list[str]) -> Capabilities:
    before = wanted.get("capabilities", {})
    given: Capabilities = {**before}
    given["bounding"] = [*before.get("bounding", []), *names]
    given["effective"] = [*before.get("effective", []), *names]
    given["permitted"] = [*before.get("permitted", []), *names]
    # Only what is inheritable can be ambient, and that is for the configuration to say.
    if before.get("inheritable"):
        given["ambient"] = [*before.get("ambient", []), *names]
    return given


def _set_user(wanted: Process, options: Options) -> None:
    user = {**wanted.get("user", {})}
    text = options.text("user")
    if text:
        uid, colon, gid = text.partition(":")
        user["uid"] = _id(uid, "uid")
        if colon:
            user["gid"] = _id(gid, "gid")
    gids = options.texts("additional-gids")
    if gids:
        user["additionalGids"] = [*user.get("additionalGids", []), *map(int, gids)]  # type: ignore[misc]
    wanted["user"] = user  # type: ignore[typeddict-item]


def _id(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RuntimeFailure(
            f'parsing {text} as int for {what} failed: strconv.Atoi: parsing "{text}": invalid syntax'
        ) from None
