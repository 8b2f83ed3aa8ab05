"""The processes of a container as ``ps`` shows them: ``docker top``.

The usual table (``ps -ef``) is read from /proc directly; any other is what the host's ``ps`` says, reduced to the
container's processes.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from dockerd import errors

__all__ = ["Table", "table"]

_TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
# Other titles for columns would hide which one has the process id.
_RENAMED_PID = re.compile(r"\s+(\S*)=\s*(PID\S*)")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Table:
    """Titles, and a row for each process."""

    titles: list[str]
    rows: list[list[str]]


def table(pids: Collection[int], arguments: str = "") -> Table:
    """The table for the processes ``pids`` (of the host). Raises InvalidParameter for arguments that ps refuses."""
    if arguments.split() in ([], ["-ef"]):
        rows = [row for pid in sorted(pids) if (row := _row(pid)) is not None]
        return Table(_TITLES, rows)
    if _RENAMED_PID.search(arguments):
        raise errors.InvalidParameter(f"specifying {arguments!r} is not allowed: the PID column must keep its title")
    return _from_ps(set(pids), arguments.split())


def _row(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as binary:
            command = binary.read().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:  # it has just ended
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    parent, terminal = fields[1], int(fields[4])
    spent = (int(fields[11]) + int(fields[12])) / _TICKS
    started = _boot_time() + int(fields[19]) / _TICKS
    lived = max(time.time() - started, 1)
    return [
        _user(owner),
        str(pid),
        parent,
        str(min(99, int(spent * 100 / lived))),
        _start(started),
        _terminal(terminal),
        time.strftime("%H:%M:%S", time.gmtime(spent)),
        command or f"[{name}]",
    ]


@lru_cache(maxsize=1)
def _boot_time() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    raise errors.SystemFailure("/proc/stat has no boot time")


def _user(uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else f"{name[:7]}+"


def _start(moment: float) -> str:
    local = time.localtime(moment)
    if time.time() - moment < 86400:
        return time.strftime("%H:%M", local)
    return time.strftime("%b%d" if local.tm_year == time.localtime().tm_year else "%Y", local)


def _terminal(number: int) -> str:
    if number == 0:
        return "?"
    major, minor = os.major(number), os.minor(number)
    if 136 <= major <= 143:
        return f"pts/{minor + (major - 136) * 256}"
    return f"tty{minor}" if major == 4 else "?"


def _from_ps(pids: set[int], arguments: list[str]) -> Table:
    try:
        finished = subprocess.run(["ps", *arguments], capture_output=True, timeout=10, check=False)
    except FileNotFoundError:
        raise errors.SystemFailure("docker top with arguments needs the program ps, which is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise errors.SystemFailure("ps did not answer in time") from None
    if finished.returncode != 0:
        reason = finished.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise errors.InvalidParameter(f"ps: {reason}")
    lines = finished.stdout.decode("utf-8", "replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise errors.InvalidParameter("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        words = line.split(maxsplit=len(titles) - 1)
        if len(words) > column and words[column].isdecimal() and int(words[column]) in pids:
            rows.append(words)
    return Table(titles, rows)
