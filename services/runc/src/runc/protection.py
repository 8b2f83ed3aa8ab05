"""Keeping the interpreter out of a container's reach (the class of CVE-2019-5736).

A process of the container can reach the program of a process that enters it, by /proc/PID/exe, or by being started as
`/proc/self/exe` itself; opened through such a link, the file could be overwritten on the host by the container's root.
So the runtime runs from a read-only, detached copy of the mount that its interpreter is on, which no process can open
for writing or remount. A process forked from a template that did the same (`ensure` there, or any other read-only
mount) needs nothing more; one started cold executes itself once again through such a copy.
"""

from __future__ import annotations

import os
import sys

from gantry.linux import process as linux_process

_PATHS_VARIABLE = "_GANTRY_RUNC_PATHS"


def is_protected() -> bool:
    """Can this process's program not be opened for writing through /proc?"""
    return linux_process.executable_is_readonly()


def ensure() -> None:
    """Come back protected: at once, or as a new start of this program with the same arguments.

    Without the right to mount (rootless) nothing is done: the interpreter belongs to another user then anyway.
    """
    if is_protected() or os.geteuid() != 0:
        return
    from gantry.linux import mount as linux_mount

    program = os.path.realpath("/proc/self/exe")
    try:
        fd = linux_mount.clone_readonly(program)
    except OSError:
        # A kernel before 5.12, or a sandbox that takes the right to mount away: dumpable is still cleared.
        return
    environment = dict(os.environ)
    environment[_PATHS_VARIABLE] = ":".join(path for path in sys.path if path)
    bootstrap = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_restart.py")
    # Isolated and without site: what the second start needs is told to it.
    argv = [sys.executable, "-I", "-S", bootstrap, *sys.argv[1:]]
    os.execve(linux_path(fd), argv, environment)  # noqa: S606


def linux_path(fd: int) -> str:
    """The path by which a descriptor's file is executed; it is closed by doing so."""
    return f"/proc/self/fd/{fd}"
