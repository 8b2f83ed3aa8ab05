from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from runc import example, rootless
from runc.cgroups import control
from runc.cgroups.hierarchy import V1, V2, Paths
from runc.errors import RuntimeFailure


def configuration() -> Any:
    """What a user starts from."""
    return copy.deepcopy(example.rootless(1000, 1000, cgroup2=False))


def test_the_example_is_for_a_user() -> None:
    """As it is written."""
    rootless.check(configuration())


def test_what_a_user_can_not_have() -> None:
    """Is refused by name."""
    mapping = [{"containerID": 0, "hostID": 0, "size": 1}]
    changes: list[tuple[Any, str]] = [
        (lambda c: c["linux"].update(namespaces=[]), "requires user namespaces"),
        (lambda c: c["process"]["user"].update(additionalGids=[1]), "additional groups in a rootless container"),
        (lambda c: c["mounts"][0].update(uidMappings=mapping), "id-mapped mounts are not supported"),
        (lambda c: c["mounts"][0].update(options=["ridmap"]), "id-mapped mounts are not supported"),
        (lambda c: c["mounts"][2].update(options=["gid=5"]), "cannot specify gid=5 mount option"),
    ]
    for change, message in changes:
        value = configuration()
        change(value)
        with pytest.raises(RuntimeFailure, match=message):
            rootless.check(value)
    value = configuration()
    value["mounts"][2]["options"] = ["gid=0", "uid=0", "uid=x"]
    rootless.check(value)


def test_who_writes_an_id_map() -> None:
    """The user for the own id alone, a tool with rights for anything else."""
    own: Any = [{"containerID": 0, "hostID": 1000, "size": 1}]
    more: Any = [*own, {"containerID": 1, "hostID": 100000, "size": 65536}]
    assert not rootless.needs_tool(own, 1000)
    assert rootless.needs_tool(own, 1001)
    assert rootless.needs_tool(more, 1000)
    expected = ["newuidmap", "7", "0", "1000", "1", "1", "100000", "65536"]
    assert rootless.tool_arguments("newuidmap", 7, more) == expected


def test_a_tool_that_is_missing_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is told in its words."""
    mappings: Any = [{"containerID": 0, "hostID": 12345, "size": 9}]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeFailure, match="newgidmap is not installed"):
        rootless.write_maps(os.getpid(), mappings, mappings)
    (tmp_path / "newgidmap").write_text("#!/bin/sh\necho no range for $4 >&2\nexit 1\n")
    (tmp_path / "newgidmap").chmod(0o755)
    with pytest.raises(RuntimeFailure, match="failed to use newgidmap: no range for 9"):
        rootless.write_maps(os.getpid(), mappings, mappings)


def test_where_containers_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Below XDG_RUNTIME_DIR, sticky; root of the machine keeps to its own place."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rootless.default_root() == f"{tmp_path}/runc"
    assert (tmp_path / "runc").stat().st_mode & 0o7777 == 0o1700
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(RuntimeFailure, match="must be writable by the user"):
        rootless.default_root()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(rootless, "in_user_namespace", lambda: False)
    assert rootless.default_root() == ""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rootless.default_root() == ""


def test_whose_cgroups_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the flag says, else for all but root of the machine."""
    assert rootless.ignores_cgroup_errors("true")
    assert not rootless.ignores_cgroup_errors("false")
    for user, inside, expected in ((1000, False, True), (0, True, True), (0, False, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setattr(rootless, "in_user_namespace", lambda inside=inside: inside)
        assert rootless.ignores_cgroup_errors("auto") is expected


def test_groups_that_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are used, the others left out; without any there is none, which a named group does not allow."""

    class Joined:
        def close(self) -> None:
            """Nothing is open."""

    def create(paths: Paths) -> None:
        if any("denied" in directory for directory in paths.directories):
            raise RuntimeFailure("mkdir: permission denied")

    monkeypatch.setattr(control, "create", create)
    monkeypatch.setattr(control, "joining", lambda _: Joined())
    monkeypatch.setattr(control, "remove", lambda _: None)
    some = Paths(V1, {"memory": "/m/denied", "cpu": "/c/x", "cpuacct": "/c/x"}, "/u/denied")
    made = rootless.create_groups(some, {"ociVersion": "1.0", "linux": {}})
    assert (made.mode, made.controllers, made.unified) == (V1, {"cpu": "/c/x", "cpuacct": "/c/x"}, "")
    none = Paths(V2, {}, "/u/denied")
    assert rootless.create_groups(none, {"ociVersion": "1.0", "linux": {}}).directories == []
    with pytest.raises(RuntimeFailure, match="rootless needs no limits"):
        rootless.create_groups(none, {"ociVersion": "1.0", "linux": {"cgroupsPath": "/u"}})
