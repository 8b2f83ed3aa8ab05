from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runc.cgroups import bpf, control, devices, hierarchy, resources, stats
from runc.errors import RuntimeFailure

OWN = "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/user\n0::/u\n"


def test_own_groups_are_parsed() -> None:
    """Controllers that are mounted together share their names."""
    controllers, unified = hierarchy.parse_own(OWN)
    assert controllers["cpu"] == controllers["cpuacct"] == ("cpu,cpuacct", "/")
    assert controllers["memory"] == ("memory", "/a/b")
    assert unified == "/u"


def hybrid() -> hierarchy.Hierarchies:
    """v1 controllers and a v2 hierarchy beside them."""
    return hierarchy.Hierarchies(
        hierarchy.HYBRID,
        {"memory": ("/cg/memory", "/a"), "cpu": ("/cg/cpu,cpuacct", "/"), "cpuacct": ("/cg/cpu,cpuacct", "/")},
        ("/cg/unified", "/u"),
    )


@pytest.mark.parametrize(
    ("path", "memory", "unified"),
    [
        ("/docker/id", "/cg/memory/docker/id", "/cg/unified/docker/id"),
        ("rel/id", "/cg/memory/a/rel/id", "/cg/unified/u/rel/id"),
        ("", "/cg/memory/a/ID", "/cg/unified/u/ID"),
        ("/../../etc/id", "/cg/memory/etc/id", "/cg/unified/etc/id"),
        ("../../id", "/cg/memory/a/id", "/cg/unified/u/id"),
    ],
)
def test_container_paths(path: str, memory: str, unified: str) -> None:
    """Absolute from the root, relative from the own group; never above."""
    found = hierarchy.container_paths(hybrid(), path, "ID")
    assert found.controllers["memory"] == memory
    assert found.unified == unified
    assert len(found.directories) == 3


def test_the_root_group_is_no_container_s() -> None:
    """It holds everybody."""
    with pytest.raises(RuntimeFailure, match="root of the hierarchies"):
        hierarchy.container_paths(hybrid(), "/", "ID")


def v1(**sections: Any) -> list[str]:
    """The v1 plan as text."""
    return [write.describe() for write in resources.v1_writes(sections)]  # type: ignore[arg-type]


def v2(**sections: Any) -> list[str]:
    """The v2 plan as text."""
    return [write.describe() for write in resources.v2_writes(sections)]  # type: ignore[arg-type]


def test_nothing_asked_for_nothing_written() -> None:
    """Missing controllers are no error then."""
    assert v1() == v2() == []
    assert v1(memory={}, cpu={}, pids={}, blockIO={}) == []
    assert v1(pids={"limit": 0}) == []


def test_v1_limits() -> None:
    """Each file of its controller."""
    assert v1(
        memory={"limit": 100, "swap": 200, "reservation": 50, "swappiness": 10, "disableOOMKiller": True},
        cpu={"shares": 512, "quota": 5, "period": 10, "cpus": "0-1", "mems": "0"},
        pids={"limit": -1},
    ) == [
        "memory: memory.limit_in_bytes = 100",
        "memory: memory.memsw.limit_in_bytes = 200",
        "memory: memory.soft_limit_in_bytes = 50",
        "memory: memory.oom_control = 1",
        "memory: memory.swappiness = 10",
        "cpu: cpu.shares = 512",
        "cpu: cpu.cfs_period_us = 10",
        "cpu: cpu.cfs_quota_us = 5",
        "cpuset: cpuset.cpus = 0-1",
        "cpuset: cpuset.mems = 0",
        "pids: pids.max = max",
    ]


@pytest.mark.parametrize(
    ("now", "swap", "first"),
    [(None, 200, "limit"), (100, 200, "memsw.limit"), (300, 200, "limit"), (100, -1, "memsw.limit")],
)
def test_the_outer_memory_limit_grows_first_and_shrinks_last(now: int | None, swap: int, first: str) -> None:
    """Memory may never be more than memory and swap together."""
    writes = resources.v1_writes({"memory": {"limit": 150, "swap": swap}}, now)
    assert writes[0].file == f"memory.{first}_in_bytes"


