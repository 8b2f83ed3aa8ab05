"""The interpreter out of the containers' reach.

While a runtime that was forked from the template sets a container up, /proc/PID/exe of that process leads to the
Python interpreter; a hostile container may try to open it for writing (the class of CVE-2019-5736). So the template
executes itself again from a detached, read-only clone of the interpreter's mount: no process, root or not, can open
that file for writing through it.

Where the kernel cannot clone (before Linux 5.12, or without CAP_SYS_ADMIN) the template runs from the plain file and
has its shims execute the runtime's binary instead of calling its code: slower, and as safe as that binary itself.
"""

from __future__ import annotations

import logging
import os
import sys

from gantry.linux import mount as linux_mount
from gantry.linux import process as linux_process

_log = logging.getLogger(__name__)
_MARK = "GANTRY_SHIM_READONLY_INTERPRETER"


def run_from_readonly_clone() -> None:
    """Executes this program again from the clone; returns if that is done already or cannot be done."""
    if os.environ.pop(_MARK, None) or linux_process.executable_is_readonly():
        return
    try:
        clone = linux_mount.clone_readonly(os.path.realpath(sys.executable))
        os.set_inheritable(clone, False)
        argv = [sys.executable, *sys.orig_argv[1:], *padding()]
        linux_process.fexecve(clone, argv, {**os.environ, _MARK: "1"})
    except OSError as error:
        _log.warning("no read-only clone of the interpreter: %s; runtimes are executed, not called", error)


def padding() -> list[str]:
    """Empty arguments at the end: room in which a forked shim writes its own command line for `ps`."""
    return ["--", " " * 512]
