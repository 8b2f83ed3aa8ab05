from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import stat
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from gantry.linux import unix


def capability_sets(text: str) -> dict[str, int]:
    """Cap* of /proc/PID/status."""
    return {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Cap")}


def test_capability_sets_are_those_of_the_configuration(runtime) -> None:
    """All five, for root and for a user."""
    runtime.bundle.capabilities("CAP_CHOWN", "CAP_NET_BIND_SERVICE", ambient=True)
    wanted = 1 << 0 | 1 << 10
    sets = capability_sets(runtime.output("cat", "/proc/self/status"))
    assert sets == {"CapInh": wanted, "CapPrm": wanted, "CapEff": wanted, "CapBnd": wanted, "CapAmb": wanted}
    runtime.bundle.process["user"] = {"uid": 1000, "gid": 1000}
    sets = capability_sets(runtime.output("cat", "/proc/self/status"))
    assert sets == {"CapInh": wanted, "CapPrm": wanted, "CapEff": wanted, "CapBnd": wanted, "CapAmb": wanted}
    del runtime.bundle.process["capabilities"]["ambient"]
    sets = capability_sets(runtime.output("cat", "/proc/self/status"))
    assert (sets["CapEff"], sets["CapPrm"], sets["CapBnd"]) == (0, 0, wanted)


def test_unknown_capabilities_are_told_and_ignored(runtime) -> None:
    """A configuration may be newer than the kernel."""
    runtime.bundle.capabilities("CAP_CHOWN", "CAP_FROM_THE_FUTURE")
    done = runtime.run("true")
    assert done.returncode == 0
    assert "CAP_FROM_THE_FUTURE" in done.stderr


def test_user_groups_and_umask(runtime) -> None:
    """Whom the process runs as, and HOME looked up in the container's own passwd."""
    runtime.bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o77}
    script = "id -u; id -g; grep Groups /proc/self/status; umask; echo $HOME"
    out = runtime.output("sh", "-c", script).split()
    assert out == ["1000", "1001", "Groups:", "5", "6", "0077", "/home/user"]


def test_standard_streams_belong_to_the_user(runtime) -> None:
    """So that the process can open /dev/stdout again."""
    runtime.bundle.process["user"] = {"uid": 1000, "gid": 1000}
    assert runtime.output("sh", "-c", "echo again >/dev/stdout; echo err >/dev/stderr") == "again"


def test_working_directory_is_made_and_entered(runtime) -> None:
    """When it is missing; a file in its place is an error."""
    runtime.bundle.process["cwd"] = "/made/on/the/way"
    assert runtime.output("pwd") == "/made/on/the/way"
    runtime.bundle.process["cwd"] = "/etc/passwd"
    done = runtime.run("pwd")
    assert done.returncode == 1
    assert "not a directory" in done.stderr


@pytest.mark.parametrize("fd", [3, 4, 5, 6, 7, 8, 9, 10])
def test_working_directory_is_never_outside(runtime, fd: int) -> None:
    """CVE-2024-21626: a directory reached through a descriptor of the runtime."""
    runtime.bundle.process["cwd"] = f"/proc/self/fd/{fd}"
    done = runtime.run("pwd")
    assert done.returncode != 0
    runtime.bundle.process["cwd"] = "/"
    runtime.detached("sleep", "100")
    assert runtime.exec("pwd", flags=("--cwd", f"/proc/self/fd/{fd}")).returncode == 255


def test_no_new_privileges(runtime) -> None:
    """Is set when asked for, and only then."""
    for wanted in (True, False):
        runtime.bundle.process["noNewPrivileges"] = wanted
        assert runtime.output("grep", "NoNewPrivs", "/proc/self/status").split()[1] == str(int(wanted))


def test_rlimits(runtime) -> None:
    """Soft and hard."""
    runtime.bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    out = runtime.output("grep", "-e", "Max open files", "-e", "Max core", "/proc/self/limits")
    assert [line.split()[-3:-1] for line in out.splitlines()] == [["0", "0"], ["100", "200"]]


def test_an_unknown_rlimit_is_refused(runtime) -> None:
    """By its name."""
    runtime.bundle.process["rlimits"] = [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]
    done = runtime.run("true")
    assert done.returncode == 1
    assert "RLIMIT_NONSENSE" in done.stderr


