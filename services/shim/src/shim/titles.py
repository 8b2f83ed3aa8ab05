"""What `ps` shows of a forked process: its own command line instead of the template's.

The kernel shows the memory between arg_start and arg_end (proc(5), /proc/PID/cmdline); arguments can be written over as
long as the new ones fit.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence


def set_command_line(arguments: Sequence[str]) -> bool:
    """Writes arguments over those that the process was started with; tells whether there was room."""
    with open("/proc/self/stat", "rb") as file:
        # The second field is a name that may hold anything but ends with the last parenthesis.
        fields = file.read().rpartition(b")")[2].split()
    # arg_start and arg_end are the 48th and 49th field; the split begins with the third.
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(os.fsencode(argument) for argument in arguments) + b"\0"
    room = end - start
    if not start or len(text) > room:
        return False
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, text, len(text))
    return True
