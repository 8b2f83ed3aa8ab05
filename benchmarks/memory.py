#!/usr/bin/env python3
"""Proportional set size of an engine's processes: memory.py NAME=PID[+] ...; a + takes the descendants along.

memory.py dockerd=$(cat docker.pid)+ containerd=$(cat containerd.pid)
"""

from __future__ import annotations

import sys
from pathlib import Path


def pss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def descendants(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def main() -> None:
    """See the module's text."""
    total = 0.0
    for argument in sys.argv[1:]:
        name, _, number = argument.partition("=")
        pid = int(number.rstrip("+"))
        sizes = [pss(p) for p in (descendants(pid) if number.endswith("+") else [pid])]
        total += sum(sizes)
        print(f"{name:20} {sum(sizes):8.1f} MiB in {len(sizes)} processes")
    print(f"{'total':20} {total:8.1f} MiB")


if __name__ == "__main__":
    main()