def test_oom_score(runtime) -> None:
    """Of the process, for create and for exec."""
    runtime.bundle.process["oomScoreAdj"] = 123
    assert runtime.output("cat", "/proc/self/oom_score_adj") == "123"


def test_the_environment_is_exactly_the_configuration_s(runtime) -> None:
    """With HOME added."""
    runtime.bundle.process["env"] = ["PATH=/bin", "A=b c", "EMPTY="]
    assert sorted(runtime.output("env").splitlines()) == ["A=b c", "EMPTY=", "HOME=/root", "PATH=/bin"]


def test_signals_are_as_the_kernel_starts_with(runtime) -> None:
    """Nothing ignored, nothing blocked, whatever the runtime is written in."""
    # glibc's posix_spawn leaves its two internal signals, 32 and 33, ignored in what it starts: a make, for one
    internal = 3 << 31
    out = runtime.output("grep", "-e", "SigIgn", "-e", "SigBlk", "/proc/self/status")
    assert [int(line.split()[1], 16) & ~internal for line in out.splitlines()] == [0, 0]
    runtime.detached("sleep", "100")
    out = runtime.exec("grep", "-e", "SigIgn", "-e", "SigBlk", "/proc/self/status").stdout
    assert [int(line.split()[1], 16) & ~internal for line in out.splitlines()] == [0, 0]


PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
}


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_seccomp_denies_with_the_errno_asked_for(runtime, no_new_privileges: bool) -> None:
    """In the first process and in those of exec; with and without no_new_privs."""
    runtime.bundle.process["noNewPrivileges"] = no_new_privileges
    runtime.bundle.capabilities("CAP_CHOWN")
    runtime.bundle.linux["seccomp"] = PROFILE
    done = runtime.run("sh", "-c", "grep Seccomp: /proc/self/status; mkdir /tmp/x")
    assert done.stdout.split() == ["Seccomp:", "2"]
    assert os.strerror(99) in done.stderr
    runtime.detached("sleep", "100")
    done = runtime.exec("mkdir", "/tmp/x")
    assert os.strerror(99) in done.stderr


def test_seccomp_kills(runtime) -> None:
    """With SIGSYS."""
    runtime.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    assert runtime.run("sh", "-c", "mkdir /tmp/x; echo $?").stdout.split()[-1] == str(128 + 31)


def test_seccomp_looks_at_arguments(runtime) -> None:
    """chmod to one mode is denied, to another allowed."""
    condition = [{"index": 1, "value": 0o700, "op": "SCMP_CMP_EQ"}]
    at = [{"index": 2, "value": 0o700, "op": "SCMP_CMP_EQ"}]
    runtime.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": condition},
            {"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": at},
        ],
    }
    done = runtime.run("sh", "-c", "touch /tmp/f; chmod 755 /tmp/f && echo ok; chmod 700 /tmp/f")
    assert done.stdout == "ok\n"
    assert os.strerror(99) in done.stderr


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "cannot be used as default action"),
        ({"defaultAction": "NONSENSE"}, "invalid seccomp action"),
        ({"architectures": ["SCMP_ARCH_VAX"]}, "SCMP_ARCH_VAX"),
        ({"flags": ["NONSENSE"]}, "NONSENSE"),
        ({"listenerMetadata": "x"}, "listenerMetadata is given without listenerPath"),
    ],
)
def test_bad_seccomp_profiles_are_refused(runtime, change: dict[str, object], message: str) -> None:
    """By what is wrong in them."""
    runtime.bundle.linux["seccomp"] = PROFILE | change
    done = runtime.run("true")
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("key", ["apparmorProfile", "selinuxLabel"])
def test_labels_that_the_kernel_does_not_know_are_refused(runtime, key: str) -> None:
    """Not ignored: they are protection."""
    if Path("/sys/kernel/security/apparmor").exists() or Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this kernel has labels")
    runtime.bundle.process[key] = "some:label"
    done = runtime.run("true")
    assert done.returncode == 1
    assert "apparmor" in done.stderr.lower() or "selinux" in done.stderr.lower()


