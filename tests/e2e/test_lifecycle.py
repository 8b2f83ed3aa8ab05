"""Containers over their life: detached, logs, exec, stop, restart, listing, events."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time

from support.engine import Engine, await_true
from support.terminal import on_terminal, read_until

COUNT = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"


def test_detached_logs_exec_stop_rm(clean: Engine) -> None:
    """The everyday round: -d, logs -f, exec, stop, rm."""
    identifier = clean.out("run", "-d", "--name", "web", "busybox", "sh", "-c", COUNT)
    assert re.fullmatch("[0-9a-f]{64}", identifier)
    follower = clean.popen("logs", "-f", "web")
    assert follower.stdout is not None
    assert [follower.stdout.readline() for _ in range(3)] == [b"line 1\n", b"line 2\n", b"line 3\n"]
    assert clean.out("exec", "web", "sh", "-c", "echo $((2+3)); exit 0") == "5"
    assert clean.docker("exec", "web", "sh", "-c", "exit 9", check=False).returncode == 9
    clean.docker("stop", "-t", "1", "web")
    follower.stdout.read()
    assert follower.wait(20) == 0
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web") == "exited 137"
    clean.docker("rm", "web")
    done = clean.docker("inspect", "web", check=False)
    assert done.returncode == 1
    assert "no such object: web" in done.stderr.lower()


def test_logs_options(clean: Engine) -> None:
    """--tail, --timestamps, --since and the two streams."""
    clean.docker("run", "--name", "log", "busybox", "sh", "-c", "for i in 1 2 3; do echo out$i; echo err$i >&2; done")
    done = clean.docker("logs", "log")
    assert (done.stdout, done.stderr) == ("out1\nout2\nout3\n", "err1\nerr2\nerr3\n")
    assert (
        len(
            clean.docker("logs", "--tail", "2", "log").stdout.split()
            + clean.docker("logs", "--tail", "2", "log").stderr.split()
        )
        == 2
    )
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
    assert re.fullmatch(rf"({stamp} out\d\n){{3}}", clean.docker("logs", "-t", "log").stdout)
    done = clean.docker("logs", "--since", "2100-01-01T00:00:00Z", "log")
    assert done.stdout + done.stderr == ""


def test_exec_options(clean: Engine) -> None:
    """exec with user, directory, environment, input, terminal, and detached."""
    clean.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    assert (
        clean.out("exec", "-u", "user", "-w", "/tmp", "-e", "X=y", "box", "sh", "-c", "id -u; pwd; echo $X")
        == "1000\n/tmp\ny"
    )
    assert clean.docker("exec", "-i", "box", "cat", stdin="hello").stdout == "hello"
    done = clean.docker("exec", "box", "no-such", check=False)
    assert done.returncode == 127
    assert "executable file not found" in done.stdout + done.stderr
    process, terminal = on_terminal(clean, "exec", "-it", "box", "sh")
    read_until(terminal, b"# ")
    os.write(terminal, b"tty; exit 4\n")
    read_until(terminal, b"/dev/pts/")
    assert process.wait(20) == 4
    os.close(terminal)
    clean.docker("exec", "-d", "box", "sh", "-c", "echo made > /tmp/made")
    await_true(lambda: clean.docker("exec", "box", "cat", "/tmp/made", check=False).stdout == "made\n", "no file")
    done = clean.docker("exec", "nothing", "true", check=False)
    assert "No such container: nothing" in done.stderr


def test_stop_signal_and_timeout(clean: Engine) -> None:
    """stop sends SIGTERM first; a process that handles it ends by itself."""
    script = "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.1; done"
    clean.docker("run", "-d", "--name", "traps", "busybox", "sh", "-c", script)
    await_true(lambda: "ready" in clean.out("logs", "traps"), "not ready")
    clean.docker("stop", "traps")
    assert clean.out("inspect", "-f", "{{.State.ExitCode}}", "traps") == "7"
    assert clean.out("logs", "traps") == "ready\nbye"


def test_kill_wait_start_restart(clean: Engine) -> None:
    """kill ends it, wait tells the status, start and restart run it again."""
    clean.docker("run", "-d", "--name", "kills", "busybox", "sleep", "1000")
    waiter = clean.popen("wait", "kills")
    clean.docker("kill", "-s", "KILL", "kills")
    assert waiter.communicate(timeout=20)[0] == b"137\n"
    done = clean.docker("kill", "kills", check=False)
    assert re.search(r"cannot kill container: kills: container \w+ is not running", done.stderr, re.IGNORECASE)
    clean.docker("start", "kills")
    first = clean.out("inspect", "-f", "{{.State.Pid}}", "kills")
    clean.docker("restart", "-t", "0", "kills")
    second = clean.out("inspect", "-f", "{{.State.Pid}}", "kills")
    assert first != second
    assert clean.out("inspect", "-f", "{{.State.Running}}", "kills") == "true"


def test_pause_unpause(clean: Engine) -> None:
    """A paused container does nothing, says so, and goes on."""
    clean.docker("run", "-d", "--name", "pauses", "busybox", "sleep", "1000")
    clean.docker("pause", "pauses")
    assert clean.out("ps", "--format", "{{.Status}}").endswith("(Paused)")
    done = clean.docker("exec", "pauses", "true", check=False)
    assert "is paused" in done.stderr
    clean.docker("unpause", "pauses")
    assert clean.docker("exec", "pauses", "true").returncode == 0


def test_rename_top_ps(clean: Engine) -> None:
    """rename, top, and what ps shows and filters."""
    clean.docker("run", "-d", "--name", "before", "--label", "a=b", "busybox", "sleep", "1000")
    clean.docker("rename", "before", "after")
    assert "sleep 1000" in clean.out("top", "after")
    row = json.loads(clean.out("ps", "--format", "json"))
    assert (row["Names"], row["Image"], row["State"]) == ("after", "busybox", "running")
    assert row["Status"].startswith("Up ")
    assert clean.out("ps", "-q", "--filter", "label=a=c") == ""
    assert clean.out("ps", "--filter", "label=a=b", "--filter", "status=running", "--format", "{{.Names}}") == "after"
    clean.docker("run", "--name", "gone", "busybox", "false", check=False)
    assert clean.out("ps", "-a", "--filter", "exited=1", "--format", "{{.Names}}") == "gone"


def test_remove_running_needs_force(clean: Engine) -> None:
    """rm of a running container is refused in the real wording, rm -f does it."""
    clean.docker("run", "-d", "--name", "runs", "busybox", "sleep", "1000")
    done = clean.docker("rm", "runs", check=False)
    assert done.returncode == 1
    assert "cannot remove container" in done.stderr
    assert "container is running: stop the container before removing or force remove" in done.stderr
    clean.docker("rm", "-f", "runs")
    assert clean.out("ps", "-aq") == ""


def test_prune(clean: Engine) -> None:
    """container prune removes what is stopped only."""
    clean.docker("run", "-d", "--name", "keeps", "busybox", "sleep", "1000")
    clean.docker("run", "--name", "goes", "busybox", "true")
    clean.docker("container", "prune", "-f")
    assert clean.out("ps", "-a", "--format", "{{.Names}}") == "keeps"


def test_restart_policies(clean: Engine) -> None:
    """on-failure counts its attempts, always comes back, a stop is respected."""
    clean.docker("run", "-d", "--name", "fails", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 3")
    await_true(
        lambda: clean.out("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "fails") == "exited 2",
        "no 2 restarts",
    )
    clean.docker("run", "-d", "--name", "always", "--restart", "always", "busybox", "sh", "-c", "sleep 0.2")
    await_true(lambda: int(clean.out("inspect", "-f", "{{.RestartCount}}", "always")) >= 2, "not restarted")
    clean.docker("stop", "-t", "0", "always")
    count = clean.out("inspect", "-f", "{{.RestartCount}}", "always")
    assert clean.out("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "always") == f"false {count}"


def test_events(clean: Engine) -> None:
    """The events of one run, in order, live and again from the past."""
    stream = clean.popen("events", "--format", "{{.Type}} {{.Action}}", "--filter", "type=container")
    assert stream.stdout is not None
    ready = threading.Event()
    actions: list[str] = []

    def collect() -> None:
        assert stream.stdout is not None
        for line in stream.stdout:
            actions.append(line.decode().split()[1])
            ready.set()

    threading.Thread(target=collect, daemon=True).start()

    # the stream is open once an event of a first container arrives
    def opened() -> bool:
        clean.docker("rm", "-f", clean.out("create", "busybox"))
        return ready.is_set()

    await_true(opened, "no event")
    before = len(actions)
    since = clean.out("info", "-f", "{{.SystemTime}}")
    clean.docker("run", "--rm", "--name", "ev", "busybox", "true")
    await_true(lambda: actions[before:].count("destroy") >= 1 and "die" in actions[before:], "no destroy")
    run = [a for a in actions[before:] if a in {"create", "attach", "start", "die", "destroy"}]
    assert run[-5:] == ["create", "attach", "start", "die", "destroy"]
    stream.terminate()
    stream.wait(10)
    until = clean.out("info", "-f", "{{.SystemTime}}")
    window = ("--since", since, "--until", until, "--filter", "container=ev")
    past = clean.out("events", *window, "--format", "{{.Action}}")
    assert past.split()[:3] == ["create", "attach", "start"]


def test_create_then_start_attached(clean: Engine) -> None:
    """create and start -a are run in two steps."""
    clean.docker("create", "--name", "two", "busybox", "echo", "late")
    assert clean.out("inspect", "-f", "{{.State.Status}}", "two") == "created"
    assert clean.out("start", "-a", "two") == "late"


def test_version_and_info(clean: Engine) -> None:
    """version names the four components, info the counts and the machine."""
    version = json.loads(clean.out("version", "--format", "json"))
    assert {"Engine", "containerd", "runc"} <= {c["Name"] for c in version["Server"]["Components"]}
    info = json.loads(clean.out("info", "--format", "json"))
    assert info["Containers"] == 0
    assert info["Driver"] == "overlayfs" or info["Driver"] == "overlay2"
    assert info["NCPU"] == os.cpu_count()


def test_many_slow_stops_keep_nobody_waiting(clean: Engine) -> None:
    """Forty containers that ignore their signal are being stopped; the engine answers others meanwhile."""
    names = [clean.out("run", "-d", "--network", "none", "busybox", "sleep", "1000") for _ in range(40)]
    clients = []
    for name in names:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(clean.socket))
        client.sendall(f"POST /containers/{name}/stop?t=5 HTTP/1.1\r\nHost: engine\r\n\r\n".encode())
        clients.append(client)
    begin = time.monotonic()
    assert len(clean.out("ps", "-q").split()) == 40
    clean.docker("exec", names[0], "true")
    assert time.monotonic() - begin < 4
    for client in clients:
        assert client.recv(4096).startswith(b"HTTP/1.1 204 ")
        client.close()
    assert clean.out("ps", "-q") == ""
