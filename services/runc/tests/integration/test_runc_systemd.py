"""Containers whose groups are systemd's, against what stands for it: a bus in the test, /run of the call's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = 'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$@"'


def call(runtime, fake_systemd, *args: str, **rest) -> subprocess.CompletedProcess[str]:
    """Call the runtime where systemd seems to run."""
    argv = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", *runtime.argv("--systemd-cgroup", *args)]
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": fake_systemd.address}
    rest = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **rest}
    return subprocess.run(argv, cwd=runtime.bundle.path, env=environment, text=True, timeout=60, check=False, **rest)


def test_without_systemd_there_is_no_container(runtime) -> None:
    """In the words that engines know."""
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here")
    runtime.bundle.write("true")
    done = runtime.call("--systemd-cgroup", "run", runtime.id)
    assert done.returncode == 1
    assert "systemd not running on this host, cannot use systemd cgroups manager" in done.stderr


@pytest.mark.usefixtures("ours_only")
def test_a_container_in_a_scope(runtime, fake_systemd) -> None:
    """systemd gets its process and limits, the groups are where the unit is, and it is told of the end."""
    slice_name = f"gantry{runtime.id.rpartition('-')[2]}.slice"
    unit = f"test-{runtime.id}.scope"
    runtime.bundle.linux["cgroupsPath"] = f"{slice_name}:test:{runtime.id}"
    runtime.bundle.linux["resources"] |= {"pids": {"limit": 50}}
    runtime.bundle.config["annotations"] = {"org.systemd.property.CollectMode": "'inactive-or-failed'"}
    runtime.bundle.write("sleep", "100")
    try:
        output = runtime.root.parent / "output"
        with output.open("w") as file:
            done = call(runtime, fake_systemd, "run", "-d", runtime.id, stdout=file, stderr=file)
        assert done.returncode == 0, output.read_text()
        pid = runtime.state()["pid"]
        made = fake_systemd.properties("StartTransientUnit")
        assert made["PIDs"] == ("au", [pid])
        assert made["Slice"] == ("s", slice_name)
        assert made["CollectMode"] == ("s", "inactive-or-failed")
        assert fake_systemd.properties("SetUnitProperties") == {"TasksMax": ("t", 50)}
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert any(line.endswith(f"/{slice_name}/{unit}") for line in lines)
        own = next(line for line in lines if ":pids:" in line or line.startswith("0::"))
        assert own.endswith(f"/{slice_name}/{unit}")
        inside = runtime.exec("cat", "/proc/self/cgroup").stdout
        assert f"/{slice_name}/{unit}" in inside
        assert call(runtime, fake_systemd, "update", "--pids-limit", "60", runtime.id).returncode == 0
        assert fake_systemd.properties("SetUnitProperties") == {"TasksMax": ("t", 60)}
        done = call(runtime, fake_systemd, "delete", "--force", runtime.id)
        assert done.returncode == 0, done.stderr
        assert ("StopUnit", [unit, "replace"]) in fake_systemd.calls
    finally:
        # A real systemd removes the slice with its last unit.
        for directory in Path("/sys/fs/cgroup").glob(f"**/{slice_name}"):
            directory.rmdir()


@pytest.mark.usefixtures("ours_only")
def test_a_unit_that_can_not_be_made(runtime, fake_systemd) -> None:
    """Is told, with nothing left; so is a cgroupsPath of the other driver."""
    fake_systemd.errors["StartTransientUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    runtime.bundle.write("true")
    done = call(runtime, fake_systemd, "run", runtime.id)
    assert done.returncode == 1
    assert f'unable to start unit "runc-{runtime.id}.scope": it did not work' in done.stderr.replace("\\", "")
    runtime.bundle.linux["cgroupsPath"] = "/some/path"
    runtime.bundle.write("true")
    done = call(runtime, fake_systemd, "run", runtime.id)
    assert done.returncode == 1
    assert 'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups' in done.stderr.replace(
        "\\", ""
    )
