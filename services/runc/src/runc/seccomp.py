"""Seccomp filters: a profile of config.json compiled by libseccomp (config-linux.md "Seccomp").

Compiling costs milliseconds and gives the same bytes for the same profile: the result is kept below /run, by the digest
of the profile and of the compiler's version, readable by root alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

from runc import jsontext, listener, security
from runc.errors import RuntimeFailure, system_text
from runc.security import HEADER

# The digest itself, without hashlib and the TLS library that it loads.
try:
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:  # before Python 3.12
    from _sha256 import sha256  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Seccomp, SeccompArg, SeccompSyscall
    from runc.logs import Log

CACHE = "/run/gantry/runc-seccomp"
_FORMAT = 1
"""Counts up when the compiled form changes."""
_CACHE_FILES_MAX = 256

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_DATA = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")

OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

ARCHITECTURES = tuple(
    f"SCMP_ARCH_{name}"
    for name in (
        "X86",
        "X86_64",
        "X32",
        "ARM",
        "AARCH64",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "LOONGARCH64",
    )
)

# For all threads at once (TSYNC) is nothing to ask for: the process that installs the filter has one thread.
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0x0,
    "SECCOMP_FILTER_FLAG_LOG": 0x2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 0x4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0x20,
}
_NEW_LISTENER = 0x8
_WAIT_KILLABLE = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
_DEFAULT_FLAGS = ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]

_EPERM, _ENOSYS = 1, 38
_ATTRIBUTE_OPTIMIZE = 8
_BINARY_TREE = 2

# Classic BPF (linux/filter.h, linux/bpf_common.h), and the offsets of struct seccomp_data.
_LOAD = 0x20
_JUMP = 0x05
_JUMP_EQ = 0x15
_JUMP_GT = 0x25
_JUMP_SET = 0x45
_RETURN = 0x06
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE = 0, 4
_X32_BIT = 0x40000000
_X86_64_TOKEN = 0xC000003E


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def compiled(profile: Seccomp, log: Log) -> bytes:
    """The filter of a profile, as `security.install_filter` takes it. Raises RuntimeFailure naming what is wrong."""
    check(profile)
    library = _load()
    log.debug(f"seccomp filter flags: {flag_bits(profile)}")
    key = _cache_key(profile, library)
    found = _cached(key)
    if found:
        return found
    result = flag_bits(profile).to_bytes(HEADER, "little") + _compile(profile, library, log)
    _keep(key, result)
    return result


def action_value(action: str, errno_ret: int | None) -> int:
    """The kernel's value of an action with its errno."""
    value = ACTIONS[action]
    if action in _WITH_DATA:
        value |= (_EPERM if errno_ret is None else errno_ret) & 0xFFFF
    return value


def flag_bits(profile: Seccomp) -> int:
    """SECCOMP_FILTER_FLAG_* of the profile; one that names none, not even an empty list, gets the harmless one."""
    bits = sum({FLAGS[flag] for flag in profile.get("flags", _DEFAULT_FLAGS)})
    notifies = any(rule["action"] == listener.ACTION for rule in profile.get("syscalls", []))
    return bits | (_NEW_LISTENER if notifies else 0)


def supported_flags() -> list[str]:
    """Those of FLAGS that the kernel knows."""
    # The last one goes with a listener only.
    return [
        name
        for name, bits in FLAGS.items()
        if security.knows_filter_flags(bits | (_NEW_LISTENER if bits == FLAGS[_WAIT_KILLABLE] else 0))
    ]


def check(profile: Seccomp) -> None:
    """Raises RuntimeFailure for what is malformed, or not supported."""
    if profile.get("listenerMetadata") and not profile.get("listenerPath"):
        raise RuntimeFailure("seccomp listenerMetadata is given without listenerPath")
    _check_action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    for name in profile.get("architectures", []):
        if name not in ARCHITECTURES:
            raise RuntimeFailure(f'invalid seccomp architecture "{name}"')
    for flag in profile.get("flags", []):
        if flag not in FLAGS:
            raise RuntimeFailure(f'seccomp flag "{flag}" is not supported')
    for call in profile.get("syscalls", []):
        if not call.get("names"):
            raise RuntimeFailure("seccomp: a rule without system call names")
        _check_action(call.get("action", ""), call.get("errnoRet"))
        for argument in call.get("args", []):
            if argument.get("op") not in OPERATORS:
                raise RuntimeFailure(f'invalid seccomp operator "{argument.get("op")}"')
            if not 0 <= argument.get("index", -1) <= 5:
                raise RuntimeFailure(f"seccomp: there is no argument {argument.get('index')} of a system call")


def _check_action(action: str, errno_ret: int | None) -> None:
    if action not in ACTIONS:
        raise RuntimeFailure(f'invalid seccomp action "{action}"')
    if errno_ret is not None and action not in _WITH_DATA:
        raise RuntimeFailure(f"seccomp errnoRet can not be given with action {action}")


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise RuntimeFailure("a seccomp profile is specified, but libseccomp.so.2 is not installed") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def _require(result: int, what: str) -> None:
    if result < 0:
        raise RuntimeFailure(f"seccomp: {what}: {system_text(OSError(-result, ''))}")


