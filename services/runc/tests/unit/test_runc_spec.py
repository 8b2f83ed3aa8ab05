from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from runc import devices, example, mounts, namespaces, process, protection, seccomp, spec
from runc.cgroups import devices as device_rules
from runc.cgroups import resources
from runc.errors import RuntimeFailure


def configuration() -> dict[str, Any]:
    """A configuration that is right."""
    value: dict[str, Any] = copy.deepcopy(example.specification(cgroup2=False))  # type: ignore[assignment]
    return value


def changed(path: str, value: object) -> dict[str, Any]:
    """The configuration with one value changed, or taken away when it is Ellipsis."""
    document: Any = configuration()
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    result: dict[str, Any] = document
    return result


def test_the_example_is_valid() -> None:
    """For root and for others."""
    spec.validate(configuration())
    spec.validate(json.loads(json.dumps(example.rootless(1000, 1000, cgroup2=True))))


def test_null_means_missing() -> None:
    """As Go reads it."""
    value = configuration() | {"hooks": None, "annotations": None}
    value["process"]["rlimits"] = None
    assert "hooks" not in spec.validate(value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("root", ..., "root.path must be specified"),
        ("root", [], "root: expected an object"),
        ("root.path", 5, "root.path: expected a string"),
        ("root.path", "", "root.path must be specified"),
        ("process", ..., "process property must not be empty"),
        ("process.args", [], "args must not be empty"),
        ("process.args", "sh", "process.args: expected a list"),
        ("process.args", [1], r"process.args\[\]: expected a string"),
        ("process.args", ["a\0b"], "null bytes"),
        ("process.cwd", "relative", "Cwd must be an absolute path"),
        ("process.cwd", ..., "Cwd property must not be empty"),
        ("process.user", {"uid": "0"}, "process.user.uid: expected a number"),
        ("process.user", {"uid": True}, "process.user.uid: expected a number"),
        ("process.rlimits.0", {"type": "RLIMIT_CORE", "soft": 1}, r"process.rlimits\[\].hard: must be given"),
        ("linux.resources.devices.0", {"access": "r"}, r"linux.resources.devices\[\].allow: must be given"),
        ("linux.resources.memory", {"limit": "1g"}, "linux.resources.memory.limit: expected a number"),
        ("linux.seccomp", {"defaultAction": "X", "syscalls": [{"action": "X"}]}, r"syscalls\[\].names: must be given"),
        ("process.scheduler", {"policy": 1}, "process.scheduler.policy: expected a string"),
        ("linux.memoryPolicy", {"mode": 1}, "linux.memoryPolicy.mode: expected a string"),
        ("linux", ..., "linux must be specified"),
        ("linux.namespaces.0", {"type": "nonsense"}, 'namespace "nonsense" does not exist'),
        ("linux.namespaces.0", {"type": "mount"}, 'duplicated ns "mount"'),
        ("linux.namespaces.0", {"type": "pid", "path": "relative"}, "is not absolute"),
        ("linux.namespaces.4", {"type": "cgroup"}, "without a mount namespace"),
        ("linux.namespaces.3", {"type": "cgroup"}, "unable to set hostname without a private UTS namespace"),
        ("linux.namespaces.0", {"type": "user"}, "no uid mappings found"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "user namespace isn't enabled"),
        ("linux.timeOffsets", {"boottime": {"secs": 1}}, "time namespace isn't enabled"),
        ("linux.sysctl", {"kernel.panic": "1"}, "is not in a separate kernel namespace"),
        ("linux.sysctl", {"net.ipv4.ip_forward": 1}, "expected a string"),
        ("linux.sysctl", {"net/../kernel/panic": "1"}, "no name of a kernel parameter"),
        ("linux.sysctl", {"kernel.hostname": "x"}, 'conflicts with the OCI "hostname" field'),
        ("linux.intelRdt", {"closID": "x"}, "but Intel RDT is not enabled"),
        ("linux.netDevices", {"eth0": {"name": 1}}, r"linux.netDevices.\*.name: expected a string"),
        ("linux.mountLabel", "x", "needs SELinux"),
        ("hooks", {"prestart": [{"path": "relative"}]}, "prestart hook #0: path must be an absolute path"),
        ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "timeout must be greater than zero"),
        ("mounts.0", {"type": "proc"}, r"mounts\[\].destination: must be given"),
        ("mounts.0", {"type": "proc", "destination": ""}, r"mounts\[0\].destination must not be empty"),
        ("mounts.0", "x", r"mounts\[\]: expected an object"),
        ("ociVersion", "2.0.0", 'ociVersion "2.0.0" is not supported'),
        ("ociVersion", 1, "is not supported"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, message: str) -> None:
    """By its place in the document."""
    with pytest.raises(RuntimeFailure, match=message):
        spec.validate(changed(path, value))


