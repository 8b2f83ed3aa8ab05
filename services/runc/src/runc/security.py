"""What the kernel is told to enforce on the program: the seccomp filter, and labels of security modules."""

from __future__ import annotations

import ctypes
import errno
import os

from gantry.linux.libc import MACHINE, syscall
from gantry.linux.path import write_procfs
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Process

_NR_SECCOMP = {"x86_64": 317, "i686": 354, "armv7l": 383, "ppc64le": 358, "s390x": 348}.get(MACHINE, 277)
_SET_MODE_FILTER = 1
_INSTRUCTION = 8
HEADER = 4
"""A compiled filter is its SECCOMP_FILTER_FLAG_* as four bytes, little-endian, then its instructions."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(compiled: bytes) -> int:
    """seccomp(2): install a compiled filter; gives what it gives, the listener's descriptor. Raises RuntimeFailure."""
    flags = int.from_bytes(compiled[:HEADER], "little")
    code = compiled[HEADER:]
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // _INSTRUCTION, ctypes.addressof(buffer))
    try:
        return syscall(_NR_SECCOMP, "seccomp", _SET_MODE_FILTER, flags, ctypes.byref(program))
    except OSError as error:
        raise RuntimeFailure(f"unable to load the seccomp filter: {system_text(error)}") from error


def knows_filter_flags(flags: int) -> bool:
    """Does the kernel know these SECCOMP_FILTER_FLAG_*? It looks at them before it looks for the program (EFAULT)."""
    try:
        syscall(_NR_SECCOMP, "seccomp", _SET_MODE_FILTER, flags, None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True


def check_labels(process: Process) -> None:
    """Raises RuntimeFailure for a label of a security module that the kernel does not have."""
    if process.get("apparmorProfile") and not os.path.isdir("/sys/kernel/security/apparmor"):
        raise RuntimeFailure("apparmor profile specified, but AppArmor is not enabled in the kernel")
    if process.get("selinuxLabel") and not os.path.exists("/sys/fs/selinux/enforce"):
        raise RuntimeFailure("selinux label is specified in config, but selinux is disabled or not supported")


def set_labels(process: Process) -> None:
    """Set the labels that the next execve takes. Raises RuntimeFailure."""
    profile, label = process.get("apparmorProfile", ""), process.get("selinuxLabel", "")
    if profile:
        for path in ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"):
            if os.path.exists(path):
                _write(path, f"exec {profile}", f"unable to apply apparmor profile {profile}")
                break
    if label:
        _write("/proc/self/attr/exec", label, f"can't set process label {label}")


def _write(path: str, text: str, what: str) -> None:
    try:
        write_procfs(path, text)
    except OSError as error:
        raise RuntimeFailure(f"{what}: {system_text(error)}") from error
