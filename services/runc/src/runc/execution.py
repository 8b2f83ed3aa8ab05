"""Adding a process to a running container (`exec`): both sides of it, as `messages` tells them."""

from __future__ import annotations

import os

from gantry.linux import namespaces as linux_namespaces
from gantry.linux import process as linux_process
from runc import console, creation, init, keyring, messages, process, security, state
from runc.cgroups import control, hierarchy
from runc.errors import ContainerNotRunning, RuntimeFailure, describe, system_text
from runc.messages import FAILED, GO, READY, Channel, ParentGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runc.job import ExecJob
    from runc.state import Container

_START = "unable to start container process"


def execute(job: ExecJob, sub_groups: list[str]) -> int:
    """Start the process in the container; gives its pid once the program runs. Raises RuntimeFailure."""
    try:
        return _execute(job, sub_groups)
    except RuntimeFailure as failure:
        raise failure.within(_START) from failure
    except OSError as error:
        raise RuntimeFailure(f"{_START}: {describe(error)}") from error


def _execute(job: ExecJob, sub_groups: list[str]) -> int:
    container = job.container
    pidfd = _open_init(container)
    job.joining = control.Joining(*joined_groups(container, sub_groups))
    ours, theirs = messages.pair()
    # From its first moment in the container's pid namespace on, the process can be seen from inside.
    linux_process.set_dumpable(False)
    processors = job.scheduling.enter_initial() if job.scheduling is not None else None
    try:
        pid = _fork_inside(job, pidfd)
        if pid == 0:
            ours.close()
            run(job, theirs, pidfd)
    finally:
        linux_process.set_dumpable(True)
        if processors is not None:
            os.sched_setaffinity(0, processors)
    theirs.close()
    try:
        job.joining.parent_moves(pid, "" if sub_groups else _inner_group(container))
        creation.set_oom_score(pid, job.process, rootless=os.geteuid() != 0)
        process.set_rlimits(pid, job.process.get("rlimits", []))
        ours.send(GO)
        if job.listener is None:
            ours.expect(READY)
        else:
            from runc import listener

            listener.expect_ready(ours, job.listener, pid, lambda: state.oci_state(container, "running"))
        # A successful execve closes the channel; a failed one says so.
        kind, text = ours.receive()
        if kind == FAILED:
            raise RuntimeFailure(text)
    except BaseException:
        _end(pid)
        raise
    finally:
        ours.close()
        os.close(pidfd)
        job.joining.close()
        if job.console is not None:
            job.console.close()
    return pid


