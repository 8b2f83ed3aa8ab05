"""Keeping the interpreter out of a container's reach (the class of CVE-2019-5736).

A process of the container can reach the program of a process that enters it, by /proc/PID/exe, or by being started as
`/proc/self/exe` itself; opened through such a link, the file could be overwritten on the host by the container's root.

- The process that enters is not dumpable: only who may trace any process of the host can follow those links.
- Nothing may be gained by following them: the interpreter is one that runs from a read-only, detached copy of its
  mount, which no process can open for writing or remount (`gantry.linux.executable`). A template that other processes
  are forked from starts itself that way, and its children are protected at no cost. A call that is started cold
  executes itself once again through such a copy.
- A cold `create` or `run` of a container with a pid namespace of its own is spared that: nobody else is in there
  while init runs, and it starts the program with a launcher (see there), not from its own program.
"""

from __future__ import annotations

import os
import sys

from gantry.linux import executable
from gantry.linux import process as linux_process
from runc import launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Seccomp, Spec

_ALLOW = "SCMP_ACT_ALLOW"
_PATHS_VARIABLE = "_GANTRY_RUNC_PATHS"


def ensure() -> None:
    """Come back protected: at once, or as a new start of this program with the same arguments.

    Where that is not possible (without the right to mount, or with a kernel before 5.12) nothing is done: the process
    is still not dumpable, and without root's rights the interpreter belongs to another user anyway.
    """
    environment = dict(os.environ)
    environment[_PATHS_VARIABLE] = ":".join(path for path in sys.path if path)
    bootstrap = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_restart.py")
    # Isolated and without site: what the second start needs is told to it.
    executable.restart_readonly([sys.executable, "-I", "-S", bootstrap, *sys.argv[1:]], environment)


def launcher_or_restart(spec: Spec) -> int:
    """For a new container: protected already (-1), or a launcher's descriptor where that is enough, or a new start."""
    if linux_process.executable_is_readonly():
        return -1
    if launcher_suffices(spec):
        fd = launcher.create()
        if fd >= 0:
            return fd
    ensure()
    return -1


def launcher_suffices(spec: Spec) -> bool:
    """Is init out of reach until it executes the launcher, and will the kernel let it?

    Not in a joined or shared pid or user namespace, where others could look at it; not where a process that is added to
    the waiting container could trace it; not with hooks that are looked up in the container, and are started by init
    itself; not where a label is for the next execve, which must be the
    program's; not where the seccomp filter may not let execveat(2) pass.
    """
    linux = spec["linux"]
    namespaces = {each["type"]: each.get("path", "") for each in linux.get("namespaces", [])}
    process = spec["process"]
    return (
        namespaces.get("pid") == ""
        and not namespaces.get("user")
        and "CAP_SYS_PTRACE" not in process.get("capabilities", {}).get("bounding", [])
        and not spec.get("hooks", {}).get("startContainer")
        and not process.get("apparmorProfile")
        and not process.get("selinuxLabel")
        and _allows_execveat(linux.get("seccomp"))
    )


def _allows_execveat(profile: Seccomp | None) -> bool:
    if not profile:
        return True
    rules = [rule for rule in profile.get("syscalls", []) if "execveat" in rule["names"]]
    if not rules:
        return profile["defaultAction"] == _ALLOW
    return all(rule["action"] == _ALLOW and not rule.get("args") for rule in rules)
