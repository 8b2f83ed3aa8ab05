from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from gantry.linux import executable, process
executable.restart_readonly([sys.executable, "-c", os.environ["SCRIPT"], "again"], dict(os.environ))
print(process.executable_is_readonly(), sys.argv[1:], sys.prefix)
try:
    os.chmod("/proc/self/exe", 0o755)  # what runs can never be opened for writing, but a writable mount lets this pass
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_restarted_program_can_not_be_changed() -> None:
    """It runs once more with the arguments given, finds its library; by way of /proc its file can not be changed."""
    env = os.environ | {"SCRIPT": SCRIPT}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"True ['again'] {sys.prefix}", "Read-only file system"]
