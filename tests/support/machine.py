"""The machine's state that a test could leave something in."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MARK = "GANTRY_TEST_SESSION"


@dataclass(frozen=True)
class Machine:
    """What is there: each field is a set of names that can be compared with a later one."""

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    rules: frozenset[str]

    def added_since(self, before: Machine) -> dict[str, list[str]]:
        """What is here now and was not in ``before``, by kind; empty when nothing is."""
        kinds = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in Machine.__dataclass_fields__}
        return {kind: names for kind, names in kinds.items() if names}


def observe(token: str) -> Machine:
    """Read the machine's state. Processes are those that carry ``token`` in their environment."""
    return Machine(
        processes=frozenset(_processes(f"{MARK}={token}".encode())),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        links=frozenset(os.listdir("/sys/class/net")),
        namespaces=frozenset(os.listdir("/run/netns") if Path("/run/netns").is_dir() else ()),
        cgroups=frozenset(_cgroups()),
        rules=frozenset(_rules()),
    )


def _processes(mark: bytes) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue  # ended meanwhile
    return found


def _cgroups() -> list[str]:
    # only what an engine makes: other things on the machine come and go; /docker itself is every engine's, and stays
    return [
        directory
        for directory, _, _ in os.walk("/sys/fs/cgroup")
        if any(part in directory for part in ("/docker/", "/gantry", "/default/", "/moby", "/libpod", "/test-"))
    ]


def _rules() -> list[str]:
    nft = shutil.which("nft") or "/usr/sbin/nft"
    if not os.access(nft, os.X_OK):
        return []
    listed = subprocess.run([nft, "list", "ruleset"], capture_output=True, text=True, check=False).stdout
    return [line.strip() for line in listed.splitlines() if "gantry" in line]
