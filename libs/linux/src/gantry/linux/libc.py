"""The one door to the C library: calls that check their result and raise OSError naming the call and the path."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

libc = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long

MACHINE = os.uname().machine
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000

# Calls added since Linux 5.1 have one number on every architecture that Python runs on (alpha excepted).
NR_PIDFD_SEND_SIGNAL = 424
NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_PIDFD_OPEN = 434
NR_CLONE3 = 435
NR_CLOSE_RANGE = 436
NR_OPENAT2 = 437
NR_PIDFD_GETFD = 438
NR_MOUNT_SETATTR = 442


def encode(path: str | bytes | None) -> bytes | None:
    """A path as the kernel takes it; None stays a null pointer. Raises ValueError for an embedded NUL."""
    if path is None:
        return None
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"embedded null byte in {path!r}")
    return raw


def fail(number: int, call: str, path: str | bytes | None = None) -> NoReturn:
    """Raise the OSError of `number`, its text naming the call, its filename the path."""
    text = f"{call}: {os.strerror(number)}"
    raise OSError(number, text, path) if path else OSError(number, text)


def check(result: int, call: str, path: str | bytes | None = None) -> int:
    """Give back a result that is not negative, else raise the OSError of ctypes' saved errno."""
    if result < 0:
        fail(ctypes.get_errno(), call, path)
    return result


def syscall(number: int, call: str, *args: object, path: str | bytes | None = None) -> int:
    """Make the raw system call `number`; integers are passed as longs. Raises OSError naming `call` and `path`."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return check(_syscall(ctypes.c_long(number), *longs), call, path)
