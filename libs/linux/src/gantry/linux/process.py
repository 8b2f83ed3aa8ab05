"""Processes: prctl(2), pidfds, close_range(2), execveat(2), personality(2)."""

from __future__ import annotations

import ctypes
import os

from gantry.linux.libc import (
    AT_EMPTY_PATH,
    MACHINE,
    NR_CLOSE_RANGE,
    NR_PIDFD_GETFD,
    NR_PIDFD_OPEN,
    NR_PIDFD_SEND_SIGNAL,
    check,
    libc,
    syscall,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLOSE_RANGE_CLOEXEC = 4
_LAST_DESCRIPTOR = 0xFFFFFFFF
_NR_EXECVEAT = {"x86_64": 322, "i686": 358, "armv7l": 387, "ppc64le": 362, "s390x": 354}.get(MACHINE, 281)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0, *, name: str = "") -> int:
    """prctl(2) with integer arguments. `name` is for the error."""
    longs = [ctypes.c_ulong(a) for a in (arg2, arg3, arg4, arg5)]
    return check(libc.prctl(option, *longs), f"prctl {name or option}")


def set_child_subreaper(on: bool = True) -> None:
    """Make this process the parent of orphaned descendants (or no longer); not inherited by its children."""
    prctl(PR_SET_CHILD_SUBREAPER, int(on), name="PR_SET_CHILD_SUBREAPER")


def is_child_subreaper() -> bool:
    """Is this process the parent of its orphaned descendants?"""
    value = ctypes.c_int()
    check(libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0), "prctl PR_GET_CHILD_SUBREAPER")
    return bool(value.value)


def set_name(name: str) -> None:
    """Set the name that ps shows; the kernel keeps 15 bytes."""
    check(libc.prctl(PR_SET_NAME, os.fsencode(name)[:15], 0, 0, 0), "prctl PR_SET_NAME")


def set_dumpable(on: bool) -> None:
    """Clear or set whether others of the same user may trace this process and open /proc/PID/{exe,mem,fd}."""
    prctl(PR_SET_DUMPABLE, int(on), name="PR_SET_DUMPABLE")


def set_parent_death_signal(signal: int) -> None:
    """Have this signal sent to the caller when its parent thread ends; 0 for none."""
    prctl(PR_SET_PDEATHSIG, signal, name="PR_SET_PDEATHSIG")


def set_no_new_privileges() -> None:
    """Let no execve from here on give privileges (set-user-ID, file capabilities); can not be undone."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, name="PR_SET_NO_NEW_PRIVS")


def pidfd_open(pid: int) -> int:
    """pidfd_open(2): a descriptor of the process, readable once it has ended. Raises ProcessLookupError."""
    return syscall(NR_PIDFD_OPEN, f"pidfd_open {pid}", pid, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2): the process can not be mistaken for another one that got its number."""
    syscall(NR_PIDFD_SEND_SIGNAL, f"pidfd_send_signal {signal}", pidfd, signal, None, 0)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate of another process's descriptor (Linux 5.6; needs the right to trace it)."""
    return syscall(NR_PIDFD_GETFD, f"pidfd_getfd {fd}", pidfd, fd, 0)


def close_range(first: int, last: int = _LAST_DESCRIPTOR, flags: int = 0) -> None:
    """close_range(2) (Linux 5.9): close, or with CLOSE_RANGE_CLOEXEC mark, every descriptor of the range."""
    if first <= last:
        syscall(NR_CLOSE_RANGE, "close_range", ctypes.c_uint(first), ctypes.c_uint(last), flags)


def close_from(first: int, keep: tuple[int, ...] = ()) -> None:
    """Close every descriptor from `first` on, except those of `keep`."""
    for fd in sorted(set(keep)):
        if fd >= first:
            close_range(first, fd - 1)
            first = fd + 1
    close_range(first)


def cloexec_from(first: int) -> None:
    """Mark every descriptor from `first` on to be closed by execve."""
    close_range(first, flags=CLOSE_RANGE_CLOEXEC)


def fexecve(fd: int, argv: Sequence[str | bytes], env: dict[str, str]) -> None:
    """execveat(2) of the file of a descriptor; returns only by raising OSError."""
    args = (ctypes.c_char_p * (len(argv) + 1))(*[os.fsencode(a) for a in argv], None)
    pairs = [os.fsencode(f"{key}={value}") for key, value in env.items()]
    environment = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    syscall(_NR_EXECVEAT, "execveat", fd, b"", args, environment, AT_EMPTY_PATH, path=argv[0])


def personality(persona: int) -> int:
    """personality(2): set the execution domain; gives the one before."""
    return check(libc.personality(ctypes.c_ulong(persona)), f"personality {persona:#x}")


def executable_is_readonly() -> bool:
    """Is the program of this process on a read-only mount, so that /proc/PID/exe can not be opened for writing?"""
    return bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)
