"""The program that a process runs, as others can reach it by /proc/PID/exe.

Whoever may trace a process, as a container's root may trace one that enters the container, can open its program through
that link; for writing too, when the program's file is on a mount that is writable (the class of CVE-2019-5736). A
program that runs from a read-only, detached copy of its mount can be opened for reading only, and the copy is in
nobody's mount namespace to be remounted. What is forked from such a process is protected with it.
"""

from __future__ import annotations

import os

from gantry.linux.mount import clone_readonly
from gantry.linux.process import executable_is_readonly


def restart_readonly(argv: list[str], env: dict[str, str]) -> None:
    """Execute the running program again, with these arguments and environment, from a read-only copy of its mount.

    Does nothing where it runs from one already; so a program calls this first of all, with the arguments it was started
    with. The first argument should be `sys.executable`: Python finds its library by it. Returns without having done
    anything where such a copy can not be made: without CAP_SYS_ADMIN, or before Linux 5.12.
    """
    if executable_is_readonly():
        return
    try:
        fd = clone_readonly(os.path.realpath("/proc/self/exe"))
    except OSError:
        return
    try:
        os.execve(f"/proc/self/fd/{fd}", argv, env)  # noqa: S606
    finally:
        os.close(fd)