# exec


def test_exec_gives_output_and_status(runtime, groups) -> None:
    """Of the process in the container's namespaces and groups."""
    runtime.detached("sleep", "100")
    pid = runtime.state()["pid"]
    script = "echo out; echo err >&2; readlink /proc/self/ns/net; hostname; cat /proc/self/cgroup; exit 3"
    done = runtime.exec("sh", "-c", script)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], done.stderr) == (3, "out", "err\n")
    assert lines[1] == os.readlink(f"/proc/{pid}/ns/net")
    assert lines[2] == "runc"
    # on v2 the container has a cgroup namespace, whose root is its own group
    assert groups.of("\n".join(lines[3:])).endswith("/" if groups.unified else runtime.id)


def test_exec_status_of_a_killed_process(runtime) -> None:
    """128 and the signal."""
    runtime.detached("sleep", "100")
    assert runtime.exec("sh", "-c", "kill -9 $$").returncode == 137


def test_exec_flags(runtime) -> None:
    """User, groups, directory, environment, capabilities, no_new_privs."""
    runtime.bundle.process["noNewPrivileges"] = False
    runtime.detached("sleep", "100")
    flags = (
        *("--user", "1000:1001", "-g", "7", "--cwd", "/tmp", "-e", "A=1", "-e", "B=2"),
        *("--cap", "CAP_SYS_TIME", "--no-new-privs"),
    )
    script = "id -u; id -g; pwd; echo $A$B; grep -e Groups -e NoNew -e CapBnd /proc/self/status"
    out = runtime.exec("sh", "-c", script, flags=flags).stdout.split()
    assert out[:4] == ["1000", "1001", "/tmp", "12"]
    assert out[out.index("Groups:") + 1] == "7"
    assert out[out.index("NoNewPrivs:") + 1] == "1"
    assert int(out[out.index("CapBnd:") + 1], 16) & 1 << 25


