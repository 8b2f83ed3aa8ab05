"""Namespaces: unshare(2), setns(2), clone3(2). Python has os.unshare and os.setns from 3.12 only."""

from __future__ import annotations

import ctypes
import os

from gantry.linux.libc import NR_CLONE3, check, libc

CLONE_NEWTIME = 0x00000080
CLONE_VM = 0x00000100
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000

FLAGS: dict[str, int] = {
    "user": CLONE_NEWUSER,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "net": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "mnt": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
"""The name below /proc/PID/ns of each kind of namespace, and its flag."""

SIGCHLD = 17


def unshare(flags: int) -> None:
    """unshare(2): leave the namespaces of `flags` for new ones."""
    check(libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, kind: int = 0, path: str | None = None) -> None:
    """setns(2): enter the namespace of `fd`; `kind` is its CLONE_NEW* flag, 0 for any. `path` is for the error."""
    check(libc.setns(fd, kind), "setns", path)


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def fork(flags: int = 0, cgroup_fd: int = -1) -> int:
    """fork(2) into new namespaces: clone3(2) with `flags` (CLONE_NEW*, CLONE_PARENT); 0 in the child.

    With a descriptor of a v2 control group the child is born in it, which costs nothing, where moving it there later
    has the kernel wait for all its processors (Linux 5.7).

    Only for a process with one thread. Python's own bookkeeping around a fork is done; the C library's fork handlers
    do not run, so the child is to use nothing of it that keeps the thread id (an interpreter of one thread does not).
    With CLONE_PARENT the child is a sibling: it ends with the parent's exit signal, none may be given.
    """
    args = _CloneArgs(flags=flags, exit_signal=0 if flags & CLONE_PARENT else SIGCHLD)
    if cgroup_fd >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    python = ctypes.pythonapi
    # The call must not let go of the interpreter's lock: the child would wait for it for ever. PyDLL keeps it.
    call = ctypes.PyDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid = call(ctypes.c_long(NR_CLONE3), ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    return check(pid, f"clone3 {flags:#x}")


def namespace_path(pid: int, kind: str) -> str:
    """Where the namespace of a process is found; `kind` is a key of FLAGS."""
    return f"/proc/{pid}/ns/{kind}"


def same_namespace(path: str, kind: str) -> bool:
    """Is the namespace of this file the caller's own?"""
    there, here = os.stat(path), os.stat(f"/proc/self/ns/{kind}")
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
