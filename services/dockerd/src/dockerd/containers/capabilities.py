"""Which capabilities a container's process has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from dockerd import errors
from gantry.linux import capabilities as kernel

__all__ = ["DEFAULT", "available", "effective", "normalize"]

DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What a container has when nothing is said: what services need that change owners, users and roots."""


@cache
def available() -> tuple[str, ...]:
    """The capabilities that this process could give: those of its bounding set, in the kernel's order."""
    bits = kernel.bounding()
    return tuple(name for number, name in enumerate(kernel.NAMES) if bits >> number & 1)


def normalize(names: Sequence[str] | None, option: str) -> list[str]:
    """Capabilities as users write them (``net_admin``, ``CAP_NET_ADMIN``, ``ALL``) in the kernel's spelling.

    Raises InvalidParameter naming ``option`` (CapAdd, CapDrop) for one that does not exist.
    """
    normalized = []
    for name in names or ():
        upper = name.upper()
        if upper != "ALL" and not upper.startswith("CAP_"):
            upper = f"CAP_{upper}"
        if upper != "ALL" and upper not in kernel.NAMES:
            raise errors.InvalidParameter(f'invalid {option}: unknown capability: "{name}"')
        normalized.append(upper)
    return normalized


def effective(add: Sequence[str], drop: Sequence[str], *, privileged: bool) -> list[str]:
    """The set for normalised ``add`` and ``drop``. Capabilities that the engine itself lacks are left out of ALL."""
    if privileged:
        return list(available())
    if "ALL" in add:
        return [name for name in available() if name not in drop]
    base = [] if "ALL" in drop else [name for name in DEFAULT if name not in drop]
    return base + [name for name in dict.fromkeys(add) if name not in base]
