"""docker run as a user types it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess

import pytest
from support.engine import Engine
from support.terminal import on_terminal, read_until


def test_output_and_removal(clean: Engine) -> None:
    """What the container writes arrives on the right stream, and --rm leaves no container."""
    done = clean.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert clean.out("ps", "-aq") == ""


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(clean: Engine, status: int) -> None:
    """The container's exit status is the command's."""
    assert clean.docker("run", "--rm", "busybox", "sh", "-c", f"exit {status}", check=False).returncode == status


def test_command_not_found_is_127(clean: Engine) -> None:
    """A program that does not exist: 127, runc's wording, nothing left with --rm."""
    done = clean.docker("run", "--rm", "busybox", "no-such-program", check=False)
    assert done.returncode == 127
    assert 'exec: "no-such-program": executable file not found in $PATH' in done.stderr
    assert clean.out("ps", "-aq") == ""


def test_not_executable_is_126(clean: Engine) -> None:
    """A file that cannot be executed: 126."""
    done = clean.docker("run", "--rm", "busybox", "/etc/not-executable", check=False)
    assert done.returncode == 126
    assert "permission denied" in done.stderr


def test_unknown_image_is_125(clean: Engine) -> None:
    """An image that cannot be had: 125, from a registry that refuses."""
    done = clean.docker("run", "--rm", "127.0.0.1:1/none", "true", check=False)
    assert done.returncode == 125
    assert "connection refused" in done.stderr
    assert clean.out("ps", "-aq") == ""


def test_killed_by_signal_is_137(clean: Engine) -> None:
    """A container killed by SIGKILL shows as 128+9."""
    process = clean.popen("run", "--rm", "--name", "victim", "busybox", "sh", "-c", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    clean.docker("kill", "victim")
    assert process.wait(20) == 137


def test_stdin_reaches_the_container(clean: Engine) -> None:
    """docker run -i copies its input, and the end of it."""
    assert clean.docker("run", "--rm", "-i", "busybox", "cat", stdin="one\ntwo\n").stdout == "one\ntwo\n"


def test_large_output_is_whole(clean: Engine) -> None:
    """A few megabytes pass through the session and through the log, byte for byte."""
    script = "seq 1 300000"
    expected = "".join(f"{n}\n" for n in range(1, 300001))
    assert clean.docker("run", "--name", "big", "busybox", "sh", "-c", script).stdout == expected
    assert clean.docker("logs", "big").stdout == expected


def test_large_input_is_whole(clean: Engine) -> None:
    """A few megabytes of input arrive, byte for byte."""
    data = os.urandom(3_000_000)
    done = subprocess.run(
        clean.command("run", "--rm", "-i", "busybox", "md5sum"),
        input=data,
        capture_output=True,
        env=clean.env,
        check=True,
    )
    assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()


def test_interactive_terminal(clean: Engine) -> None:
    """docker run -it: a terminal of the user's size, echo, and the shell's exit status."""
    process, terminal = on_terminal(clean, "run", "--rm", "-it", "busybox", "sh")
    read_until(terminal, b"# ")
    os.write(terminal, b"stty size; echo $((6*7))\n")
    seen = read_until(terminal, b"\r\n42\r\n")
    assert b"33 101" in seen
    os.write(terminal, b"exit 5\n")
    assert process.wait(20) == 5
    os.close(terminal)


def test_detach_keys_leave_the_container_running(clean: Engine) -> None:
    """ctrl-p ctrl-q ends the session, not the container; attach comes back to it."""
    process, terminal = on_terminal(clean, "run", "--name", "shell", "-it", "busybox", "sh")
    read_until(terminal, b"# ")
    os.write(terminal, b"\x10\x11")
    assert process.wait(20) == 0
    os.close(terminal)
    assert clean.out("inspect", "-f", "{{.State.Running}}", "shell") == "true"
    process, terminal = on_terminal(clean, "attach", "shell")
    os.write(terminal, b"echo again-$((1+1))\n")
    read_until(terminal, b"again-2")
    os.write(terminal, b"exit 3\n")
    assert process.wait(20) == 3
    os.close(terminal)


def test_environment_directory_user(clean: Engine) -> None:
    """-e, -w and -u take effect; a name is looked up in the image."""
    script = 'echo "$A $HOME $(pwd) $(id -u):$(id -g):$(id -G)"'
    arguments = ("run", "--rm", "-e", "A=b c", "-w", "/made/here", "-u", "user", "busybox", "sh", "-c", script)
    assert clean.out(*arguments) == "b c /home /made/here 1000:1000:1000 2000"
    assert clean.out("run", "--rm", "-u", "12:34", "busybox", "sh", "-c", "id -u; id -g") == "12\n34"
    done = clean.docker("run", "--rm", "-u", "nobody-here", "busybox", "true", check=False)
    assert done.returncode == 125 or done.returncode == 126
    assert "unable to find user nobody-here: no matching entries in passwd file" in done.stderr


def test_name_conflict(clean: Engine) -> None:
    """A name is unique; the error is the one clients match."""
    first = clean.out("run", "-d", "--name", "mine", "busybox", "sleep", "1000")
    done = clean.docker("run", "--name", "mine", "busybox", "true", check=False)
    assert done.returncode == 125
    assert f'Conflict. The container name "/mine" is already in use by container "{first}".' in done.stderr


def test_limits_reach_the_kernel(clean: Engine) -> None:
    """--memory, --cpus and --pids-limit are what the container's cgroup has."""
    script = (
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max 2>/dev/null"
        " || cat memory.max cpu.max pids.max"
    )
    options = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50")
    memory, cpu, *_, pids = re.findall(r"\d+", clean.out("run", "--rm", *options, "busybox", "sh", "-c", script))
    assert (memory, cpu, pids) == ("67108864", "50000", "50")


def test_out_of_memory_is_137(clean: Engine) -> None:
    """A container over its memory limit is killed, and inspect says so."""
    script = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $x | wc -c"
    options = ("--memory", "20m", "--memory-swap", "20m")
    done = clean.docker("run", "--name", "oom", *options, "busybox", "sh", "-c", script, check=False)
    assert done.returncode == 137
    assert clean.out("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "oom") == "true 137"


def test_confinement(clean: Engine) -> None:
    """A default container has Docker's capabilities, a seccomp filter, masked paths, and its own process tree."""
    script = "grep -E 'CapBnd|Seccomp:|NoNewPrivs' /proc/1/status; ls /proc/scsi /sys/firmware; echo $$; hostname"
    lines = clean.out("run", "--rm", "--hostname", "box", "busybox", "sh", "-c", script).split()
    assert "00000000a80425fb" in lines
    assert lines[lines.index("Seccomp:") + 1] == "2"
    assert lines[-2:] == ["1", "box"]


def test_unsupported_option_is_refused_by_name(clean: Engine) -> None:
    """An option that the engine does not have is an error that names it, never ignored."""
    done = clean.docker("run", "--rm", "--storage-opt", "size=1G", "busybox", "true", check=False)
    assert done.returncode == 125
    assert "storage" in done.stderr.lower()
    assert clean.out("ps", "-aq") == ""


def test_read_only_and_tmpfs(clean: Engine) -> None:
    """--read-only forbids writing, --tmpfs allows it in one place."""
    script = "touch /x 2>&1; touch /scratch/y && echo fine"
    done = clean.out("run", "--rm", "--read-only", "--tmpfs", "/scratch", "busybox", "sh", "-c", script)
    assert "Read-only file system" in done
    assert done.endswith("fine")