def test_a_missing_file_and_broken_json_are_told(tmp_path: Path) -> None:
    """With the path."""
    with pytest.raises(RuntimeFailure, match=r"JSON specification file .*config.json not found"):
        spec.load(str(tmp_path))
    for text in ("{", '{"a": "\\u0000"}', '{"a": }', "nonsense", '{"a": NaN}', "[" * 100_000, "{} x"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RuntimeFailure, match=r"config.json: (not valid JSON|not a JSON object|null bytes)"):
            spec.load(str(tmp_path))


def test_the_host_s_root_is_no_container_s(tmp_path: Path) -> None:
    """Neither directly nor through a link."""
    (tmp_path / "link").symlink_to("/")
    for path in ("/", "link", "/./"):
        with pytest.raises(RuntimeFailure, match="host's root directory"):
            spec.rootfs_path(spec.validate(changed("root.path", path)), str(tmp_path))


FULL: dict[str, Any] = {
    "hooks": {"createRuntime": [{"path": "/x", "args": ["x"], "env": ["A=b"], "timeout": 1}]},
    "annotations": {"a": "b"},
    "domainname": "d",
}
FULL_PROCESS: dict[str, Any] = {"oomScoreAdj": 1, "consoleSize": {"height": 1, "width": 1}}
FULL_LINUX: dict[str, Any] = {
    "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 420, "uid": 0, "gid": 0}],
    "sysctl": {"net.ipv4.ip_forward": "1"},
    "rootfsPropagation": "rslave",
    "cgroupsPath": "/x/y",
    "personality": {"domain": "LINUX", "flags": []},
    "resources": {
        "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
        "memory": {"limit": 1, "swap": 2, "reservation": 1, "swappiness": 1},
        "cpu": {"shares": 2, "quota": 1, "period": 1, "cpus": "0", "mems": "0", "idle": 0},
        "pids": {"limit": 1},
        "blockIO": {
            "weight": 10,
            "weightDevice": [{"major": 1, "minor": 1, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 1, "minor": 1, "rate": 1}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
        "rdma": {"mlx": {"hcaHandles": 1, "hcaObjects": 2}},
    },
    "seccomp": {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {
                "names": ["read"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
            }
        ],
    },
}


def full() -> Any:
    """A configuration with nearly everything in it."""
    value = configuration() | copy.deepcopy(FULL)
    value["process"] |= copy.deepcopy(FULL_PROCESS)
    value["process"]["user"] |= {"additionalGids": [1], "umask": 18}
    value["linux"] |= copy.deepcopy(FULL_LINUX)
    return value


def everything_planned(value: Any) -> None:
    """All that is decided from a configuration without touching the system."""
    checked = spec.validate(value)
    namespaces.NamespacePlan(checked["linux"].get("namespaces", []))
    mounts.plan_mounts(checked, "/bundle", "/bundle/rootfs")
    mounts.root_propagation(checked)
    devices.plan_devices(checked)
    process.Credentials(checked["process"])
    process.check_rlimits(checked["process"].get("rlimits", []))
    limits = checked["linux"].get("resources", {})
    resources.check_memory(limits.get("memory", {}))
    resources.v1_writes(limits)
    resources.v2_writes(limits)
    device_rules.policy(limits.get("devices", []))
    if "seccomp" in checked["linux"]:
        seccomp.check(checked["linux"]["seccomp"])
    protection.launcher_suffices(checked)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document."""
    found = [way] if way else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        found += places(item, (*way, key))
    return found


@pytest.mark.parametrize(
    "wrong", [None, True, -1, 1 << 70, 1.5, "", "x\0y", [], ["x"], [None], {}, {"x": 1}, [[]], [{}]]
)
def test_a_wrong_value_anywhere_is_an_error_or_harmless(wrong: object) -> None:
    """Every value of a full configuration in turn is replaced, or taken away: nothing but RuntimeFailure ever comes."""
    everything_planned(full())
    for way in places(full()):
        for remove in (False, True):
            document = full()
            place = document
            for step in way[:-1]:
                place = place[step]
            if remove:
                del place[way[-1]]
            else:
                place[way[-1]] = copy.deepcopy(wrong)
            try:
                everything_planned(document)
            except RuntimeFailure:
                continue
            except Exception as error:
                raise AssertionError(f"{way} = {wrong!r}: {error!r}") from error
