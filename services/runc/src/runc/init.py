"""The container's first process, from the fork to its program (the other side of `creation`; see `messages`)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import fcntl
import gc
import os
import sys

from gantry.linux import namespaces as linux_namespaces
from gantry.linux import path as linux_path
from gantry.linux import process as linux_process
from gantry.linux.libc import check, libc
from runc import console, devices, hooks, keyring, mounts, namespaces, process, rootfs, security
from runc.errors import RuntimeFailure, describe, system_text
from runc.messages import FAILED, PREPARED, READY, Channel, ParentGone
from runc.state import oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runc.job import ExecJob, Job

_ENDING_SIGNALS = (1, 2, 3, 15)  # SIGHUP, SIGINT, SIGQUIT, SIGTERM
_IFF_UP = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914


def run(job: Job, channel: Channel) -> NoReturn:
    """Become the container. Never returns: it ends as the program, or with an exit status and FAILED said."""
    try:
        _run(job, channel)
    except ParentGone:
        os._exit(1)
    except RuntimeFailure as failure:
        text = failure.message
    except OSError as error:
        text = describe(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    give_up(channel, text)


def give_up(channel: Channel, text: str) -> NoReturn:
    """Say FAILED to the runtime, or when that is gone already to standard error, and end."""
    try:
        if channel.fileno() >= 0:
            channel.send(FAILED, text)
        else:
            os.write(2, (text + "\n").encode("utf-8", "surrogateescape"))
    finally:
        os._exit(1)


def seal(keep: set[int], preserved: int) -> None:
    """Give up what a container must not come by: other descriptors than those to keep, and loading code.

    Of what is kept the standard streams and `preserved` more will be the program's: the others are marked to be closed
    by execve now, before a seccomp filter can forbid it.

    Descriptors of the host, of whoever called us in a forked process, would be open as long as a created container
    waits. And the paths of Python's modules will mean the container's files: what is built into the interpreter, or was
    imported before, is all that this process can use.
    """
    gc.disable()
    linux_process.close_from(3, tuple(keep))
    linux_process.cloexec_from(3 + preserved)
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") == "_frozen_importlib"]
    sys.path[:] = []


def _run(job: Job, channel: Channel) -> None:
    seal(_needed(job, channel), job.preserved)
    linux_process.set_name("runc:[2:INIT]")
    job.joining.enter()
    channel.wait_go()
    try:
        proc_fds = _build(job, channel)
    except RuntimeFailure as failure:
        raise failure.within("error during container init") from failure
    except OSError as error:
        raise RuntimeFailure(f"error during container init: {describe(error)}") from error
    if job.seccomp and not job.credentials.no_new_privileges:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which `become` may take away.
        install_filter(job, channel)
    process.become(job.credentials)
    job.process["env"] = [*job.process.get("env", []), *job.listen_env]
    env = process.environment(job.process)
    path = process.look_up(job.process["args"][0], env)
    if job.listener is not None and job.credentials.no_new_privileges:
        # As late as the runtime can still take the notifications.
        install_filter(job, channel)
    channel.send(READY)
    channel.close()
    _wait_for_start(proc_fds, job.fifo_fd)
    os.close(proc_fds)
    process.reset_signals()
    if job.seccomp and job.listener is None and job.credentials.no_new_privileges:
        security.install_filter(job.seccomp)
    # They are programs of the container, and no less confined than its own.
    hooks.run("startContainer", job.spec.get("hooks", {}), oci_state(job.container, "created"), env)
    try:
        process.execute(path, job.process, env, job.launcher_fd)
    except OSError as error:
        raise RuntimeFailure(process.execution_failure(path, error)) from error


def install_filter(job: Job | ExecJob, channel: Channel) -> None:
    """Install the filter, and have its notifications taken if it has any."""
    if job.listener is None:
        security.install_filter(job.seccomp)
    else:
        from runc import listener

        listener.install(job.seccomp, channel)


def _needed(job: Job, channel: Channel) -> set[int]:
    fds = {channel.fileno(), job.fifo_fd, job.launcher_fd, *job.joining.descriptors, *job.source_trees.values()}
    if not job.namespaces.needs_middle:
        fds.update(job.opened_namespaces.values())
    if job.console is not None:
        fds.add(job.console.fileno())
    return fds.union(range(3, 3 + job.preserved))


def _build(job: Job, channel: Channel) -> int:
    """Namespaces, mounts, root: everything that needs privilege. Gives a descriptor of the own /proc/self/fd."""
    _enter_namespaces(job)
    # What of /proc is needed after the change of root: the container's /proc may be anything, or missing.
    root_fd = _build_root(job)
    _name_host(job)
    channel.send(PREPARED)
    channel.wait_go()
    proc_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Hooks name what is in the root file system by relative paths: it is not the root yet.
    os.fchdir(root_fd)
    hooks.run("createContainer", job.spec.get("hooks", {}), oci_state(job.container, "creating"))
    _write_sysctls(job)
    _close_root(job, root_fd)
    _ensure_cwd(job.process["cwd"])
    reopen_null()
    security.set_labels(job.process)
    process.set_personality(job.spec["linux"].get("personality"))
    if job.scheduling is not None:
        job.scheduling.apply()
    if job.credentials.no_new_privileges:
        linux_process.set_no_new_privileges()
    return proc_fds


def _enter_namespaces(job: Job) -> None:
    plan = job.namespaces
    if plan.has("user"):
        become_root_inside()
    # Nobody else is in a new user namespace yet; everywhere else others may be that could trace this process.
    linux_process.set_dumpable(plan.makes("user"))
    if not plan.needs_middle:
        namespaces.join(job.opened_namespaces, plan.joined)
    os.setsid()
    if not job.no_new_keyring:
        keyring.join(job.container.id)
    if plan.makes("cgroup"):
        linux_namespaces.unshare(linux_namespaces.CLONE_NEWCGROUP)
    if plan.makes("time"):
        offsets = job.spec["linux"].get("timeOffsets", {})
        namespaces.enter_time_namespace(offsets)  # type: ignore[arg-type]
    if plan.makes("net"):
        _raise_loopback()


def become_root_inside() -> None:
    """Be root of the user namespace: until the maps were written there was nobody to be."""
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise RuntimeFailure(f"container's root is not mapped: {system_text(error)}") from error
    try:
        os.setgroups([])
    except PermissionError:
        return  # not allowed in namespaces made without privilege; there are no groups to lose then


def _raise_loopback() -> None:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = bytearray(b"lo".ljust(40, b"\0"))
        fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, request)
        request[16] |= _IFF_UP
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, request)
    except OSError as error:
        raise RuntimeFailure(f"failed to bring the loopback interface up: {system_text(error)}") from error
    finally:
        sock.close()


def _build_root(job: Job) -> int:
    try:
        root_fd = rootfs.prepare_root(job.rootfs, job.root_propagation)
    except OSError as error:
        raise RuntimeFailure(f"error preparing rootfs: {describe(error)}") from error
    rootfs.mount_all(
        root_fd, job.mounts, job.seen_cgroups, job.namespaces.has("cgroup"), rootfs.Sources(job.source_trees)
    )
    if mounts.needs_devices(job.mounts):
        devices.create(root_fd, job.devices, bind=job.namespaces.has("user"))
        devices.link(root_fd)
    if job.console is not None:
        master, slave = console.open_pair(root_fd)
        console.set_size(slave, job.process.get("consoleSize"))
        console.mount_over_console(root_fd, slave)
        console.send_master(job.console, master)
        job.console.close()
        os.close(master)
        console.take(slave)
        os.close(slave)
    return root_fd


def _name_host(job: Job) -> None:
    if job.spec.get("hostname"):
        name = os.fsencode(job.spec["hostname"])
        check(libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")
    if job.spec.get("domainname"):
        name = os.fsencode(job.spec["domainname"])
        check(libc.setdomainname(name, ctypes.c_size_t(len(name))), "setdomainname")


def _write_sysctls(job: Job) -> None:
    for name, value in job.spec["linux"].get("sysctl", {}).items():
        path = "/proc/sys/" + name.replace(".", "/")
        try:
            linux_path.write_procfs(path, value)
        except OSError as error:
            raise RuntimeFailure(f"open {path}: {system_text(error)}") from error


def _close_root(job: Job, root_fd: int) -> None:
    """Masks and read-only paths, then the change of root: from here on the host's file systems are gone."""
    linux = job.spec["linux"]
    for path in _distinct(linux.get("readonlyPaths", [])):
        try:
            rootfs.make_readonly(root_fd, path)
        except OSError as error:
            raise RuntimeFailure(f"can't make {path} read-only: {describe(error)}") from error
    for path in _distinct(linux.get("maskedPaths", [])):
        try:
            rootfs.mask(root_fd, path)
        except OSError as error:
            raise RuntimeFailure(f"can't mask path {path}: {describe(error)}") from error
    dev = mounts.has_mount_over(job.mounts, "/dev")
    if dev is not None and dev.kind == mounts.FILESYSTEM and dev.options.flags & mounts.READONLY:
        rootfs.remount_readonly(root_fd, "/dev")
    if job.spec["root"].get("readonly"):
        rootfs.set_root_readonly(root_fd)
    try:
        if job.no_pivot:
            rootfs.move(root_fd, job.rootfs)
        else:
            rootfs.pivot(root_fd)
    except OSError as error:
        raise RuntimeFailure(f"error jailing process inside rootfs: {describe(error)}") from error
    os.close(root_fd)
    rootfs.set_root_propagation(job.root_propagation)


