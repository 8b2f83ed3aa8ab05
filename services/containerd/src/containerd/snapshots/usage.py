"""How much of the disk a directory tree takes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "disk_usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """``size`` in bytes of allocated blocks, and the number of ``inodes``."""

    size: int
    inodes: int


def disk_usage(directory: Path) -> Usage:
    """Measure a tree; a file with several links counts once. What vanishes meanwhile does not count."""
    size = inodes = 0
    seen: set[tuple[int, int]] = set()
    pending = [os.fspath(directory)]
    try:
        size += os.lstat(directory).st_blocks * 512
        inodes += 1
    except FileNotFoundError:
        return Usage(0, 0)
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    size += status.st_blocks * 512
                    inodes += 1
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
    return Usage(size, inodes)