def test_unlimited_memory_takes_swap_with_it() -> None:
    """-1 without a swap limit."""
    assert v1(memory={"limit": -1}) == [
        "memory: memory.limit_in_bytes = -1",
        "memory: memory.memsw.limit_in_bytes = -1",
    ]
    assert v2(memory={"limit": -1}) == ["memory: memory.swap.max = max", "memory: memory.max = max"]


def test_v2_limits() -> None:
    """In v2's files and units."""
    assert v2(
        memory={"limit": 100, "swap": 250, "reservation": 50},
        cpu={"shares": 1024, "quota": 50000, "cpus": "0"},
        pids={"limit": 7},
        hugepageLimits=[{"pageSize": "2MB", "limit": 4}],
        unified={"memory.high": "90"},
    ) == [
        "memory: memory.swap.max = 150",
        "memory: memory.max = 100",
        "memory: memory.low = 50",
        "cpu: cpu.weight = 39",
        "cpu: cpu.max = 50000 100000",
        "cpuset: cpuset.cpus = 0",
        "pids: pids.max = 7",
        "hugetlb: hugetlb.2MB.max = 4",
        "memory: memory.high = 90",
    ]
    assert v2(cpu={"quota": -1}) == ["cpu: cpu.max = max 100000"]


def test_block_limits_in_both() -> None:
    """Weights are converted, throttles have one line for each device."""
    block = {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}
    assert v1(blockIO=block) == [
        "blkio: blkio.weight = 500",
        "blkio: blkio.throttle.read_bps_device = 8:0 1000",
    ]
    assert v2(blockIO=block) == ["io: io.weight = default 4950", "io: io.max = 8:0 rbps=1000"]


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (1, 1), (999999, 10000)])
def test_cpu_weight(shares: int, weight: int) -> None:
    """The mapping that engines agreed on."""
    assert resources.cpu_weight(shares) == weight


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"memory": {"swap": 100}}, "unable to set swap limit without memory limit"),
        ({"memory": {"limit": 200, "swap": 100}}, "memory\\+swap limit should be >= memory limit"),
        ({"cpu": {"realtimePeriod": 1}}, "realtime"),
        ({"blockIO": {"leafWeight": 1}}, "leaf weights"),
        ({"unified": {"../memory.max": "1"}}, "must be a file name"),
    ],
)
def test_what_v2_can_not_do_is_refused(sections: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(RuntimeFailure, match=message):
        v2(**sections)


def test_a_missing_controller_fails_only_with_a_limit(tmp_path: Path) -> None:
    """In the words that callers match on."""
    paths = hierarchy.Paths("v1", {}, "")
    control.apply(paths, {})
    with pytest.raises(RuntimeFailure, match="cannot set pids limit: container could not join or create cgroup"):
        control.apply(paths, {"pids": {"limit": 1}})
    with pytest.raises(RuntimeFailure, match="cannot use unified cgroup resources with cgroup v1"):
        control.apply(paths, {"unified": {"memory.high": "1"}})


def test_limits_are_written_to_a_v2_group(tmp_path: Path) -> None:
    """A plan is carried out as it is."""
    for file in ("memory.max", "memory.swap.max", "pids.max"):
        (tmp_path / file).write_text("")
    paths = hierarchy.Paths("v2", {}, str(tmp_path))
    control.apply(paths, {"memory": {"limit": 5, "swap": 5}, "pids": {"limit": 3}})
    assert [(tmp_path / f).read_text() for f in ("memory.max", "memory.swap.max", "pids.max")] == ["5", "0", "3"]


# Devices


def rule(allow: bool, kind: str = "", major: int = -1, minor: int = -1, access: str = "rwm") -> Any:
    """A rule of the specification."""
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def test_rules_become_a_default_and_exceptions() -> None:
    """A rule that says what holds already changes nothing; one that contradicts an exception takes it back."""
    policy = devices.DevicePolicy()
    for each in (rule(False), rule(True, "c", 1, 3, "rw"), rule(True, "c", 1, 3, "m"), rule(False, "c", 1, 3, "w")):
        policy.apply(each)
    assert (policy.default_allow, policy.exceptions) == (False, {("c", 1, 3): "rm"})
    policy.apply(rule(True))
    assert (policy.default_allow, policy.exceptions) == (True, {})
    policy.apply(rule(False, "b", 8, -1))
    assert devices.v1_lines(policy) == [("devices.allow", "a"), ("devices.deny", "b 8:* rwm")]


def test_default_devices_stay_allowed() -> None:
    """Whatever the rules say."""
    lines = devices.v1_lines(devices.policy([rule(False)]))
    assert lines[0] == ("devices.deny", "a")
    assert ("devices.allow", "c 1:3 rwm") in lines
    assert ("devices.allow", "c *:* m") in lines


def run(program: list[bpf.Instruction], kind: str, access: str, major: int, minor: int) -> int:
    """What the kernel would answer: an interpreter for the few instructions that are used."""
    context = {
        0: sum({"m": 1, "r": 2, "w": 4}[a] for a in access) << 16 | {"b": 1, "c": 2}[kind],
        4: major,
        8: minor,
    }
    registers = [0] * 11
    position = 0
    while True:
        code, destination, source, offset, immediate = program[position]
        position += 1
        if code == 0x61:
            registers[destination] = context[offset]
        elif code == 0x54:
            registers[destination] &= immediate
        elif code == 0x74:
            registers[destination] >>= immediate
        elif code == 0xB4:
            registers[destination] = immediate
        elif code == 0xBC:
            registers[destination] = registers[source]
        elif code == 0x55:
            position += offset if registers[destination] != immediate else 0
        elif code == 0x15:
            position += offset if registers[destination] == immediate else 0
        elif code == 0x5D:
            position += offset if registers[destination] != registers[source] else 0
        elif code == 0x95:
            return registers[0]
        else:
            raise AssertionError(hex(code))


@pytest.mark.parametrize(
    ("rules", "asked", "allowed"),
    [
        ([rule(False)], ("c", "r", 1, 3), 1),  # null, by default
        ([rule(False)], ("c", "r", 1, 11), 0),
        ([rule(False)], ("c", "m", 1, 11), 1),  # nodes may be made
        ([rule(False)], ("c", "rm", 1, 11), 0),  # one of the two is not allowed
        ([rule(False), rule(True, "c", 10, 229, "r")], ("c", "r", 10, 229), 1),
        ([rule(False), rule(True, "c", 10, 229, "r")], ("c", "rw", 10, 229), 0),
        ([rule(False), rule(True, "b", 8)], ("b", "rw", 8, 5), 1),
        ([rule(False), rule(True, "b", 8)], ("c", "rw", 8, 5), 0),
        ([rule(True)], ("b", "rwm", 8, 0), 1),
        ([rule(True), rule(False, "b", 8, 0, "w")], ("b", "r", 8, 0), 1),
        ([rule(True), rule(False, "b", 8, 0, "w")], ("b", "rw", 8, 0), 0),
        ([rule(True), rule(False, "b", 8, 0, "w")], ("b", "rw", 8, 1), 1),
    ],
)
def test_the_program_of_a_policy(rules: list[Any], asked: tuple[str, str, int, int], allowed: int) -> None:
    """Answers as the rules say."""
    assert run(bpf.program(devices.policy(rules)), *asked) == allowed


def test_instructions_are_eight_bytes() -> None:
    """In the machine's byte order."""
    raw = bpf.assemble(bpf.program(devices.policy([rule(False)])))
    assert len(raw) % 8 == 0
    assert raw[0] == 0x61
    assert bpf.assemble([(0x55, 4, 0, -1, 0xFFFFFFFF)])[2:] == b"\xff" * 6


V2_ROOT = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/unified"


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(f"{V2_ROOT}/cgroup.procs"), reason="needs root and a v2 group"
)
def test_the_kernel_takes_the_program(tmp_path: Path) -> None:
    """It is loaded and attached to a v2 group, denies there, and is replaced by the next."""
    import subprocess

    group = f"{V2_ROOT}/gantry-test-bpf-{os.getpid()}"
    os.mkdir(group)
    try:
        bpf.install(group, devices.policy([rule(False)]))
        bpf.install(group, devices.policy([rule(False), rule(True, "c", 10, 229, "r")]))
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        assert len(bpf.attached(fd)) == 1
        os.close(fd)
        os.mknod(tmp_path / "fuse", 0o666 | 0o020000, os.makedev(10, 229))
        script = f"echo $$ >{group}/cgroup.procs; cat </dev/null; (: <{tmp_path}/fuse) && (: >{tmp_path}/fuse)"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        assert done.stderr.count("Operation not permitted") == 1
    finally:
        os.rmdir(group)