def test_exec_of_a_process_file(runtime, tmp_path: Path) -> None:
    """--process holds the whole process; nothing of the container's is added."""
    runtime.detached("sleep", "100")
    process = {
        "args": ["sh", "-c", "id -u; pwd; echo $X $HOME; env | wc -l"],
        "cwd": "/tmp",
        "env": ["PATH=/bin", "X=y"],
        "user": {"uid": 7, "gid": 8},
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    done = runtime.exec(flags=("--process", str(tmp_path / "process.json")))
    assert done.stdout.split() == ["7", "/tmp", "y", "/", "5"]


def test_exec_detached_leaves_a_child_of_the_subreaper(runtime, tmp_path: Path) -> None:
    """With its pid in the pid file."""
    runtime.detached("sleep", "100")
    done = runtime.exec(
        *("sh", "-c", "exit 6"),
        flags=("--detach", "--pid-file", str(tmp_path / "pid")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    pid = int((tmp_path / "pid").read_text())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_exec_failures_have_status_255(runtime) -> None:
    """And say what they are about."""
    runtime.detached("sleep", "100")
    for flags, words, message in (
        ((), (), "process args cannot be empty"),
        (("--cwd", "/no/where"), ("true",), 'chdir to cwd (\\"/no/where\\")'),
        (("--user", "name"), ("true",), "parsing name as int for uid failed"),
        (("--tty", "--detach"), ("true",), "cannot allocate tty if runc will detach without setting console socket"),
        (("--process", "/no/file"), (), "/no/file"),
    ):
        done = runtime.exec(*words, flags=flags)
        assert done.returncode == 255
        assert message in done.stderr
    runtime.call("kill", runtime.id, "KILL", check=True)
    runtime.wait_stopped()
    done = runtime.exec("true")
    assert (done.returncode, "cannot exec in a stopped container" in done.stderr) == (255, True)


@pytest.mark.usefixtures("ours_only")
def test_exec_into_a_sub_group(runtime, groups) -> None:
    """--cgroup with and without a controller; an unknown one is refused."""
    runtime.detached("sleep", "100")
    pid = runtime.state()["pid"]
    groups.directory(groups.of(Path(f"/proc/{pid}/cgroup").read_text()) + "/sub").mkdir()
    done = runtime.exec("cat", "/proc/self/cgroup", flags=("--cgroup", "sub" if groups.unified else "pids:sub"))
    assert groups.of(done.stdout).endswith("/sub" if groups.unified else f"{runtime.id}/sub")
    assert runtime.exec("true", flags=("--cgroup", "nonsense:sub")).returncode == 255
    assert runtime.exec("true", flags=("--cgroup", "pids:missing")).returncode == 255


@pytest.mark.usefixtures("ours_only")
def test_no_code_of_a_container_is_loaded(runtime) -> None:
    """A container that has Python files where the runtime's are does not get them run with its privileges."""
    import runc

    for directory in (*runc.__path__, os.path.dirname(os.__file__)):
        inside = runtime.bundle.rootfs / directory.lstrip("/")
        inside.mkdir(parents=True)
        for name in ("keyring", "console", "hooks", "copying", "json", "socket", "encodings", "traceback", "pwd"):
            (inside / f"{name}.py").write_text("import os; os.write(2, b'POISON'); os._exit(66)\n")
    done = runtime.run("true")
    assert (done.returncode, done.stderr) == (0, "")
    runtime.detached("sleep", "100")
    for words in (("true",), ("nope",), ("true", "x")):
        assert "POISON" not in runtime.exec(*words).stderr
    assert "POISON" not in runtime.exec("true", flags=("--cwd", "/nowhere")).stderr


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("program", ["/proc/self/exe", "/script", "/link"])
def test_the_runtime_can_not_be_overwritten(runtime, program: str) -> None:
    """CVE-2019-5736: a container that is told to start /proc/self/exe has nothing that it can open for writing."""
    (runtime.bundle.rootfs / "link").symlink_to("/proc/self/exe")
    (runtime.bundle.rootfs / "script").write_text("#!/proc/self/exe\n")
    (runtime.bundle.rootfs / "script").chmod(0o755)
    interpreter = os.path.realpath("/proc/self/exe")
    before = os.stat(interpreter)
    runtime.bundle.capabilities("CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE")
    runtime.bundle.write("sleep", "100")
    runtime.create("sleep", "100")
    pid = runtime.state()["pid"]
    # What a process with the right to trace would do: the very file that the waiting init runs.
    with pytest.raises(OSError):  # noqa: PT011
        os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
    runtime.delete()
    runtime.run(program)
    runtime.detached("sleep", "100")
    runtime.exec(program)
    after = os.stat(interpreter)
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


# Terminals


def master_from(listener: socket.socket) -> int:
    """The terminal that a runtime sends to a console socket."""
    listener.settimeout(30)
    connection, _ = listener.accept()
    with connection:
        data, descriptors = unix.receive_packet(connection._sock if hasattr(connection, "_sock") else connection)
    assert data.endswith(b"ptmx")
    assert len(descriptors) == 1
    return descriptors[0]


def read_all(master: int) -> bytes:
    """What comes out of a terminal until it ends."""
    output = b""
    while select.select([master], [], [], 30)[0]:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        output += piece
    return output


def test_a_terminal_goes_to_the_console_socket(runtime, tmp_path: Path) -> None:
    """For create and for exec; it is the controlling terminal, of the size asked for, and is /dev/console."""
    runtime.bundle.process["terminal"] = True
    runtime.bundle.process["consoleSize"] = {"height": 33, "width": 77}
    path = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        script = "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo all; stat -c %F /dev/console; echo x >/dev/tty"
        made = runtime.create("sh", "-c", script, flags=("--console-socket", str(path)))
        assert made.returncode == 0, made.stderr
        master = master_from(listener)
        runtime.call("start", runtime.id, check=True)
        output = read_all(master).decode().split("\r\n")
        os.close(master)
        assert output[:5] == ["/dev/pts/0", "33 77", "all", "character special file", "x"]
        runtime.wait_stopped()
        runtime.delete()
        runtime.bundle.process["terminal"] = False
        runtime.detached("sleep", "100")
        done = runtime.exec(
            *("sh", "-c", "tty; echo x >/dev/tty"),
            flags=("--tty", "--detach", "--console-socket", str(path), "--pid-file", str(tmp_path / "pid")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert done.returncode == 0
        master = master_from(listener)
        assert read_all(master).decode().split("\r\n")[:2] == ["/dev/pts/0", "x"]
        os.close(master)


def test_a_foreground_terminal_is_pumped(runtime) -> None:
    """`run` on a terminal gives the container one of its own, with our size; typing reaches it, status comes back."""
    runtime.bundle.process["terminal"] = True
    runtime.bundle.write("sh", "-c", "stty size; read line; echo got $line; exit 4")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (20, 60))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        runtime.argv("run", runtime.id), cwd=runtime.bundle.path, stdin=theirs, stdout=theirs, stderr=theirs
    )
    output = b""
    while b"20 60" not in output:
        assert select.select([ours], [], [], 30)[0]
        output += os.read(ours, 1024)
    os.write(ours, b"typed\n")
    while b"got typed" not in output:
        assert select.select([ours], [], [], 30)[0]
        output += os.read(ours, 1024)
    assert process.wait(30) == 4
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_container_without_terminal_does_not_get_ours(runtime) -> None:
    """It could push input into it."""
    runtime.bundle.write("sh", "-c", "test -t 0 || test -t 1 || test -t 2 || echo none; exit 3")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        runtime.argv("run", runtime.id), cwd=runtime.bundle.path, stdin=theirs, stdout=theirs, stderr=theirs
    )
    assert process.wait(30) == 3
    os.close(theirs)
    assert b"none" in read_all(ours)
    os.close(ours)


def test_terminal_and_console_socket_must_fit(runtime, tmp_path: Path) -> None:
    """One without the other is refused."""
    runtime.bundle.process["terminal"] = True
    assert "without setting console socket" in runtime.create("true").stderr
    runtime.bundle.process["terminal"] = False
    made = runtime.create("true", flags=("--console-socket", str(tmp_path / "s")))
    assert made.returncode == 1
    assert "cannot use console socket if runc will not detach or allocate tty" in made.stderr


# Hooks


def test_hooks_run_in_order_with_the_state_on_their_input(runtime, hook, tmp_path: Path) -> None:
    """All six kinds, each in its moment."""
    record = "cat >>$OUT; echo >>$OUT"
    script = "cat >/tmp/startContainer.out; echo >/tmp/done"
    inside = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}
    done = runtime.bundle.rootfs / "tmp/done"
    os.mkfifo(done)
    runtime.bundle.config["hooks"] = {
        kind: [hook(kind, record)] for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    } | {"startContainer": [inside]}
    runtime.bundle.config["annotations"] = {"a": "b"}
    runtime.create("sleep", "100")
    pid = runtime.state()["pid"]

    def states(kind: str) -> list[dict[str, object]]:
        path = tmp_path / f"{kind}.out"
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []

    for kind in ("prestart", "createRuntime", "createContainer"):
        (state,) = states(kind)
        assert (state["id"], state["status"], state["bundle"]) == (runtime.id, "creating", str(runtime.bundle.path))
        assert state["annotations"] == {"a": "b"}
    assert states("createRuntime")[0]["pid"] == pid
    assert not (runtime.bundle.rootfs / "tmp/startContainer.out").exists()
    runtime.call("start", runtime.id, check=True)
    assert done.read_text() == "\n"  # `start` does not wait for it
    assert json.loads((runtime.bundle.rootfs / "tmp/startContainer.out").read_text())["status"] == "created"
    if runtime.ours:
        assert states("poststart")[0]["status"] == "running"
    assert states("poststop") == []
    runtime.delete()
    assert states("poststop")[0]["status"] == "stopped"


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_ends_the_creation(runtime, hook, kind: str) -> None:
    """Named, with what it said; nothing is left."""
    runtime.bundle.config["hooks"] = {kind: [hook("ok", "true"), hook("bad", "echo reason >&2; exit 5")]}
    done = runtime.create("true")
    assert done.returncode == 1
    assert re.search(rf"error running ({kind} )?hook #1: .*exit status 5", done.stderr)
    assert "reason" in done.stderr
    assert runtime.call("list", "-q").stdout == ""


def test_a_hook_that_takes_too_long_is_killed(runtime, hook) -> None:
    """After its timeout."""
    runtime.bundle.config["hooks"] = {"createRuntime": [hook("slow", "exec sleep 100") | {"timeout": 1}]}
    done = runtime.create("true")
    assert done.returncode == 1
    assert re.search(r"error running (createRuntime )?hook #0: hook ran past specified timeout of 1.0s", done.stderr)


def test_a_missing_hook_is_told(runtime) -> None:
    """With its path."""
    runtime.bundle.config["hooks"] = {"prestart": [{"path": "/no/such/hook"}]}
    done = runtime.create("true")
    assert done.returncode == 1
    assert "/no/such/hook: no such file or directory" in done.stderr


def test_hooks_of_the_runtime_see_the_host(runtime, hook, tmp_path: Path) -> None:
    """createRuntime runs in the runtime's namespaces, createContainer in the container's."""
    runtime.bundle.config["hooks"] = {
        kind: [hook(kind, "readlink /proc/self/ns/mnt >$OUT")] for kind in ("createRuntime", "createContainer")
    }
    runtime.create("sleep", "100")
    pid = runtime.state()["pid"]
    host, container = os.readlink("/proc/self/ns/mnt"), os.readlink(f"/proc/{pid}/ns/mnt")
    assert (tmp_path / "createRuntime.out").read_text().strip() == host
    assert (tmp_path / "createContainer.out").read_text().strip() == container


@pytest.mark.usefixtures("ours_only")
def test_a_pidfd_goes_to_the_pidfd_socket(runtime, tmp_path: Path) -> None:
    """It is of the container's process."""
    path = tmp_path / "pidfd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert runtime.create("sleep", "100", flags=("--pidfd-socket", str(path))).returncode == 0
        connection, _ = listener.accept()
        with connection:
            _, (fd,) = unix.receive_packet(connection)
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    assert f"Pid:\t{runtime.state()['pid']}\n" in info
    os.close(fd)


@pytest.mark.usefixtures("ours_only")
def test_a_created_init_holds_nothing_of_the_host(runtime) -> None:
    """Its standard streams, the FIFO, the launcher, its own descriptors; no file system but the container's."""
    runtime.create("sleep", "100")
    pid = runtime.state()["pid"]
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    expected = ("exec.fifo", "/null", "memfd:runc-launcher (deleted)")
    others = [link for link in links if not link.endswith(expected)]
    assert all(link.endswith("/fd") for link in others), links
    assert stat.S_ISDIR(os.stat(f"/proc/{pid}/root/bin").st_mode)
    assert not os.path.exists(f"/proc/{pid}/root{runtime.bundle.path}")


@pytest.mark.usefixtures("ours_only")
def test_a_forked_caller_s_descriptors_do_not_stay_in_the_container(runtime, tmp_path: Path) -> None:
    """A process that called preload() and forks for each call, as a shim does: no secret of its own reaches init."""
    (tmp_path / "secret").write_text("")
    runtime.bundle.write("sleep", "100")
    script = (
        "import os, sys, runc\n"
        "runc.preload()\n"
        "from runc.cli import main\n"
        "secret = os.open(os.environ['SECRET'], os.O_RDONLY)\n"
        "for call in (['create', os.environ['ID']], ['start', os.environ['ID']], ['state', 'none']):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.argv = ['runc', '--root', os.environ['ROOT'], *call]\n"
        "        try:\n"
        "            main()\n"
        "        except SystemExit as end:\n"
        "            os._exit(end.code)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "    if call[0] == 'create':\n"
        "        init = open(os.environ['ROOT'] + '/' + os.environ['ID'] + '/state.json').read()\n"
        "        pid = init.partition('init_process_pid\":')[2].partition(',')[0]\n"
        "        print([os.readlink(f'/proc/{pid}/fd/{fd}') for fd in os.listdir(f'/proc/{pid}/fd')])\n"
    )
    environment = os.environ | {"SECRET": str(tmp_path / "secret"), "ROOT": str(runtime.root), "ID": runtime.id}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=runtime.bundle.path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "out").open("w"),
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    assert done.returncode == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert [lines[0], *lines[2:]] == ["0", "0", "1"]
    assert "secret" not in lines[1]
    assert "exec.fifo" in lines[1]
