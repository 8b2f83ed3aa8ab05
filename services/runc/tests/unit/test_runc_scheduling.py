from __future__ import annotations

import copy
from typing import Any

import pytest

from runc import example, scheduling
from runc.errors import RuntimeFailure


def configuration(**process: Any) -> Any:
    """A container whose process has these properties besides."""
    value: Any = copy.deepcopy(example.specification(cgroup2=False))
    value["process"].update(process)
    return value


def test_nothing_asked_is_nothing_done() -> None:
    """The common container pays for none of it."""
    spec = configuration()
    assert scheduling.plan(spec["process"], spec) is None


def test_scheduler_attributes() -> None:
    """As struct sched_attr has them."""
    made = scheduling.scheduler_attributes({"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]})
    assert (made.size, made.policy, made.flags, made.nice, made.priority) == (56, 3, 1, 5, 0)
    made = scheduling.scheduler_attributes({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3})
    assert (made.policy, made.runtime, made.deadline, made.period) == (6, 1, 2, 3)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({}, "scheduler policy is required"),
        ({"policy": "SCHED_NONE"}, "invalid scheduler policy: SCHED_NONE"),
        ({"policy": "SCHED_OTHER", "nice": 20}, "invalid scheduler.nice: 20 when scheduler.policy is SCHED_OTHER"),
        ({"policy": "SCHED_OTHER", "priority": 1}, "scheduler.priority can only be specified"),
        ({"policy": "SCHED_FIFO", "period": 1}, "runtime/deadline/period can only be specified"),
        ({"policy": "SCHED_RR", "flags": ["X"]}, "invalid scheduler flag: X"),
    ],
)
def test_schedulers_that_can_not_be(scheduler: Any, message: str) -> None:
    """Are refused, for init and before anything exists."""
    spec = configuration(scheduler=scheduler)
    with pytest.raises(RuntimeFailure, match=message):
        scheduling.plan(spec["process"], spec)


def test_io_priorities() -> None:
    """Class and level in one number."""
    assert scheduling.io_priority_value({"class": "IOPRIO_CLASS_BE", "priority": 4}) == 2 << 13 | 4
    for value, message in (
        ({"class": "IOPRIO_CLASS_BE", "priority": 8}, "invalid ioPriority.Priority: 8"),
        ({"class": "BE", "priority": 1}, 'invalid ioPriority.Class: "BE"'),
    ):
        with pytest.raises(RuntimeFailure, match=message):
            scheduling.io_priority_value(value)  # type: ignore[arg-type]


def test_memory_policies() -> None:
    """Modes with their flags, nodes as a mask."""
    assert scheduling.memory_policy({"mode": "MPOL_BIND", "nodes": "0-1,3"}) == (2, 0b1011)
    assert scheduling.memory_policy({"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_STATIC_NODES"]}) == (1 | 1 << 15, 0)
    for value, message in (
        ({}, 'invalid memory policy mode ""'),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "requires 0 nodes but got 1"),
        ({"mode": "MPOL_INTERLEAVE"}, "requires at least one node"),
        ({"mode": "MPOL_BIND", "nodes": "x"}, 'invalid memory policy nodes "x"'),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["F"]}, 'invalid memory policy flag "F"'),
    ):
        with pytest.raises(RuntimeFailure, match=message):
            scheduling.memory_policy(value)  # type: ignore[arg-type]


def test_lists_of_numbers() -> None:
    """Ranges and single ones; what is no list is told."""
    assert scheduling.parse_list("0-2,5, 7") == {0, 1, 2, 5, 7}
    for text in ("3-1", "-1", "1-", "a", ",", "0-99999999"):
        with pytest.raises(ValueError, match=r"invalid range|no members"):
            scheduling.parse_list(text)


def test_affinity_is_for_added_processes() -> None:
    """The first one is not moved; what an added process does not say for itself holds from the container."""
    spec = configuration(
        execCPUAffinity={"initial": "0", "final": "0-1"}, ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    )
    first = scheduling.plan(spec["process"], spec)
    added = scheduling.plan({"cwd": "/"}, spec, added=True)
    assert first is not None
    assert added is not None
    assert (first.initial, first.final) == (None, None)
    assert (added.initial, added.final) == ({0}, {0, 1})
    assert added.io_priority == first.io_priority == 3 << 13
    with pytest.raises(RuntimeFailure, match=r"bad CPUAffinity\.Final"):
        scheduling.plan({"cwd": "/", "execCPUAffinity": {"final": "x"}}, spec, added=True)
