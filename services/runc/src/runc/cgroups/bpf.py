"""The device filter of cgroup v2: a BPF program put together by hand, loaded and attached by bpf(2).

The kernel calls it with `struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor;}`, access_type being
`access << 16 | type`, and takes 1 for allowed (linux/bpf.h, BPF_PROG_TYPE_CGROUP_DEVICE).
"""

from __future__ import annotations

import ctypes
import os
import sys

from gantry.linux.libc import MACHINE, syscall
from runc.cgroups.devices import WILDCARD, DevicePolicy
from runc.errors import RuntimeFailure

_NUMBERS = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_NR_BPF = _NUMBERS.get(MACHINE, 280)

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI = 2

_BLOCK, _CHAR = 1, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}

# Operations (linux/bpf_common.h, linux/bpf.h).
_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_AND32 = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RSH32 = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_MOV32 = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
_MOV32_REG = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
_JUMP_NE = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_JUMP_NE_REG = 0x5D  # BPF_JMP | BPF_JNE | BPF_X
_EXIT = 0x95

Instruction = tuple[int, int, int, int, int]
"""code, destination register, source register, offset, immediate."""

_MAX_NUMBER = (1 << 32) - 1


def program(policy: DevicePolicy) -> list[Instruction]:
    """The program of a policy: each exception in turn, then the default. Raises RuntimeFailure for a bad number."""
    code: list[Instruction] = [
        (_LOAD_WORD, 2, 1, 0, 0),
        (_AND32, 2, 0, 0, 0xFFFF),  # r2: type
        (_LOAD_WORD, 3, 1, 0, 0),
        (_RSH32, 3, 0, 0, 16),  # r3: access
        (_LOAD_WORD, 4, 1, 4, 0),  # r4: major
        (_LOAD_WORD, 5, 1, 8, 0),  # r5: minor
    ]
    for (kind, major, minor), access in policy.exceptions.items():
        code += _rule(kind, major, minor, access, allow=not policy.default_allow)
    return [*code, (_MOV32, 0, 0, 0, int(policy.default_allow)), (_EXIT, 0, 0, 0, 0)]


def _rule(kind: str, major: int, minor: int, access: str, *, allow: bool) -> list[Instruction]:
    tests: list[Instruction] = [(_JUMP_NE, 2, 0, 0, _BLOCK if kind == "b" else _CHAR)]
    if set(access) != {"r", "w", "m"}:
        bits = sum(_ACCESS[letter] for letter in access)
        if allow:
            # Allowed when every access asked for is among these: (asked & bits) == asked.
            tests += [(_MOV32_REG, 1, 3, 0, 0), (_AND32, 1, 0, 0, bits), (_JUMP_NE_REG, 1, 3, 0, 0)]
        else:
            # Denied when any access asked for is among these: go on only if (asked & bits) == 0 does not hold.
            tests += [(_MOV32_REG, 1, 3, 0, 0), (_AND32, 1, 0, 0, bits), (_JUMP_EQ, 1, 0, 0, 0)]
    for register, number in ((4, major), (5, minor)):
        if number == WILDCARD:
            continue
        if not 0 <= number <= _MAX_NUMBER:
            raise RuntimeFailure(f"invalid device number {number}")
        tests.append((_JUMP_NE, register, 0, 0, number))
    verdict: list[Instruction] = [(_MOV32, 0, 0, 0, int(allow)), (_EXIT, 0, 0, 0, 0)]
    block = tests + verdict
    # Each failed test goes on behind this rule: an offset counts from the next instruction.
    return [
        (code, destination, source, len(block) - index - 1, immediate) if code in _JUMPS else insn
        for index, insn in enumerate(block)
        for code, destination, source, _, immediate in (insn,)
    ]


_JUMP_EQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMPS = (_JUMP_NE, _JUMP_NE_REG, _JUMP_EQ)


def assemble(code: list[Instruction]) -> bytes:
    """`struct bpf_insn` of each instruction, in the machine's byte order."""
    order = sys.byteorder
    raw = bytearray()
    for operation, destination, source, offset, immediate in code:
        registers = destination | source << 4 if order == "little" else destination << 4 | source
        raw += bytes((operation, registers))
        raw += (offset & 0xFFFF).to_bytes(2, order)
        raw += (immediate & 0xFFFFFFFF).to_bytes(4, order)
    return bytes(raw)


class _Load(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


class _Attach(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


class _Query(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class _Get(ctypes.Structure):
    _fields_ = (("prog_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


def _bpf(command: int, attr: ctypes.Structure, call: str) -> int:
    return syscall(_NR_BPF, f"bpf {call}", command, ctypes.byref(attr), ctypes.sizeof(attr))


def load(raw: bytes) -> int:
    """BPF_PROG_LOAD: the descriptor of the program. Raises OSError."""
    instructions = ctypes.create_string_buffer(raw, len(raw))
    terms = ctypes.create_string_buffer(b"Apache-2.0")
    attr = _Load(
        prog_type=_TYPE_CGROUP_DEVICE,
        insn_cnt=len(raw) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(terms),
        prog_name=b"devices",
    )
    return _bpf(BPF_PROG_LOAD, attr, "BPF_PROG_LOAD")


def attached(directory_fd: int) -> list[int]:
    """The ids of the device programs attached to the group itself."""
    ids = (ctypes.c_uint32 * 64)()
    attr = _Query(
        target_fd=directory_fd, attach_type=_ATTACH_CGROUP_DEVICE, prog_ids=ctypes.addressof(ids), prog_cnt=64
    )
    _bpf(BPF_PROG_QUERY, attr, "BPF_PROG_QUERY")
    return list(ids[: attr.prog_cnt])


def install(directory: str, policy: DevicePolicy) -> None:
    """Make the policy the group's: attach the new program, then detach those that were there. Raises OSError."""
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    program_fd = -1
    try:
        before = attached(directory_fd)
        program_fd = load(assemble(program(policy)))
        attach = _Attach(directory_fd, program_fd, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI)
        _bpf(BPF_PROG_ATTACH, attach, "BPF_PROG_ATTACH")
        for old in before:
            old_fd = _bpf(BPF_PROG_GET_FD_BY_ID, _Get(prog_id=old), "BPF_PROG_GET_FD_BY_ID")
            try:
                _bpf(BPF_PROG_DETACH, _Attach(directory_fd, old_fd, _ATTACH_CGROUP_DEVICE), "BPF_PROG_DETACH")
            finally:
                os.close(old_fd)
    finally:
        os.close(directory_fd)
        if program_fd >= 0:
            os.close(program_fd)