def _end(pid: int) -> None:
    try:
        os.kill(pid, creation.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it ended by itself


def _open_init(container: Container) -> int:
    """A pidfd of the container's first process, certain to be that one."""
    try:
        pidfd = linux_process.pidfd_open(container.pid)
    except ProcessLookupError:
        raise ContainerNotRunning from None
    if not container.is_running:
        os.close(pidfd)
        raise ContainerNotRunning
    return pidfd


def _fork_inside(job: ExecJob, pidfd: int) -> int:
    """Fork a child that is in the container's pid namespace; the caller itself stays where it is."""
    container = job.container
    if job.through_middle:
        return _fork_from_middle(job, pidfd)
    if "pid" not in container.namespaces:
        return job.joining.fork()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux_namespaces.setns(pidfd, linux_namespaces.CLONE_NEWPID, f"/proc/{container.pid}/ns/pid")
        try:
            pid = job.joining.fork()
        except OSError:
            linux_namespaces.setns(own, linux_namespaces.CLONE_NEWPID)
            raise
        if pid:
            linux_namespaces.setns(own, linux_namespaces.CLONE_NEWPID)
        return pid
    finally:
        os.close(own)


def _fork_from_middle(job: ExecJob, pidfd: int) -> int:
    """Fork from a process in between that has entered the user namespace, where the right to enter others is.

    It enters the pid namespace as well: who has no rights over the one it comes from can not go back to that.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    middle = linux_namespaces.fork()
    if middle == 0:
        flags = linux_namespaces.CLONE_NEWUSER if job.in_user_namespace else 0
        if "pid" in job.container.namespaces:
            flags |= linux_namespaces.CLONE_NEWPID
        pid = -1
        try:
            if flags:
                linux_namespaces.setns(pidfd, flags)
            pid = job.joining.fork(linux_namespaces.CLONE_PARENT)
            if pid == 0:
                return 0
            os.write(writer, str(pid).encode())
        except OSError as error:
            os.write(writer, f"failed to join the namespaces of the container: {system_text(error)}".encode())
        finally:
            if pid:
                os._exit(0)
    os.close(writer)
    answer = os.read(reader, 65536)
    os.close(reader)
    os.waitpid(middle, 0)
    if not answer.isdigit():
        raise RuntimeFailure(answer.decode() or "joining the namespaces failed")
    return int(answer)


def _inner_group(container: Container) -> str:
    """v2: a group with groups below it takes no process; the container's first process is in one that does."""
    if container.cgroup_paths:
        return ""
    with open(f"/proc/{container.pid}/cgroup", "rb", buffering=0) as file:
        return hierarchy.ROOT + file.read().decode().strip().rpartition("::")[2]


def joined_groups(container: Container, sub_groups: list[str]) -> tuple[list[str], str]:
    """The v1 and the v2 groups that the process joins: the container's own, or those below them that --cgroup names.

    A name is `[CONTROLLERS:]PATH`; without controllers it is for all. Raises RuntimeFailure.
    """
    chosen = dict(container.cgroup_paths)
    unified = container.cgroup_unified
    for group in sub_groups:
        names, colon, path = group.rpartition(":")
        clean = _below(path)
        if not container.cgroup_paths:
            if colon and names:
                raise RuntimeFailure(f"bad --cgroup value {group!r}: cgroup v2 has no controllers to choose")
            unified += clean
            continue
        for name in names.split(",") if colon else list(chosen):
            if name not in container.cgroup_paths:
                raise RuntimeFailure(f"unknown controller {name} in --cgroup {group}")
            chosen[name] = container.cgroup_paths[name] + clean
    directories = list(dict.fromkeys(chosen.values()))
    for directory in [*directories, *([unified] if unified else [])] if sub_groups else ():
        if not os.path.isdir(directory):
            raise RuntimeFailure(
                f"error adding pid to cgroups: open {directory}/{control.PROCS}: no such file or directory"
            )
    return directories, unified


def _below(path: str) -> str:
    """What to append to a group's directory for a group below it, or itself. Raises RuntimeFailure for any other."""
    clean = os.path.normpath(path or ".").lstrip("/")
    if clean.split("/")[0] == "..":
        raise RuntimeFailure(f"bad sub cgroup path: {path} is not a sub cgroup path")
    return "" if clean in ("", ".") else f"/{clean}"


# The new process


def run(job: ExecJob, channel: Channel, pidfd: int) -> NoReturn:
    """Become the program. Never returns."""
    try:
        _run(job, channel, pidfd)
    except ParentGone:
        os._exit(1)
    except RuntimeFailure as failure:
        text = failure.message
    except OSError as error:
        text = describe(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    init.give_up(channel, text)


def _run(job: ExecJob, channel: Channel, pidfd: int) -> None:
    keep = {channel.fileno(), pidfd, *job.joining.descriptors, *range(3, 3 + job.preserved)}
    if job.console is not None:
        keep.add(job.console.fileno())
    init.seal(keep, job.preserved)
    linux_process.set_name("runc:[2:EXEC]")
    job.joining.enter()
    channel.wait_go()
    if job.scheduling is not None:
        job.scheduling.enter_final()
    _join_namespaces(job, pidfd)
    os.close(pidfd)
    os.setsid()
    if job.container.new_keyring:
        keyring.join(job.container.id)
    if job.console is not None:
        master, slave = console.open_pair(None)
        console.set_size(slave, job.process.get("consoleSize"))
        console.send_master(job.console, master)
        job.console.close()
        os.close(master)
        console.take(slave)
        os.close(slave)
    else:
        init.reopen_null()
    security.set_labels(job.process)
    process.set_personality(job.container.spec["linux"].get("personality"))
    if job.scheduling is not None:
        job.scheduling.apply()
    if job.credentials.no_new_privileges:
        linux_process.set_no_new_privileges()
    elif job.seccomp:
        init.install_filter(job, channel)
    process.become(job.credentials)
    job.process["env"] = [*job.process.get("env", []), *job.listen_env]
    env = process.environment(job.process)
    path = process.look_up(job.process["args"][0], env)
    if job.listener is not None and job.credentials.no_new_privileges:
        init.install_filter(job, channel)
    channel.send(READY)
    process.reset_signals()
    if job.seccomp and job.listener is None and job.credentials.no_new_privileges:
        security.install_filter(job.seccomp)
    try:
        process.execute(path, job.process, env)
    except OSError as error:
        raise RuntimeFailure(process.execution_failure(path, error)) from error


def _join_namespaces(job: ExecJob, pidfd: int) -> None:
    container = job.container
    flags = 0
    for name in container.namespaces:
        if name != "pid" and not (name == "user" and job.in_user_namespace):
            flags |= linux_namespaces.FLAGS[name]
    try:
        linux_namespaces.setns(pidfd, flags)
    except OSError as error:
        raise RuntimeFailure(f"failed to join the namespaces of the container: {system_text(error)}") from error
    if "user" in container.namespaces:
        init.become_root_inside()
    # Leaving the user namespace's rights behind has made it readable again.
    linux_process.set_dumpable(False)