# Statistics


def test_numbers_are_parsed() -> None:
    """Flat files, lists, block lines."""
    assert stats.parse_flat("a 1\nb 2\nodd\n") == {"a": 1, "b": 2}
    assert stats.parse_list("0-2,5") == [0, 1, 2, 5]
    assert stats.parse_list("") == []
    assert stats.parse_v1_block("8:0 Read 5\nTotal 5\n") == [{"major": 8, "op": "Read", "value": 5}]


def test_v2_statistics(tmp_path: Path) -> None:
    """In the names of v1, swap counted with memory."""
    for name, text in {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\n",
        "memory.current": "100\n",
        "memory.max": "max\n",
        "memory.swap.current": "20\n",
        "memory.stat": "file 7\n",
        "pids.current": "3\n",
        "pids.max": "9\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
    }.items():
        (tmp_path / name).write_text(text)
    data: Any = stats.collect(hierarchy.Paths("v2", {}, str(tmp_path)))
    assert data["cpu"]["usage"] == {"total": 5000, "kernel": 2000, "user": 3000}
    assert data["memory"]["swap"]["usage"] == 120
    assert data["memory"]["usage"]["limit"] == (1 << 64) - 1
    assert data["pids"] == {"current": 3, "limit": 9}
    assert data["blkio"]["ioServicedRecursive"][1] == {"major": 8, "op": "Write", "value": 4}


