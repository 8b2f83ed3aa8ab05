from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runc import launcher, protection

needs_launcher = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the launcher is for x86-64")


def start(path: str, *args: str, **env: str) -> tuple[int, bytes, bytes]:
    """Have a child execute a program through the launcher: its exit code, what it wrote to both streams."""
    out, err = os.memfd_create("out"), os.memfd_create("err")
    fd = launcher.create()
    pid = os.fork()
    if pid == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        try:
            launcher.execute(fd, path, list(args), env)
        finally:
            os._exit(99)
    os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    written = [os.pread(each, 65536, 0) for each in (out, err)]
    os.close(out)
    os.close(err)
    return code, written[0], written[1]


@needs_launcher
def test_the_program_gets_its_arguments_and_environment() -> None:
    """And nothing of the launcher's."""
    script = 'echo "$0|$1|$2|$A|$#"; tr "\\0" "|" </proc/$$/cmdline; exit 7'
    code, out, err = start("/bin/sh", "sh", "-c", script, "zero", "one", "two words", A="b")
    first, second = out.decode().split("\n")
    assert (code, first, err) == (7, "zero|one|two words|b|2", b"")
    assert second == f"sh|-c|{script}|zero|one|two words|"


@needs_launcher
@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (b"\1\2\3", 0o755, "exec format error"),
        (b"#!/no/such/interpreter\n", 0o755, "no such file or directory"),
        (b"", 0o644, "permission denied"),
    ],
)
def test_what_can_not_be_started_is_told(tmp_path: Path, content: bytes, mode: int, text: str) -> None:
    """On standard error, with the path, and exit status 1."""
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(mode)
    code, out, err = start(str(program), "program")
    assert (code, out, err.decode()) == (1, b"", f"exec {program}: {text}\n")


def test_an_error_that_nobody_expects_has_a_text_too() -> None:
    """The last record is for any errno."""
    assert launcher.messages("/x").rpartition(b"\n")[0].split(b"\n")[-1] == b"\xffexec /x: can not be executed"


@needs_launcher
def test_the_launcher_can_not_be_written_to() -> None:
    """Neither by its descriptor nor by a fresh one."""
    fd = launcher.create()
    try:
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
        fresh = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with pytest.raises(OSError, match="not permitted"):
            os.write(fresh, b"x")
        os.close(fresh)
    finally:
        os.close(fd)


@pytest.mark.skipif(not shutil.which("as") or os.uname().machine != "x86_64", reason="needs the GNU assembler")
def test_the_code_is_what_its_listing_says(tmp_path: Path) -> None:
    """Assembled again, it is the same."""
    lines = [text.replace(": ", ":\n") for _, text in launcher.X86_64]
    source = "\n".join([".intel_syntax noprefix", *lines, ""])
    (tmp_path / "code.s").write_text(source)
    subprocess.run(["as", "code.s", "-o", "code.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "code.o", "code.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "code.bin").read_bytes().hex() == "".join(raw for raw, _ in launcher.X86_64)


def spec(**change: Any) -> Any:
    """A configuration for which the launcher is enough, with something changed."""
    base: dict[str, Any] = {"process": {}, "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}}
    for key, value in change.items():
        place = base
        *way, last = key.split("__")
        for step in way:
            place = place.setdefault(step, {})
        place[last] = value
    return base


@pytest.mark.parametrize(
    ("change", "enough"),
    [
        ({}, True),
        ({"linux__namespaces": [{"type": "mount"}]}, False),
        ({"linux__namespaces": [{"type": "pid", "path": "/p"}]}, False),
        ({"linux__namespaces": [{"type": "pid"}, {"type": "user", "path": "/u"}]}, False),
        ({"linux__namespaces": [{"type": "pid"}, {"type": "user"}]}, True),
        ({"hooks__startContainer": [{"path": "/x"}]}, False),
        ({"hooks__createContainer": [{"path": "/x"}]}, True),
        ({"process__apparmorProfile": "x"}, False),
        ({"process__capabilities": {"bounding": ["CAP_SYS_PTRACE"]}}, False),
        ({"process__selinuxLabel": "x"}, False),
        ({"linux__seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, True),
        ({"linux__seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}, False),
        (
            {
                "linux__seccomp": {
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{"names": ["execve", "execveat"], "action": "SCMP_ACT_ALLOW"}],
                }
            },
            True,
        ),
        (
            {
                "linux__seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["execveat"], "action": "SCMP_ACT_ERRNO"}],
                }
            },
            False,
        ),
    ],
)
def test_when_the_launcher_is_enough(change: dict[str, Any], enough: bool) -> None:
    """Only where nobody can look at init before it executes the launcher, and the launcher can be executed."""
    assert protection.launcher_suffices(spec(**change)) is enough
