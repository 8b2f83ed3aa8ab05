"""The last steps of a process before it becomes the container's program: user, capabilities, directory, execve."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import errno
import os
import stat

from gantry.linux import capabilities as linux_capabilities
from gantry.linux import process as linux_process
from gantry.linux.libc import check, libc
from runc import launcher
from runc.errors import RuntimeFailure, describe, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from gantry.oci.runtime import Capabilities, Personality, Process, Rlimit, User

MAX_PASSWD_SIZE = 1 << 20

# setrlimit(2), asm-generic/resource.h
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}

PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}


def check_rlimits(rlimits: list[Rlimit]) -> None:
    """Raises RuntimeFailure for a limit that does not exist, or is given twice."""
    seen = set()
    for rlimit in rlimits:
        kind = rlimit["type"]
        if kind not in RLIMITS:
            raise RuntimeFailure(f'invalid rlimit type: "{kind}"')
        if kind in seen:
            raise RuntimeFailure(f'rlimit "{kind}" is given twice')
        seen.add(kind)


class _Rlimit64(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def set_rlimits(pid: int, rlimits: list[Rlimit]) -> None:
    """Set another process's limits: the caller may have the right to raise them, a user namespace takes it away."""
    for rlimit in rlimits:
        number = RLIMITS[rlimit["type"]]
        pair = _Rlimit64(rlimit["soft"], rlimit["hard"])
        try:
            check(libc.prlimit64(pid, number, ctypes.byref(pair), None), "prlimit")
        except OSError as error:
            raise RuntimeFailure(f"error setting rlimit type {number}: {system_text(error)}") from error


def set_oom_score(pid: int, score: int | None) -> None:
    """Write /proc/PID/oom_score_adj."""
    if score is None:
        return
    path = f"/proc/{pid}/oom_score_adj"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(score).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"failed to write {score} to {path}: {system_text(error)}") from error


def set_personality(personality: Personality | None) -> None:
    """Set the execution domain. Raises RuntimeFailure for one that is not supported."""
    if not personality:
        return
    domain = personality["domain"]
    if domain not in PERSONALITIES or personality.get("flags"):
        raise RuntimeFailure(f"personality {domain} with flags {personality.get('flags', [])} is not supported")
    linux_process.personality(PERSONALITIES[domain])


# Capabilities


class CapabilityPlan:
    """The five sets as masks, and the names that are unknown to this runtime or to the kernel."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted", "unknown")

    def __init__(self, capabilities: Capabilities, last: int) -> None:
        known = (1 << last + 1) - 1
        self.unknown: list[str] = []
        self.bounding = self._mask(capabilities.get("bounding", []), known)
        self.effective = self._mask(capabilities.get("effective", []), known)
        self.permitted = self._mask(capabilities.get("permitted", []), known)
        self.inheritable = self._mask(capabilities.get("inheritable", []), known)
        self.ambient = self._mask(capabilities.get("ambient", []), known)

    def _mask(self, names: list[str], known: int) -> int:
        bits, unknown = linux_capabilities.mask(names)
        beyond = [name for name in linux_capabilities.NAMES if linux_capabilities.mask([name])[0] & bits & ~known]
        self.unknown += [name for name in unknown + beyond if name not in self.unknown]
        return bits & known


def _change_user(user: User) -> None:
    groups = user.get("additionalGids", [])
    try:
        os.setgroups(groups)
    except OSError as error:
        # In a user namespace made without privilege groups can not be set at all; then none may be asked for.
        if error.errno != errno.EPERM or groups or not _setgroups_denied():
            raise RuntimeFailure(f"unable to set supplementary groups: {system_text(error)}") from error
    gid, uid = user.get("gid", 0), user.get("uid", 0)
    try:
        os.setresgid(gid, gid, gid)
    except OSError as error:
        raise RuntimeFailure(f"unable to setgid to {gid}: {system_text(error)}") from error
    try:
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise RuntimeFailure(f"unable to setuid to {uid}: {system_text(error)}") from error


def _setgroups_denied() -> bool:
    try:
        with open("/proc/self/setgroups", "rb", buffering=0) as file:
            return file.read().strip() == b"deny"
    except OSError:
        return False


def own_stdio(uid: int) -> None:
    """Make the container's user the owner of its standard streams, so that it can open them again by /dev/stdout."""
    null = os.stat("/dev/null").st_rdev
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
        except OSError:
            continue  # closed by the caller
        if status.st_uid == uid or (stat.S_ISCHR(status.st_mode) and status.st_rdev == null):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            # A stream may be on a read-only file system, or belong to a user that is not mapped: it still works.
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
                raise