def test_limits_do_not_touch_the_devices(tmp_path: Path) -> None:
    """Device rules are set apart: the first line forbids everything, to an init that is making its devices still."""
    for file in ("devices.deny", "devices.allow"):
        (tmp_path / file).write_text("")
    paths = hierarchy.Paths("v1", {"devices": str(tmp_path)}, "")
    rules: Any = {"devices": [{"allow": False, "access": "rwm"}]}
    control.apply(paths, rules)
    assert (tmp_path / "devices.deny").read_text() == ""
    control.apply_devices(paths, rules)
    assert (tmp_path / "devices.deny").read_text() == "a"


def test_weights_go_to_the_files_of_the_scheduler_that_has_them(tmp_path: Path) -> None:
    """BFQ's have another name than those of the scheduler before it."""
    for file in ("blkio.bfq.weight", "blkio.bfq.weight_device"):
        (tmp_path / file).write_text("")
    block: Any = {"weight": 333, "weightDevice": [{"major": 8, "minor": 0, "weight": 444}]}
    control.apply(hierarchy.Paths("v1", {"blkio": str(tmp_path)}, ""), {"blockIO": block})
    assert (tmp_path / "blkio.bfq.weight").read_text() == "333"
    assert (tmp_path / "blkio.bfq.weight_device").read_text() == "8:0 444"
