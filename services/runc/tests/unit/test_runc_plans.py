from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runc import execution, namespaces, process, state
from runc.errors import RuntimeFailure


def test_capability_masks() -> None:
    """Names become bits; what the kernel does not have is told."""
    plan = process.CapabilityPlan({"bounding": ["CAP_CHOWN", "CAP_BPF", "CAP_X"], "effective": ["CAP_CHOWN"]}, 37)
    assert (plan.bounding, plan.effective, plan.ambient) == (1, 1, 0)
    assert plan.unknown == ["CAP_X", "CAP_BPF"]


def test_look_up_follows_path(tmp_path: Path) -> None:
    """First match that can be executed; errors in the words that callers match on."""
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    (tmp_path / "a/tool").write_text("")
    (tmp_path / "b/tool").write_text("")
    (tmp_path / "b/tool").chmod(0o755)
    env = {"PATH": f"{tmp_path}/a:{tmp_path}/b"}
    assert process.look_up("tool", env) == f"{tmp_path}/b/tool"
    for program, message in (
        ("none", 'exec: "none": executable file not found in $PATH'),
        ("", 'exec: "": executable file not found in $PATH'),
        (f"{tmp_path}/a/tool", f'exec: "{tmp_path}/a/tool": permission denied'),
        (f"{tmp_path}/a", f'exec: "{tmp_path}/a": is a directory'),
        (f"{tmp_path}/x", f'exec: "{tmp_path}/x": stat {tmp_path}/x: no such file or directory'),
    ):
        with pytest.raises(RuntimeFailure) as caught:
            process.look_up(program, env)
        assert caught.value.message == message


def test_environment_gets_a_home() -> None:
    """Unless it has one; a variable without `=` is refused."""
    assert process.environment({"cwd": "/", "env": ["A=b=c", "HOME=/x"]}) == {"A": "b=c", "HOME": "/x"}
    assert process.environment({"cwd": "/", "user": {"uid": 4294967294}})["HOME"] == "/"
    with pytest.raises(RuntimeFailure, match="invalid environment variable"):
        process.environment({"cwd": "/", "env": ["A"]})


def test_rlimits_are_checked() -> None:
    """Unknown and doubled ones are refused."""
    process.check_rlimits([{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}])
    with pytest.raises(RuntimeFailure, match="invalid rlimit type"):
        process.check_rlimits([{"type": "X", "hard": 0, "soft": 0}])
    with pytest.raises(RuntimeFailure, match="given twice"):
        process.check_rlimits([{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}] * 2)


@pytest.mark.parametrize(
    ("listed", "middle"),
    [
        ([{"type": "pid"}, {"type": "mount"}], False),
        ([{"type": "pid"}, {"type": "network", "path": "/n"}], False),
        ([{"type": "pid", "path": "/p"}], True),
        ([{"type": "user"}, {"type": "network", "path": "/n"}], True),
        ([{"type": "user"}, {"type": "network"}], False),
        ([{"type": "user", "path": "/u"}, {"type": "mount"}], True),
    ],
)
def test_when_namespaces_are_joined_before_the_fork(listed: Any, middle: bool) -> None:
    """A process in between costs a fork: only where it must be."""
    assert namespaces.NamespacePlan(listed).needs_middle is middle


def test_cgroup_and_time_namespaces_are_made_after_the_fork() -> None:
    """The first is rooted where its maker is, the second needs its offsets before anything runs in it."""
    plan = namespaces.NamespacePlan([{"type": "cgroup"}, {"type": "time"}, {"type": "pid"}])
    assert plan.at_fork == namespaces.linux.CLONE_NEWPID
    assert plan.makes("cgroup")
    assert plan.makes("time")


def test_sub_groups_of_exec() -> None:
    """With and without controllers, clean, and existing."""
    container = state.Container("/root", "id")
    container.cgroup_paths = {"pids": "/cg/pids/id", "cpu": "/cg/cpu/id"}
    container.cgroup_unified = "/cg/unified/id"
    assert execution.joined_groups(container, []) == (["/cg/pids/id", "/cg/cpu/id"], "/cg/unified/id")
    with pytest.raises(RuntimeFailure, match="unknown controller x"):
        execution.joined_groups(container, ["x:sub"])
    with pytest.raises(RuntimeFailure, match=r"adding pid to cgroups: open /cg/pids/id/sub/cgroup\.procs"):
        execution.joined_groups(container, ["pids:a/../sub"])


def test_state_survives_and_is_found_again(tmp_path: Path) -> None:
    """What is saved is loaded; a taken id is refused; a foreign directory is no container."""
    root = str(tmp_path / "root")
    container = state.create(root, "one")
    container.oci_version, container.bundle = "1.0", "/b"
    container.set_process(os.getpid())
    container.creating = False
    container.save_spec({"ociVersion": "1.0", "annotations": {"a": "b"}})
    container.save()
    loaded = state.load(root, "one")
    assert (loaded.pid, loaded.pid_start, loaded.bundle, loaded.is_running) == (
        os.getpid(),
        container.pid_start,
        "/b",
        True,
    )
    assert state.oci_state(loaded)["annotations"] == {"a": "b"}
    assert loaded.status == "running"
    os.mkfifo(loaded.fifo)
    assert loaded.status == "created"
    with pytest.raises(RuntimeFailure, match="container with given ID already exists"):
        state.create(root, "one")
    (tmp_path / "root/foreign").mkdir()
    assert [each.id for each in state.load_all(root)] == ["one"]
    loaded.remove_directory()
    with pytest.raises(RuntimeFailure, match="container does not exist"):
        state.load(root, "one")


def test_a_number_that_went_to_another_process_is_not_taken_for_the_container_s(tmp_path: Path) -> None:
    """By the start time."""
    container = state.create(str(tmp_path), "one")
    container.pid, container.pid_start = os.getpid(), 1
    assert not container.is_running
    assert container.status == "stopped"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a b", "\n", "x" * 1025, "é"])
def test_bad_ids(bad: str) -> None:
    """They become names of directories."""
    with pytest.raises(RuntimeFailure, match=r"container ID format|cannot be empty"):
        state.check_id(bad)
