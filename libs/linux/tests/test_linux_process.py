from __future__ import annotations

import os
import select
import signal
import sys

import pytest

from gantry.linux import capabilities, namespaces, process


def test_fork_without_flags_is_a_fork() -> None:
    """The child runs Python code, knows its own pid, and is waited for."""
    reader, writer = os.pipe()
    pid = namespaces.fork()
    if pid == 0:
        os.write(writer, str(os.getpid()).encode())
        os._exit(7)
    os.close(writer)
    assert os.read(reader, 64) == str(pid).encode()
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_fork_into_a_pid_namespace_makes_pid_one() -> None:
    """The child is process 1 of its namespace, and can fork in turn."""
    pid = namespaces.fork(namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS)
    if pid == 0:
        child = os.fork()
        if child == 0:
            os._exit(3)
        _, status = os.waitpid(child, 0)
        os._exit(40 + os.waitstatus_to_exitcode(status) if os.getpid() == 1 and child == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 43


def test_pidfd_tells_the_end_of_a_process() -> None:
    """A signal by pidfd ends the child, and the pidfd becomes readable."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    fd = process.pidfd_open(pid)
    try:
        process.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


def test_pidfd_open_of_no_process_raises() -> None:
    """A pid that no process has is ProcessLookupError."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        process.pidfd_open(pid)


def test_close_from_keeps_what_it_is_told_to_keep() -> None:
    """In a child, only stdio and the kept descriptor are left open."""
    kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        process.close_from(3, (kept,))
        status = 0
        try:
            os.fstat(kept)
        except OSError:
            status = 1
        try:
            os.fstat(other)
            status = 2
        except OSError:
            pass
        os._exit(status)
    os.close(kept)
    os.close(other)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_fexecve_runs_the_file_of_a_descriptor() -> None:
    """The program is started from its descriptor, with the arguments and environment given."""
    pid = os.fork()
    if pid == 0:
        fd = os.open(os.path.realpath(sys.executable), os.O_PATH | os.O_CLOEXEC)
        process.fexecve(
            fd, [sys.executable, "-I", "-S", "-c", "import os; os._exit(int(os.environ['CODE']))"], {"CODE": "9"}
        )
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_subreaper_flag_is_read_back() -> None:
    """Setting and clearing the flag shows."""
    before = process.is_child_subreaper()
    process.set_child_subreaper(True)
    assert process.is_child_subreaper()
    process.set_child_subreaper(before)
    assert process.is_child_subreaper() is before


def test_capability_masks_name_what_is_unknown() -> None:
    """Known names become bits; unknown ones are given back, not dropped silently."""
    bits, unknown = capabilities.mask(["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NONSENSE"])
    assert bits == 1 | 1 << 21
    assert unknown == ["CAP_NONSENSE"]


def test_own_capabilities_match_proc() -> None:
    """capget and the bounding set agree with /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file.read().splitlines())
    sets = capabilities.get()
    assert sets.effective == int(status["CapEff"], 16)
    assert sets.permitted == int(status["CapPrm"], 16)
    assert sets.inheritable == int(status["CapInh"], 16)
    assert capabilities.bounding() == int(status["CapBnd"], 16)
