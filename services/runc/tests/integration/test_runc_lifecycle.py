from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest


def test_run_gives_output_and_status(runtime) -> None:
    """The process's output comes out, its exit status is the call's."""
    done = runtime.run("sh", "-c", "echo hello; echo oops >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "oops\n")


def test_run_passes_standard_input_on(runtime) -> None:
    """What is written to the call is read by the process."""
    runtime.bundle.write("cat")
    done = subprocess.run(
        runtime.argv("run", runtime.id),
        cwd=runtime.bundle.path,
        input="abc",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "abc"


def test_a_killed_process_gives_128_and_the_signal(runtime) -> None:
    """As a shell counts it."""
    assert runtime.run("sh", "-c", "sh -c 'kill -9 $$'; exit $?").returncode == 137


def test_signals_are_forwarded_to_the_process(runtime) -> None:
    """SIGTERM to a foreground run reaches the container's process."""
    runtime.bundle.write("sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    with subprocess.Popen(
        runtime.argv("run", runtime.id), cwd=runtime.bundle.path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "got it\n"
        assert process.wait(30) == 5


def test_create_start_kill_delete(runtime, tmp_path: Path) -> None:
    """The life of a container, step by step, with the status after each."""
    pid_file = tmp_path / "pid"
    assert runtime.create("sleep", "100", flags=("--pid-file", str(pid_file))).returncode == 0
    state = runtime.state()
    assert state["status"] == "created"
    assert state["id"] == runtime.id
    assert state["bundle"] == str(runtime.bundle.path)
    assert state["rootfs"] == str(runtime.bundle.rootfs)
    assert state["pid"] == int(pid_file.read_text())
    assert list(state)[:7] == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"]
    runtime.call("start", runtime.id, check=True)
    assert runtime.state()["status"] == "running"
    assert Path(f"/proc/{state['pid']}/cmdline").read_bytes() == b"sleep\x00100\x00"
    runtime.call("kill", runtime.id, "KILL", check=True)
    runtime.wait_stopped()
    stopped = runtime.state()
    assert (stopped["status"], stopped["pid"]) == ("stopped", 0)
    runtime.call("delete", runtime.id, check=True)
    assert runtime.call("state", runtime.id).returncode == 1


def test_the_process_is_a_child_of_the_subreaper(runtime) -> None:
    """Who called, as a shim does, can wait for the container's process."""
    runtime.create("sh", "-c", "exit 3")
    pid = runtime.state()["pid"]
    runtime.call("start", runtime.id, check=True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_created_container_can_be_deleted(runtime) -> None:
    """Without --force: it has not run anything yet."""
    runtime.create("sleep", "100")
    runtime.call("delete", runtime.id, check=True)


def test_a_running_container_is_not_deleted_without_force(runtime) -> None:
    """It is named, with its status."""
    runtime.detached("sleep", "100")
    done = runtime.call("delete", runtime.id)
    assert done.returncode == 1
    assert f"cannot delete container {runtime.id} that is not stopped: running" in done.stderr


def test_start_twice_is_refused(runtime) -> None:
    """Also after the end."""
    runtime.create("sleep", "100")
    runtime.call("start", runtime.id, check=True)
    assert "cannot start an already running container" in runtime.call("start", runtime.id).stderr
    runtime.call("kill", runtime.id, "9", check=True)
    runtime.wait_stopped()
    assert "cannot start a container that has stopped" in runtime.call("start", runtime.id).stderr


def test_an_id_in_use_is_refused(runtime) -> None:
    """And the container that has it is not touched."""
    runtime.detached("sleep", "100")
    for verb in ("create", "run"):
        done = runtime.call(verb, runtime.id)
        assert done.returncode == 1
        assert "container with given ID already exists" in done.stderr
    assert runtime.state()["status"] == "running"


@pytest.mark.parametrize("bad", ["a/b", "..", ".", "a b", "a\nb", "ä"])
def test_a_bad_id_is_refused(runtime, bad: str) -> None:
    """An id becomes the name of a directory."""
    done = runtime.call("run", bad)
    assert done.returncode == 1
    assert "invalid container ID format" in done.stderr


def test_an_empty_id_is_refused(runtime) -> None:
    """With words of its own."""
    assert "container id cannot be empty" in runtime.call("run", "").stderr


@pytest.mark.parametrize("verb", ["start", "state", "kill", "delete", "pause", "resume", "ps", "exec", "update"])
def test_an_unknown_container_is_told(runtime, verb: str) -> None:
    """In the words that callers match on."""
    done = runtime.call(verb, "no-such-container", *(["true"] if verb == "exec" else []))
    assert done.returncode == (255 if verb == "exec" else 1)
    assert "container does not exist" in done.stderr
    assert runtime.call("delete", "--force", "no-such-container").returncode == 0


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("nope", 'exec: "nope": executable file not found in $PATH'),
        ("/nope/x", 'exec: "/nope/x": stat /nope/x: no such file or directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_a_program_that_can_not_be_started_is_told(runtime, program: str, message: str) -> None:
    """By run, by create, and by exec with status 255; nothing is left behind."""
    done = runtime.run(program)
    assert done.returncode == 1
    assert f"runc run failed: unable to start container process: {message}" in json_unquoted(done.stderr)
    done = runtime.create(program)
    assert done.returncode == 1
    assert f"runc create failed: unable to start container process: {message}" in json_unquoted(done.stderr)
    assert runtime.call("list", "-q").stdout == ""
    runtime.detached("sleep", "100")
    done = runtime.exec(program)
    assert done.returncode == 255
    assert f"exec failed: unable to start container process: {message}" in json_unquoted(done.stderr)


def json_unquoted(text: str) -> str:
    """A log line without the escapes of its quotes."""
    return text.replace('\\"', '"')


def test_a_program_of_no_known_format_says_so(runtime) -> None:
    """The famous message, on the container's standard error."""
    (runtime.bundle.rootfs / "bin/garbage").write_bytes(b"\x01\x02garbage")
    (runtime.bundle.rootfs / "bin/garbage").chmod(0o755)
    done = runtime.run("/bin/garbage")
    assert done.returncode != 0
    assert "exec format error" in done.stderr


def test_errors_are_logged_as_json(runtime, tmp_path: Path) -> None:
    """With --log-format json, in the log file and in plain words on standard error."""
    log = tmp_path / "log.json"
    runtime.bundle.write("nope")
    done = runtime.call("--log", str(log), "--log-format", "json", "create", runtime.id)
    record = json.loads(log.read_text().splitlines()[-1])
    assert record["level"] == "error"
    assert record["msg"].startswith("runc create failed: unable to start container process: exec:")
    assert list(record) == ["level", "msg", "time"]
    assert "executable file not found in $PATH" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json"),
        ("[]", ""),
        ('{"ociVersion":"1.0.2"}', ""),
    ],
)
def test_a_broken_configuration_is_refused(runtime, text: str, message: str) -> None:
    """With an error, not a traceback, and nothing made."""
    (runtime.bundle.path / "config.json").write_text(text)
    done = runtime.call("run", runtime.id)
    assert done.returncode == 1
    if runtime.ours:
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert runtime.call("list", "-q").stdout == ""


def test_a_missing_bundle_is_told(runtime) -> None:
    """With its path."""
    done = runtime.call("run", "-b", "/no/such/bundle", runtime.id)
    assert done.returncode == 1
    assert "/no/such/bundle" in done.stderr
    assert "no such file or directory" in done.stderr


def test_a_missing_root_file_system_is_told(runtime) -> None:
    """With its path."""
    runtime.bundle.config["root"]["path"] = "nowhere"
    done = runtime.run("true")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "no such file or directory" in done.stderr


def test_list_shows_containers(runtime) -> None:
    """As a table, as JSON, as ids."""
    assert runtime.call("list").stdout.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert runtime.call("list", "-f", "json").stdout == "null\n"
    runtime.detached("sleep", "100")
    assert runtime.call("list", "-q").stdout == f"{runtime.id}\n"
    listed = json.loads(runtime.call("list", "-f", "json").stdout)
    assert [(each["id"], each["status"], each["owner"]) for each in listed] == [(runtime.id, "running", "root")]
    assert runtime.id in runtime.call("list").stdout


def test_ps_lists_processes(runtime) -> None:
    """As JSON and as a table; of a stopped container none."""
    runtime.detached("sleep", "100")
    pid = runtime.state()["pid"]
    assert json.loads(runtime.call("ps", "-f", "json", runtime.id).stdout) == [pid]
    table = runtime.call("ps", runtime.id).stdout
    assert "sleep 100" in table
    assert len(table.splitlines()) == 2
    runtime.call("kill", runtime.id, "KILL", check=True)
    runtime.wait_stopped()
    assert runtime.call("ps", runtime.id).returncode == 0


@pytest.mark.parametrize("name", ["9", "KILL", "SIGKILL", "kill"])
def test_signals_have_names_and_numbers(runtime, name: str) -> None:
    """In any spelling."""
    runtime.detached("sleep", "100")
    runtime.call("kill", runtime.id, name, check=True)
    runtime.wait_stopped()
    assert "container not running" in runtime.call("kill", runtime.id, name).stderr


def test_an_unknown_signal_is_refused(runtime) -> None:
    """By its name."""
    runtime.detached("sleep", "100")
    assert 'unknown signal \\"BOGUS\\"' in runtime.call("kill", runtime.id, "BOGUS").stderr


def test_kill_all_reaches_every_process(runtime) -> None:
    """In a container that shares the host's pid namespace, too."""
    runtime.bundle.linux["namespaces"] = [n for n in runtime.bundle.linux["namespaces"] if n["type"] != "pid"]
    runtime.detached("sh", "-c", "sleep 100 & sleep 100")
    pids = json.loads(runtime.call("ps", "-f", "json", runtime.id).stdout)
    assert len(pids) >= 1
    runtime.call("kill", "--all", runtime.id, "KILL", check=True)
    runtime.wait_stopped()
    assert runtime.state()["status"] == "stopped"


def test_pause_and_resume(runtime) -> None:
    """A paused container takes no exec, unless it is told to; a resumed one does."""
    runtime.detached("sleep", "100")
    runtime.call("pause", runtime.id, check=True)
    assert runtime.state()["status"] == "paused"
    done = runtime.exec("true")
    assert (done.returncode, "cannot exec in a paused container" in done.stderr) == (255, True)
    assert runtime.call("pause", runtime.id).returncode == 1
    runtime.call("resume", runtime.id, check=True)
    assert runtime.state()["status"] == "running"
    assert "container not paused" in runtime.call("resume", runtime.id).stderr
    assert runtime.exec("true").returncode == 0


def test_a_paused_container_can_be_removed(runtime) -> None:
    """By force."""
    runtime.detached("sleep", "100")
    runtime.call("pause", runtime.id, check=True)
    runtime.delete()


def test_keep_leaves_the_container(runtime) -> None:
    """`run --keep` keeps a stopped container for inspection."""
    runtime.run("true", flags=("--keep",))
    if runtime.ours:
        assert runtime.state()["status"] == "stopped"
        runtime.call("delete", runtime.id, check=True)


def test_version_and_help(runtime) -> None:
    """In the shape that callers read."""
    version = runtime.call("--version").stdout.splitlines()
    assert version[0].startswith("runc version ")
    assert version[1].startswith("commit: ")
    assert version[2].startswith("spec: ")
    assert runtime.call("--help").stdout.startswith("NAME:")
    assert runtime.call("create", "--help").stdout.startswith("NAME:")
    assert runtime.call("bogus").returncode == 3
    wrong = runtime.call("create", "--bogus", "x")
    assert wrong.returncode == 1
    assert "flag provided but not defined: -bogus" in wrong.stderr
    assert wrong.stdout.startswith("Incorrect Usage")
    assert "requires exactly 1 argument(s)" in runtime.call("create").stderr


def test_features_is_json(runtime) -> None:
    """With what callers look for."""
    features = json.loads(runtime.call("features", check=True).stdout)
    assert features["linux"]["seccomp"]["enabled"] is True
    assert "rbind" in features["mountOptions"]


def test_spec_does_not_overwrite(runtime, tmp_path: Path) -> None:
    """An existing configuration stays."""
    (tmp_path / "fresh").mkdir()
    runtime.call("spec", "-b", str(tmp_path / "fresh"), check=True)
    assert json.loads((tmp_path / "fresh/config.json").read_text())["process"]["args"] == ["sh"]
    assert runtime.call("spec", "-b", str(tmp_path / "fresh")).returncode == 1


@pytest.mark.usefixtures("ours_only")
def test_a_runtime_killed_at_any_moment_leaves_what_delete_can_remove(runtime) -> None:
    """SIGKILL to `create` after more and more time; `delete --force` always leaves nothing (the fixture checks it)."""
    import time

    runtime.bundle.write("sleep", "100")
    for step in range(12):
        process = subprocess.Popen(
            runtime.argv("create", runtime.id),
            cwd=runtime.bundle.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.006 * step)  # the moment is what is tested
        process.kill()
        process.wait()
        runtime.delete()
        deadline = time.monotonic() + 10
        while runtime.left_behind() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert runtime.left_behind() == [], f"killed after {step * 6} ms"
