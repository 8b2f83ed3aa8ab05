from __future__ import annotations

from typing import Any

import pytest

from gantry.linux import mount as linux
from runc import mounts, rootfs
from runc.errors import RuntimeFailure


def plan(*each: dict[str, Any]) -> list[mounts.MountStep]:
    """The steps for these mounts of a bundle at /bundle."""
    return mounts.plan_mounts({"ociVersion": "1.0", "mounts": list(each)}, "/bundle", "/bundle/rootfs")  # type: ignore[typeddict-item]


def test_the_plan_of_usual_mounts() -> None:
    """Kinds, sources relative to the bundle, cleaned places."""
    steps = plan(
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "data/../data/", "type": "bind", "source": "volume", "options": ["rbind", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
        {"destination": "/x", "type": "none", "source": "/host", "options": ["bind"]},
    )
    assert [(s.kind, s.source, s.target) for s in steps] == [
        ("filesystem", "proc", "/proc"),
        ("bind", "/bundle/volume", "/data"),
        ("cgroup", "cgroup", "/sys/fs/cgroup"),
        ("bind", "/host", "/x"),
    ]
    assert steps[1].recursive
    assert not steps[3].recursive
    assert "/data" in steps[1].describe()


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"destination": "/x", "type": "bind"}, "needs a source"),
        ({"destination": "/x", "source": "y"}, "type must be specified"),
        ({"destination": "/proc/sys", "type": "tmpfs"}, "inside /proc"),
        ({"destination": "/../proc/1/fd", "type": "tmpfs"}, "inside /proc"),
        ({"destination": "/proc", "type": "tmpfs"}, "/proc must be mounted as proc"),
        ({"destination": "/sys", "type": "proc"}, "/sys must be mounted as sysfs"),
        ({"destination": "/x", "type": "tmpfs", "uidMappings": [1], "gidMappings": [1]}, "for bind mounts only"),
        ({"destination": "/x", "type": "bind", "source": "y", "uidMappings": [1]}, "need both"),
    ],
)
def test_what_can_not_be_is_refused(mount: dict[str, Any], message: str) -> None:
    """By the place of the mount."""
    with pytest.raises(RuntimeFailure, match=message):
        plan(mount)


def test_files_that_stand_for_the_machine_s_may_be_mounted_in_proc() -> None:
    """As lxcfs does it."""
    (step,) = plan({"destination": "/proc/meminfo", "type": "bind", "source": "/var/lib/lxcfs/proc/meminfo"})
    assert step.may_cover_procfs


def test_devices_are_made_unless_dev_is_bound() -> None:
    """A bound /dev has its own."""
    tmpfs = {"destination": "/dev", "type": "tmpfs"}
    bind = {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}
    assert mounts.needs_devices(plan(tmpfs))
    assert not mounts.needs_devices(plan(tmpfs, bind))
    assert mounts.needs_devices([])


def test_attributes_of_a_bind() -> None:
    """What is not mentioned stays as the source has it."""
    assert rootfs.attribute_changes(linux.MS_RDONLY | linux.MS_NOSUID, 0) == (
        linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID,
        0,
    )
    assert rootfs.attribute_changes(0, linux.MS_RDONLY) == (0, linux.MOUNT_ATTR_RDONLY)
    assert rootfs.attribute_changes(linux.MS_NOATIME, 0) == (linux.MOUNT_ATTR_NOATIME, linux.MOUNT_ATTR_ATIME)
    assert rootfs.attribute_changes(0, 0) == (0, 0)


def test_root_propagation_words() -> None:
    """Known ones become flags, others are refused."""
    base: Any = {"ociVersion": "1.0", "linux": {}}
    assert mounts.root_propagation(base) == 0
    base["linux"]["rootfsPropagation"] = "rshared"
    assert mounts.root_propagation(base) == linux.MS_SHARED | linux.MS_REC
    base["linux"]["rootfsPropagation"] = "sideways"
    with pytest.raises(RuntimeFailure, match="sideways"):
        mounts.root_propagation(base)


MAPPING = [{"containerID": 0, "hostID": 1000, "size": 1}]


def test_idmap_takes_the_mapping_of_the_mount_or_of_the_container() -> None:
    """With neither it is an error."""
    bind: Any = {"destination": "/x", "type": "bind", "source": "/y", "options": ["idmap"]}
    other = [{"containerID": 0, "hostID": 5, "size": 1}]
    linux_part: Any = {"uidMappings": MAPPING, "gidMappings": MAPPING}
    spec: Any = {"linux": linux_part, "mounts": [bind, {**bind, "uidMappings": other, "gidMappings": other}]}
    assert [step.uid_mappings for step in mounts.plan_mounts(spec, "/bundle", "/bundle/rootfs")] == [MAPPING, other]
    with pytest.raises(RuntimeFailure, match="mount /x: idmap needs uidMappings and gidMappings"):
        mounts.plan_mounts({"mounts": [bind], "linux": {}}, "/bundle", "/bundle/rootfs")  # type: ignore[typeddict-item]


def test_the_label_of_mounts() -> None:
    """Goes to file systems that can have one, not to binds nor to the kernel's own."""
    spec: Any = {
        "linux": {"mountLabel": "a:b:c"},
        "mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/x", "type": "tmpfs", "options": ["mode=755"]},
            {"destination": "/y", "type": "bind", "source": "/y"},
        ],
    }
    assert [step.data for step in mounts.plan_mounts(spec, "/b", "/b/rootfs")] == ["", 'mode=755,context="a:b:c"', ""]
