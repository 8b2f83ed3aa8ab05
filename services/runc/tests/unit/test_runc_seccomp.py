from __future__ import annotations

import sys
from typing import Any

import pytest

from runc import seccomp
from runc.errors import RuntimeFailure

X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def test_action_values() -> None:
    """With EPERM where no errno is given."""
    assert seccomp.action_value("SCMP_ACT_ERRNO", None) == 0x00050001
    assert seccomp.action_value("SCMP_ACT_ERRNO", 38) == 0x00050026
    assert seccomp.action_value("SCMP_ACT_ALLOW", None) == 0x7FFF0000


def test_conditions_on_one_argument_are_alternatives() -> None:
    """On different ones they must all hold."""
    first: Any = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    second: Any = {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}
    assert seccomp.alternatives([first, second]) == [[first, second]]
    assert seccomp.alternatives([first, first]) == [[first], [first]]
    assert seccomp.alternatives([]) == [[]]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"defaultAction": "X"}, 'invalid seccomp action "X"'),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"},
            "listenerMetadata is given without listenerPath",
        ),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "errnoRet can not be given"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["VAX"]}, 'architecture "VAX"'),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, 'flag "X"'),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]}, "without system call names"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["x"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}
                ],
            },
            "no argument 6",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["x"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "=="}]}
                ],
            },
            'operator "=="',
        ),
    ],
)
def test_bad_profiles_are_refused(profile: Any, message: str) -> None:
    """By what is wrong."""
    with pytest.raises(RuntimeFailure, match=message):
        seccomp.check(profile)


def run(code: bytes, number: int, architecture: int) -> int | str:
    """What the stub does with a call: its return value, or `filter` when it lets the filter behind it decide."""
    instructions = [
        (
            int.from_bytes(code[i : i + 2], sys.byteorder),
            code[i + 2],
            code[i + 3],
            int.from_bytes(code[i + 4 : i + 8], sys.byteorder),
        )
        for i in range(0, len(code), 8)
    ]
    position, accumulator = 0, 0
    while position < len(instructions):
        operation, when_true, when_false, value = instructions[position]
        position += 1
        if operation == 0x20:
            accumulator = {0: number, 4: architecture}[value]
        elif operation == 0x05:
            position += value
        elif operation == 0x15:
            position += when_true if accumulator == value else when_false
        elif operation == 0x25:
            position += when_true if accumulator > value else when_false
        elif operation == 0x45:
            position += when_true if accumulator & value else when_false
        elif operation == 0x06:
            return value
    return "filter"


@pytest.mark.parametrize(
    ("number", "architecture", "verdict"),
    [
        (5, X86_64, "filter"),
        (300, X86_64, "filter"),
        (301, X86_64, 0x00050026),
        (0x40000000 | 5000, X86_64, "filter"),
        (400, AARCH64, "filter"),
        (401, AARCH64, 0x00050026),
        (9999, 0x1234, "filter"),
    ],
)
def test_calls_newer_than_the_profile_are_unknown(number: int, architecture: int, verdict: int | str) -> None:
    """ENOSYS beyond the highest known number of the architecture; all else is the filter's to decide."""
    assert run(seccomp.stub({X86_64: 300, AARCH64: 400}), number, architecture) == verdict


def test_no_known_call_no_stub() -> None:
    """Nothing is put in front."""
    assert seccomp.stub({}) == b""
