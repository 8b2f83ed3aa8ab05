"""The session keyring: a container gets one of its own, so that it sees none of the caller's keys (keyrings(7))."""

from __future__ import annotations

import ctypes
import errno

from gantry.linux.libc import MACHINE, syscall

_NR_KEYCTL = {"x86_64": 250, "i686": 288, "armv7l": 311, "ppc64le": 271, "s390x": 280}.get(MACHINE, 219)
_JOIN_SESSION_KEYRING = 1
_SETPERM = 5
_DESCRIBE = 6
_SEARCH_BY_USER = 0x00080000


def join(container_id: str) -> None:
    """Join a new session keyring named after the container, searchable for its processes' user.

    Kernels, and seccomp filters around us, without keyrings leave the process as it is.
    """
    try:
        ring = syscall(_NR_KEYCTL, "keyctl join", _JOIN_SESSION_KEYRING, f"_ses.{container_id}".encode())
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EDQUOT):
            return
        raise
    buffer = ctypes.create_string_buffer(1024)
    syscall(_NR_KEYCTL, "keyctl describe", _DESCRIBE, ring, buffer, 1024)
    permissions = int(buffer.value.split(b";")[3], 16)
    syscall(_NR_KEYCTL, "keyctl setperm", _SETPERM, ring, permissions | _SEARCH_BY_USER)