def _home_of(uid: int) -> str:
    """The home directory by the container's own /etc/passwd, `/` without one."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return "/"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "/"
        text = os.read(fd, MAX_PASSWD_SIZE)
    except OSError:
        return "/"
    finally:
        os.close(fd)
    wanted = str(uid).encode()
    for line in text.splitlines():
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == wanted:
            return os.fsdecode(fields[5]) or "/"
    return "/"


class Credentials:
    """Whom the program runs as and what it may do, checked before anything is given up."""

    __slots__ = ("capabilities", "no_new_privileges", "process", "user")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.user: User = process.get("user", {})
        given = process.get("capabilities")
        self.capabilities = None if given is None else CapabilityPlan(given, linux_capabilities.last_capability())
        self.no_new_privileges = process.get("noNewPrivileges", False)


def become(credentials: Credentials) -> None:
    """Take the user, the capabilities and the working directory of the process. Raises RuntimeFailure."""
    capabilities = credentials.capabilities
    cwd = credentials.process["cwd"]
    if capabilities is not None:
        try:
            linux_capabilities.limit_bounding(capabilities.bounding)
        except OSError as error:
            raise RuntimeFailure(f"unable to apply bounding set: {system_text(error)}") from error
    linux_process.prctl(linux_process.PR_SET_KEEPCAPS, 1, name="PR_SET_KEEPCAPS")
    arrived = _enter(cwd, ignore_denied=True)
    umask = credentials.user.get("umask")
    own_stdio(credentials.user.get("uid", 0))
    _change_user(credentials.user)
    # The directory may be one that only the user can enter.
    if not arrived:
        _enter(cwd, ignore_denied=False)
    _check_inside()
    linux_process.prctl(linux_process.PR_SET_KEEPCAPS, 0, name="PR_SET_KEEPCAPS")
    if capabilities is not None:
        try:
            linux_capabilities.put(
                linux_capabilities.Sets(capabilities.effective, capabilities.permitted, capabilities.inheritable)
            )
            # The kernel lets only what is permitted and inheritable be ambient; configurations often ask for more.
            linux_capabilities.set_ambient(capabilities.ambient & capabilities.permitted & capabilities.inheritable)
        except OSError as error:
            raise RuntimeFailure(f"unable to apply caps: {system_text(error)}") from error
    os.umask(0o022 if umask is None else umask)


def _enter(cwd: str, *, ignore_denied: bool) -> bool:
    try:
        os.chdir(cwd)
    except OSError as error:
        if ignore_denied and error.errno in (errno.EACCES, errno.EPERM):
            return False
        raise RuntimeFailure(f'chdir to cwd ("{cwd}") set in config.json failed: {system_text(error)}') from error
    return True


def _check_inside() -> None:
    """A directory reached through a leaked descriptor has no path from the root (CVE-2024-21626)."""
    try:
        path = os.getcwd()
    except FileNotFoundError:
        path = ""
    if not path.startswith("/"):
        raise RuntimeFailure(
            "current working directory is outside of container mount namespace root -- "
            "possible container breakout detected"
        )


# The program


def environment(process: Process) -> dict[str, str]:
    """The environment of the program; HOME is looked up when it is not given."""
    env: dict[str, str] = {}
    for item in process.get("env", []):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise RuntimeFailure(f"invalid environment variable: {item!r}")
        env[name] = value
    if not env.get("HOME"):
        env["HOME"] = _home_of(process.get("user", {}).get("uid", 0))
    return env


def look_up(program: str, env: dict[str, str]) -> str:
    """The path of the program, in the words that callers match on: `exec: "x": executable file not found in $PATH`."""
    if "/" in program:
        reason = _why_not_executable(program)
        if reason:
            raise RuntimeFailure(f'exec: "{program}": {reason}')
        return program
    for directory in env.get("PATH", "").split(":"):
        candidate = os.path.join(directory or ".", program)
        if program and not _why_not_executable(candidate):
            return candidate
    raise RuntimeFailure(f'exec: "{program}": executable file not found in $PATH')


def _why_not_executable(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {system_text(error)}"
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not mode & 0o111:
        return "permission denied"
    return ""


def reset_signals() -> None:
    """Give the program every signal as the kernel starts with: Python ignores two, the caller may have more."""
    for number in range(1, 65):
        if number in (9, 19, 32, 33):  # SIGKILL, SIGSTOP, and the two that the C library keeps to itself
            continue
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def execute(path: str, process: Process, env: dict[str, str], launcher_fd: int = -1) -> NoReturn:
    """execve(2). Raises OSError.

    With a launcher (see there) it is what this process executes, and the program what the launcher executes.
    """
    if launcher_fd >= 0:
        launcher.execute(launcher_fd, path, process["args"], env)
    os.execve(path, process["args"], env)  # noqa: S606


def execution_failure(path: str, error: OSError) -> str:
    """What to say of a program that the kernel would not start."""
    if error.errno == errno.ENOEXEC:
        return f"exec {path}: exec format error"
    return f"exec {path}: {system_text(error)}" if error.errno else f"exec {path}: {describe(error)}"
