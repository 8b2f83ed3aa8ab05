"""Attributes that reach a whole tree of mounts, and mapped ids."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("ours_only")  # 1.1 releases of another runtime lack some of them


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A mount with another one below it."""
    outer = tmp_path / "outer"
    outer.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "relatime", "outer", str(outer)], check=True)
    try:
        (outer / "below").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "relatime", "below", str(outer / "below")], check=True)
        try:
            for place in (outer, outer / "below"):
                (place / "file").write_text("")
                os.chown(place / "file", 1000, 1000)
            yield outer
        finally:
            subprocess.run(["umount", str(outer / "below")], check=True)
    finally:
        subprocess.run(["umount", str(outer)], check=True)


def attributes(runtime) -> list[set[str]]:
    """The options of both mounts, as the container sees them."""
    out = runtime.output("grep", " /data", "/proc/self/mountinfo")
    return [set(line.split()[5].split(",")) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("rro", "ro"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnodiratime", "nodiratime"),
        ("rnoatime", "noatime"),
        ("rnosymfollow", "nosymfollow"),
    ],
)
def test_attributes_of_the_whole_tree(runtime, tree: Path, option: str, shown: str) -> None:
    """Are set on the bind and below; without recursion on the bind alone; and taken back by their opposites."""
    runtime.bundle.mount("/data", "bind", str(tree), "rbind", option)
    assert [shown in each for each in attributes(runtime)] == [True, True]
    opposite = {"ro": "rrw", "noatime": "ratime"}.get(shown, "r" + shown.removeprefix("no"))
    runtime.bundle.config["mounts"][-1]["options"] = ["rbind", option, opposite]
    assert [shown in each for each in attributes(runtime)] == [False, False]
    runtime.bundle.config["mounts"][-1]["options"] = ["rbind", shown]
    assert [shown in each for each in attributes(runtime)] == [True, False]


def test_access_times_of_the_whole_tree(runtime, tree: Path) -> None:
    """Each kind takes the place of the one before."""
    runtime.bundle.mount("/data", "bind", str(tree), "rbind", "rnoatime", "rstrictatime")
    assert [each & {"noatime", "relatime"} for each in attributes(runtime)] == [set(), set()]
    runtime.bundle.config["mounts"][-1]["options"] = ["rbind", "rnoatime", "rrelatime"]
    assert [each & {"noatime", "relatime"} for each in attributes(runtime)] == [{"relatime"}, {"relatime"}]


def test_ids_of_the_whole_tree(runtime, tree: Path) -> None:
    """`idmap` maps those of one mount, `ridmap` those below too."""
    mapping = [{"containerID": 1000, "hostID": 4242, "size": 1}]
    for option, below in (("idmap", "1000"), ("ridmap", "4242")):
        runtime.bundle.mount("/data", "bind", str(tree), "rbind", option)
        runtime.bundle.config["mounts"][-1] |= {"uidMappings": mapping, "gidMappings": mapping}
        out = runtime.output("stat", "-c", "%u", "/data/file", "/data/below/file")
        assert out.split() == ["4242", below]


def test_ids_as_the_container_has_them(runtime, tree: Path) -> None:
    """`idmap` without mappings of its own: what is 1000's outside is 1000's in the container's user namespace."""
    runtime.bundle.namespace("user")
    runtime.bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 2000}]
    runtime.bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 2000}]
    os.chown(runtime.bundle.rootfs, 100000, 100000)
    runtime.bundle.mount("/data", "bind", str(tree), "bind", "idmap")
    for directory in (runtime.bundle.path, *list(runtime.bundle.path.parents)[:-2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    assert runtime.output("stat", "-c", "%u %g", "/data/file") == "1000 1000"