def _compile(profile: Seccomp, library: ctypes.CDLL, log: Log) -> bytes:
    default = action_value(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    if not context:
        raise RuntimeFailure(f"seccomp: error creating a filter with default action {profile['defaultAction']}")
    try:
        tokens = _architectures(profile, library)
        for token in tokens:
            result = library.seccomp_arch_add(context, token)
            if result != -17:  # EEXIST: the native one is there from the start
                _require(result, f"adding architecture {token:#x}")
        # Long profiles: look a number up in a tree. Versions before 2.5 do not know this and use a list.
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
        for call in profile.get("syscalls", []):
            _add_rule(library, context, call, default, log)
        code = _export(library, context)
    finally:
        library.seccomp_release(context)
    return unknown_calls_stub(profile, library, tokens) + code


def _architectures(profile: Seccomp, library: ctypes.CDLL) -> list[int]:
    tokens = [library.seccomp_arch_native()]
    for name in profile.get("architectures", []):
        token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
        if token and token not in tokens:
            tokens.append(token)
    return tokens


def _add_rule(library: ctypes.CDLL, context: int, call: SeccompSyscall, default: int, log: Log) -> None:
    action = action_value(call["action"], call.get("errnoRet"))
    if action == default:
        return
    arguments = call.get("args", [])
    for name in call["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            log.debug(f"seccomp: ignoring system call {name!r}, unknown to libseccomp")
            continue
        for conditions in alternatives(arguments):
            array = (_Comparison * max(len(conditions), 1))(
                *[
                    _Comparison(c["index"], OPERATORS[c["op"]], c.get("value", 0), c.get("valueTwo", 0))
                    for c in conditions
                ]
            )
            result = library.seccomp_rule_add_array(context, action, number, len(conditions), array)
            _require(result, f"adding a rule for {name}")


def alternatives(arguments: list[SeccompArg]) -> list[list[SeccompArg]]:
    """Conditions on different arguments must all hold; of several on the same one each is a rule of its own."""
    if len({argument["index"] for argument in arguments}) == len(arguments):
        return [arguments]
    return [[argument] for argument in arguments]


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _require(library.seccomp_export_bpf(context, fd), "exporting the filter")
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def unknown_calls_stub(profile: Seccomp, library: ctypes.CDLL, tokens: list[int]) -> bytes:
    """Instructions in front of the filter: ENOSYS for calls that are newer than any the profile names.

    A C library that tries a new call falls back to the old one on ENOSYS only; what a profile denies by default gives
    EPERM otherwise, and breaks it. Calls up to the highest number that the profile knows keep its verdict.
    """
    if profile["defaultAction"] in _PERMISSIVE or profile.get("defaultErrnoRet") == _ENOSYS:
        return b""
    names = {name.encode() for call in profile.get("syscalls", []) for name in call["names"]}
    highest = {}
    for token in tokens:
        numbers = [library.seccomp_syscall_resolve_name_arch(token, name) for name in names]
        top = max((number & ~_X32_BIT for number in numbers if number >= 0), default=-1)
        if top >= 0:
            highest[token] = top
    return stub(highest)


def stub(highest: dict[int, int]) -> bytes:
    """The instructions for a highest known number for each architecture token. x32's calls are left to the filter."""
    blocks: list[list[tuple[int, int, int, int]]] = []
    for token, top in highest.items():
        block = [(_LOAD, 0, 0, _OFFSET_NUMBER)]
        if token == _X86_64_TOKEN:
            block.append((_JUMP_SET, 2, 0, _X32_BIT))
        block += [(_JUMP_GT, 0, 1, top), (_RETURN, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS)]
        block.insert(0, (_JUMP_EQ, 0, len(block) + 1, token))
        blocks.append(block)
    if not blocks:
        return b""
    code = [(_LOAD, 0, 0, _OFFSET_ARCHITECTURE)]
    lengths = [len(block) + 1 for block in blocks]
    for index, block in enumerate(blocks):
        code += block
        code.append((_JUMP, 0, 0, sum(lengths[index + 1 :])))
    return b"".join(_instruction(*each) for each in code)


def _instruction(code: int, when_true: int, when_false: int, value: int) -> bytes:
    order = sys.byteorder
    return code.to_bytes(2, order) + bytes((when_true, when_false)) + value.to_bytes(4, order)


# The cache


def _cache_key(profile: Seccomp, library: ctypes.CDLL) -> str:
    # struct scmp_version: major, minor, micro.
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    version = bytes(library.seccomp_version().contents)
    filtering = {name: value for name, value in profile.items() if not name.startswith("listener")}
    key: str = sha256(version + bytes((_FORMAT,)) + jsontext.dumps(filtering).encode()).hexdigest()
    return key


def _cached(key: str) -> bytes:
    try:
        directory = os.stat(CACHE)
        if directory.st_uid != 0 or directory.st_mode & 0o077:
            return b""
        with open(f"{CACHE}/{key}", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _keep(key: str, result: bytes) -> None:
    if os.geteuid() != 0:
        return
    temporary = f"{CACHE}/.{key}.{os.getpid()}"
    try:
        os.makedirs(CACHE, 0o700, exist_ok=True)
        if len(os.listdir(CACHE)) >= _CACHE_FILES_MAX:
            for name in os.listdir(CACHE):
                os.unlink(f"{CACHE}/{name}")
        with open(temporary, "xb", buffering=0) as file:
            file.write(result)
        os.rename(temporary, f"{CACHE}/{key}")
    except OSError:
        return  # without a cache the next call compiles again
