"""Which system calls a container may make: the engine's default profile, and profiles that users give.

The default lets through what programs need and what acts only on the caller's own; it leaves out what reaches the
kernel as a whole (modules, clocks, keyrings, bpf, kexec ...), and what makes new user namespaces. What is
guarded by a capability is let through where the container has that capability: the kernel checks the rest.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from dockerd import errors

__all__ = ["default_profile", "profile_for"]

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"
_EPERM = 1
_ENOSYS = 38

# By what they are for. Names that a machine's architecture does not have are skipped by the runtime.
_FAMILIES: dict[str, str] = {
    "files": (
        "access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 "
        "fadvise64_64 fallocate fchdir fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 "
        "fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl link linkat _llseek lseek lstat "
        "lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readahead readlink "
        "readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat sync "
        "sync_file_range syncfs truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes "
        "cachestat listmount statmount"
    ),
    "owners and modes": "chmod chown chown32 fchmod fchmodat fchmodat2 fchown fchown32 fchownat lchown lchown32",
    "extended attributes": (
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat "
        "llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat"
    ),
    "reading and writing": (
        "pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readv sendfile sendfile64 splice tee vmsplice "
        "write writev pipe pipe2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup "
        "io_submit"
    ),
    "waiting for descriptors": (
        "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old "
        "eventfd eventfd2 _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 "
        "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch fanotify_mark"
    ),
    "memory": (
        "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap "
        "mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect "
        "process_mrelease remap_file_pages"
    ),
    "processes and threads": (
        "execve execveat exit exit_group fork vfork getpgid getpgrp getpid getppid getsid gettid get_robust_list "
        "get_thread_area pidfd_open pidfd_send_signal prctl rseq set_robust_list set_thread_area set_tid_address "
        "setpgid setsid wait4 waitid waitpid futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake "
        "restart_syscall uretprobe riscv_hwprobe"
    ),
    "signals": (
        "alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend "
        "rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill"
    ),
    "identity": (
        "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid "
        "getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid "
        "setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid "
        "setreuid32 setuid setuid32"
    ),
    "limits and scheduling": (
        "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_getaffinity sched_getattr "
        "sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval "
        "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler "
        "sched_yield setpriority setrlimit ugetrlimit"
    ),
    # adjtimex and clock_adjtime read without CAP_SYS_TIME; the kernel refuses to set.
    "time": (
        "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 "
        "clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create "
        "timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create "
        "timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times"
    ),
    "sockets": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg "
        "recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair"
    ),
    "System V and POSIX IPC": (
        "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend "
        "mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop "
        "semtimedop_time64 shmat shmctl shmdt shmget"
    ),
    "confining oneself": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    "the system": "getrandom sysinfo uname",
    # Safe since Linux 4.8: seccomp then looks at calls after a tracer could have changed them.
    "tracing": "process_vm_readv process_vm_writev ptrace",
}

_BY_ARCHITECTURE = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "ppc64le": "sync_file_range2 swapcontext",
    "riscv64": "riscv_flush_icache",
}

_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
        "lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl "
        "quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

# AF_VSOCK reaches the machine's hypervisor: it knows no network namespace.
_AF_VSOCK = 40
# Linux, Linux with 16-bit identifiers, the 32-bit personalities of both, and "only ask" (personality(2)).
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEW*: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
}


def default_profile(capabilities: Collection[str], machine: str | None = None) -> dict[str, Any]:
    """The default profile as ``linux.seccomp`` of the runtime specification, for a container with ``capabilities``."""
    return _default_profile(frozenset(capabilities), machine or platform.machine())


@lru_cache(maxsize=64)
def _default_profile(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    names = {name for family in _FAMILIES.values() for name in family.split()}
    names.update(_BY_ARCHITECTURE.get(machine, "").split())
    for capability, extra in _BY_CAPABILITY.items():
        if capability in capabilities:
            names.update(extra.split())
    rules = [
        _rule(sorted(names)),
        _rule(["socket"], args=[_argument(0, _AF_VSOCK, "SCMP_CMP_NE")]),
        *(_rule(["personality"], args=[_argument(0, value, "SCMP_CMP_EQ")]) for value in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if machine == "s390x" else 0  # clone(2): the order of arguments differs there
        masked = {"index": flags, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        # clone3's flags lie behind a pointer, which a filter cannot follow: libc then falls back to clone.
        rules += [_rule(["clone"], args=[masked]), _rule(["clone3"], action=_ERRNO, errno=_ENOSYS)]
    profile: dict[str, Any] = {"defaultAction": _ERRNO, "defaultErrnoRet": _EPERM}
    if machine in _ARCHITECTURES:
        profile["architectures"] = _ARCHITECTURES[machine]
    return profile | {"syscalls": rules}


def _rule(
    names: list[str], *, action: str = _ALLOW, args: list[dict[str, Any]] | None = None, errno: int | None = None
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    if errno is not None:
        rule["errnoRet"] = errno
    if args:
        rule["args"] = args
    return rule


def _argument(index: int, value: int, operator: str) -> dict[str, Any]:
    return {"index": index, "value": value, "op": operator}


def profile_for(option: str, capabilities: Collection[str]) -> dict[str, Any] | None:
    """The profile that ``--security-opt seccomp=OPTION`` asks for; None for ``unconfined``.

    ``option`` is empty or ``builtin`` for the default, else the profile itself in JSON, in the form of Docker's
    profiles (``archMap``, ``includes`` and ``excludes`` by capability and architecture). Raises InvalidParameter.
    """
    if option == "unconfined":
        return None
    if option in ("", "builtin"):
        return default_profile(capabilities)
    try:
        document = json.loads(option)
    except ValueError as error:
        raise errors.InvalidParameter(f"Decoding seccomp profile failed: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("defaultAction"), str):
        raise errors.InvalidParameter("Decoding seccomp profile failed: it has no defaultAction")
    return _from_user(document, frozenset(capabilities), platform.machine())


_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _from_user(document: Mapping[str, Any], capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    profile: dict[str, Any] = {"defaultAction": document["defaultAction"]}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if document.get(key) is not None:
            profile[key] = document[key]
    architectures = list(document.get("architectures") or ())
    own = _ARCHITECTURES.get(machine, [])
    for entry in document.get("archMap") or ():
        if own and entry.get("architecture") == own[0]:
            architectures += [entry["architecture"], *(entry.get("subArchitectures") or ())]
    if architectures:
        profile["architectures"] = architectures
    rules = []
    for entry in document.get("syscalls") or ():
        if not _applies(entry, capabilities, _GO_ARCHITECTURES.get(machine, machine)):
            continue
        names = list(entry.get("names") or ([entry["name"]] if entry.get("name") else []))
        if not names:
            raise errors.InvalidParameter("Decoding seccomp profile failed: a rule in syscalls has no names")
        rules.append(
            _rule(names, action=entry.get("action", _ALLOW), args=entry.get("args"), errno=entry.get("errnoRet"))
        )
    return profile | {"syscalls": rules}


def _applies(entry: Mapping[str, Any], capabilities: frozenset[str], architecture: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and architecture not in includes["arches"]:
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    if any(capability not in capabilities for capability in includes.get("caps") or ()):
        return False
    return not any(capability in capabilities for capability in excludes.get("caps") or ())
