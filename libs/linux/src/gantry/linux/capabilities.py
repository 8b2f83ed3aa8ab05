"""Capabilities: names, sets, capget(2), capset(2), the bounding and ambient sets (capabilities(7))."""

from __future__ import annotations

import ctypes
import errno

from gantry.linux import process
from gantry.linux.libc import check, libc

NAMES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability, at the index that is its number (linux/capability.h)."""

NUMBERS: dict[str, int] = {name: number for number, name in enumerate(NAMES)}
_VERSION_3 = 0x20080522


def last_capability() -> int:
    """The highest capability number that the running kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def mask(names: list[str] | tuple[str, ...]) -> tuple[int, list[str]]:
    """The bit mask of capabilities named as the OCI spec writes them, and the names that are unknown."""
    bits, unknown = 0, []
    for name in names:
        number = NUMBERS.get(name.upper())
        if number is None:
            unknown.append(name)
        else:
            bits |= 1 << number
    return bits, unknown


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Sets:
    """The three sets that capset(2) changes in one call, as bit masks."""

    __slots__ = ("effective", "inheritable", "permitted")

    def __init__(self, effective: int, permitted: int, inheritable: int) -> None:
        self.effective = effective
        self.permitted = permitted
        self.inheritable = inheritable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sets) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Sets(effective={self.effective:#x}, permitted={self.permitted:#x}, inheritable={self.inheritable:#x})"


def get() -> Sets:
    """The calling thread's effective, permitted and inheritable sets."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    check(libc.capget(ctypes.byref(header), data), "capget")
    low, high = data
    return Sets(
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def put(sets: Sets) -> None:
    """Set the calling thread's three sets. Raises OSError (EPERM) when permitted would grow."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    for index, shift in enumerate((0, 32)):
        data[index].effective = sets.effective >> shift & 0xFFFFFFFF
        data[index].permitted = sets.permitted >> shift & 0xFFFFFFFF
        data[index].inheritable = sets.inheritable >> shift & 0xFFFFFFFF
    check(libc.capset(ctypes.byref(header), data), "capset")


def bounding() -> int:
    """The calling thread's bounding set."""
    bits = 0
    for number in range(last_capability() + 1):
        if libc.prctl(process.PR_CAPBSET_READ, ctypes.c_ulong(number), 0, 0, 0) == 1:
            bits |= 1 << number
    return bits


def limit_bounding(keep: int) -> None:
    """Drop every capability out of the bounding set that is not in `keep`; needs CAP_SETPCAP."""
    for number in range(last_capability() + 1):
        if not keep >> number & 1:
            process.prctl(process.PR_CAPBSET_DROP, number, name="PR_CAPBSET_DROP")


def set_ambient(bits: int) -> None:
    """Make the ambient set exactly `bits`; each must be permitted and inheritable, else OSError (EPERM)."""
    try:
        process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_CLEAR_ALL, name="PR_CAP_AMBIENT")
    except OSError as error:
        if error.errno == errno.EINVAL and not bits:  # a kernel before 4.3 has no ambient set to clear
            return
        raise
    for number in range(64):
        if bits >> number & 1:
            process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_RAISE, number, name="PR_CAP_AMBIENT_RAISE")
