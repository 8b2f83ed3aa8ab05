from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from runc import example, spec
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
        ("process.rlimits.0", {"type": 1}, "expected a string"),
        ("process.scheduler", {"policy": "SCHED_OTHER"}, "process.scheduler is not supported"),
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
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt is not supported"),
        ("linux.mountLabel", "x", "needs SELinux"),
        ("hooks", {"prestart": [{"path": "relative"}]}, "prestart hook #0: path must be an absolute path"),
        ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "timeout must be greater than zero"),
        ("mounts.0", {"type": "proc"}, r"mounts\[0\].destination"),
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
    for text in ("{", '{"a": }', "nonsense", '{"a": NaN}', "[" * 100_000, "{} x"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RuntimeFailure, match=r"config.json: (not valid JSON|not a JSON object)"):
            spec.load(str(tmp_path))


def test_the_host_s_root_is_no_container_s(tmp_path: Path) -> None:
    """Neither directly nor through a link."""
    (tmp_path / "link").symlink_to("/")
    for path in ("/", "link", "/./"):
        with pytest.raises(RuntimeFailure, match="host's root directory"):
            spec.rootfs_path(spec.validate(changed("root.path", path)), str(tmp_path))