def _distinct(paths: list[str]) -> list[str]:
    return list(dict.fromkeys(map(os.path.normpath, paths)))


def _ensure_cwd(cwd: str) -> None:
    try:
        os.makedirs(cwd, 0o755, exist_ok=True)
    except FileExistsError:
        return  # no directory: entering it tells
    except OSError as error:
        raise RuntimeFailure(f"mkdir {cwd}: {system_text(error)}") from error


def reopen_null() -> None:
    """A standard stream that is the host's /dev/null becomes the container's, so that it can be found there."""
    try:
        null = os.stat("/dev/null")
    except FileNotFoundError:
        return
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
        except OSError:
            continue  # closed by the caller
        if status.st_rdev == null.st_rdev and status.st_mode & 0o170000 == 0o020000:
            fresh = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(fresh, fd, inheritable=True)
            os.close(fresh)


def _end_waiting(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    os._exit(2)


def _wait_for_start(proc_fds: int, fifo_fd: int) -> None:
    """Wait until `start` opens the FIFO: opening it for writing blocks until then (fifo(7)).

    The kernel keeps signals that the first process of a pid namespace has no handler for from it: those that ask a
    program to end must end a container that waits.
    """
    for number in _ENDING_SIGNALS:
        _signal.signal(number, _end_waiting)
    fd = os.open(str(fifo_fd), os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fds)
    os.write(fd, b"0")
    os.close(fd)
    os.close(fifo_fd)
