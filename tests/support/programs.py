"""Where the programs under test and their real counterparts are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent


def environment(**extra: str) -> dict[str, str]:
    """An environment in which our programs come first, and no other engine is addressed by accident."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "CONTAINERD_", "PYTHON", "NOTIFY_"))}
    return clean | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", **extra}


def ours(name: str) -> str:
    """The path of one of our entry points."""
    path = SCRIPTS / name
    assert path.exists(), f"{name} is not installed beside {sys.executable}"
    return str(path)


def real(variable: str, *names: str) -> str:
    """The path of a real program: ``GANTRY_<variable>`` or a usual place; the test is skipped where it is missing."""
    if named := os.environ.get(f"GANTRY_{variable}"):
        return named
    for name in names:
        for path in (f"/usr/bin/{name}", f"/usr/sbin/{name}", shutil.which(name)):
            if path and os.access(path, os.X_OK):
                return path
    pytest.skip(f"{names[0]} is not on this machine (scripts/test brings it)")


def docker() -> str:
    """The real docker CLI."""
    return real("DOCKER", "docker")


def busybox() -> str:
    """A statically linked busybox."""
    return real("BUSYBOX", "busybox")
