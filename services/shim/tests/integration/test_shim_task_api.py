"""The task API over ttrpc, as containerd drives it: the same for our shim and the real one (SHIM=...)."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gantry.contracts.containerd.v1.types import task_pb2
from gantry.ttrpc import Code, TTRPCError, client


def test_a_container_runs_through_its_life(world, harness):
    """Create, Start, Wait, Delete: states, exit status and events in their order."""
    world.make_bundle(["sh", "-c", "exit 7"]).start_shim()
    pid = world.create().pid
    state = world.state()
    assert (state.id, state.pid, state.status) == (world.id, pid, task_pb2.CREATED)
    assert state.bundle == str(world.bundle)
    assert world.start() == pid
    ended = world.wait()
    assert ended.exit_status == 7
    assert ended.exited_at.seconds > 0
    state = world.state()
    assert (state.status, state.exit_status) == (task_pb2.STOPPED, 7)
    deleted = world.delete()
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    events = [world.events.next() for _ in range(4)]
    assert [topic for topic, _ in events] == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert (events[0][1].container_id, events[0][1].bundle, events[0][1].pid) == (world.id, str(world.bundle), pid)
    assert (events[2][1].id, events[2][1].pid, events[2][1].exit_status) == (world.id, pid, 7)
    with pytest.raises(TTRPCError) as caught:
        world.state()
    assert caught.value.code is Code.NOT_FOUND
    world.shutdown()
    assert not os.path.exists(world.where.removeprefix("unix://"))


def test_old_callers_get_a_bare_address(world):
    """Without MAX_SHIM_VERSION the answer is unix://..., kept in `address`; version 2 of the API is served."""
    world.make_bundle()
    answer = world.start_shim(new=False)
    if answer.startswith("unix://"):
        assert (world.bundle / "address").read_text() == answer
    assert answer.removeprefix("{").find("unix:///run/containerd/s/") >= 0
    world.create()
    world.start()
    assert world.wait().exit_status == 0
    world.delete()


def test_a_second_start_finds_the_shim(world):
    """`start` for an id whose shim runs answers with its address."""
    world.make_bundle()
    answer = world.start_shim()
    assert world.bootstrap() == answer


def test_output_goes_to_fifos(world, harness):
    """stdout and stderr come through their FIFOs whole, and the readers see the end."""
    out, out_fd = world.fifo("out")
    err, err_fd = world.fifo("err")
    world.make_bundle(["sh", "-c", "seq 1 20000; echo oops >&2"]).start_shim()
    world.create(stdout=out, stderr=err)
    reader = os.open(out, os.O_RDONLY)
    os.close(out_fd)
    collected = []
    thread = threading.Thread(target=lambda: collected.append(harness.read_all(reader)))
    thread.start()
    world.start()
    assert world.wait().exit_status == 0
    thread.join()
    assert collected[0] == b"".join(b"%d\n" % n for n in range(1, 20001))
    assert harness.read_all(err_fd, until=b"oops\n") == b"oops\n"
    world.delete()
    os.close(reader)
    os.close(err_fd)


def test_stdin_ends_with_close_io(world, harness):
    """Input arrives; the process sees its end after CloseIO and the client's close."""
    inp, in_fd = world.fifo("in")
    out, out_fd = world.fifo("out")
    world.make_bundle(["sh", "-c", "cat; echo end"]).start_shim()
    world.create(stdin=inp, stdout=out)
    world.start()
    os.write(in_fd, b"hello\n")
    assert harness.read_all(out_fd, until=b"hello\n") == b"hello\n"
    world.call("CloseIO", world.api.CloseIORequest(id=world.id, stdin=True))
    os.close(in_fd)
    assert harness.read_all(out_fd, until=b"end\n") == b"end\n"
    assert world.wait().exit_status == 0
    world.delete()
    os.close(out_fd)


def test_a_terminal(world, harness):
    """A terminal echoes, has a size, and gives its last line."""
    inp, in_fd = world.fifo("in")
    out, out_fd = world.fifo("out")
    world.make_bundle(["sh", "-c", "tty; read x; stty size; echo got $x"], terminal=True).start_shim()
    world.create(stdin=inp, stdout=out, terminal=True)
    world.start()
    harness.read_all(out_fd, until=b"/dev/pts/0\r\n")
    world.call("ResizePty", world.api.ResizePtyRequest(id=world.id, width=77, height=33))
    os.write(in_fd, b"abc\n")
    text = harness.read_all(out_fd, until=b"got abc\r\n")
    assert b"33 77\r\n" in text
    assert world.wait().exit_status == 0
    world.delete()
    os.close(in_fd)
    os.close(out_fd)


def test_exec(world, harness):
    """Exec, Start, Wait, Delete of a second process; pids and events tell them apart."""
    world.make_bundle(["sleep", "100"]).start_shim()
    pid = world.create().pid
    world.start()
    out, out_fd = world.fifo("out")
    world.exec("e1", ["sh", "-c", "echo in; sleep 0.2; exit 3"], stdout=out)
    state = world.state("e1")
    assert (state.id, state.status) == ("e1", task_pb2.CREATED)
    exec_pid = world.start("e1")
    pids = world.call("Pids", world.api.PidsRequest(id=world.id)).processes
    assert {pid, exec_pid} <= {p.pid for p in pids}
    assert next(p for p in pids if p.pid == exec_pid).info.type_url == "containerd.runc.v1.ProcessDetails"
    assert harness.read_all(out_fd, until=b"in\n") == b"in\n"
    assert world.wait("e1").exit_status == 3
    assert world.delete("e1").exit_status == 3
    with pytest.raises(TTRPCError) as caught:
        world.state("e1")
    assert caught.value.code is Code.NOT_FOUND
    topics = [world.events.next() for _ in range(5)]
    assert [t for t, _ in topics[2:]] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert (topics[4][1].id, topics[4][1].pid, topics[4][1].exit_status) == ("e1", exec_pid, 3)
    os.close(out_fd)


def test_exec_in_a_terminal(world, harness):
    """An exec may have a terminal of its own."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    out, out_fd = world.fifo("out")
    world.exec("e", ["tty"], stdout=out, terminal=True)
    world.start("e")
    assert harness.read_all(out_fd, until=b"\r\n") == b"/dev/pts/0\r\n"
    assert world.wait("e").exit_status == 0
    world.delete("e")
    os.close(out_fd)


def test_the_end_of_init_ends_all_execs(world):
    """Killing the init process kills every exec; the container's exit is told last."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    for n in range(3):
        world.exec(f"e{n}", ["sleep", "100"])
        world.start(f"e{n}")
    assert world.events.topics(8)[:2] == ["/tasks/create", "/tasks/start"]
    world.kill()
    assert world.wait().exit_status == 137
    exits = [world.events.next()[1] for _ in range(4)]
    assert sorted(e.id for e in exits[:3]) == ["e0", "e1", "e2"]
    assert [e.exit_status for e in exits] == [137] * 4
    assert exits[3].id == world.id


def test_kill_and_what_is_gone(world):
    """A signal reaches the process; what has ended is NOT_FOUND."""
    world.make_bundle(["sh", "-c", "trap 'exit 5' USR1; while :; do sleep 0.05; done"]).start_shim()
    world.create()
    world.start()
    world.exec("e", ["sleep", "100"])
    world.start("e")
    world.kill(signal.SIGTERM, "e")
    assert world.wait("e").exit_status == 143
    with pytest.raises(TTRPCError) as caught:
        world.kill(9, "e")
    assert caught.value.code is Code.NOT_FOUND
    world.kill(signal.SIGUSR1)
    assert world.wait().exit_status == 5
    with pytest.raises(TTRPCError) as caught:
        world.kill(9)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "process already finished: not found")


def test_pause_and_resume(world):
    """A paused container says so, refuses execs, and runs on."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    world.call("Pause", world.api.PauseRequest(id=world.id))
    assert world.state().status == task_pb2.PAUSED
    with pytest.raises(TTRPCError, match="cannot exec in a paused state"):
        world.exec("e", ["true"])
    world.call("Resume", world.api.ResumeRequest(id=world.id))
    assert world.state().status == task_pb2.RUNNING
    assert world.events.topics(4)[2:] == ["/tasks/paused", "/tasks/resumed"]


def test_a_missing_program(world):
    """Create answers with the runtime's own words, and leaves nothing."""
    world.make_bundle(["nosuchprogram"]).start_shim()
    with pytest.raises(TTRPCError) as caught:
        world.create()
    assert caught.value.message == (
        "OCI runtime create failed: runc create failed: unable to start container process: "
        'exec: "nosuchprogram": executable file not found in $PATH'
    )
    assert caught.value.code is Code.UNKNOWN
    world.shutdown()


def test_a_missing_runtime(world):
    """A runtime that does not exist is named."""
    world.make_bundle().start_shim()
    options = world.options()
    options.value = options.value.replace(harness_runtime().encode(), b"x" * len(harness_runtime()))
    with pytest.raises(TTRPCError) as caught:
        world.create(options=options)
    assert "OCI runtime create failed" in caught.value.message
    assert "executable file not found in $PATH" in caught.value.message
    world.shutdown()


def harness_runtime():
    return os.environ.get("RUNTIME") or __import__("shutil").which("runc")


def test_a_failing_exec(world):
    """An exec whose program does not exist fails at Start, and can be deleted."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    world.exec("e", ["nosuchprogram"])
    with pytest.raises(TTRPCError) as caught:
        world.start("e")
    assert caught.value.message.startswith("OCI runtime exec failed: ")
    assert 'exec: "nosuchprogram": executable file not found in $PATH' in caught.value.message
    world.delete("e")


def test_deleting_what_runs_is_refused(world):
    """Delete before the end is an error; delete of what was only created works."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    with pytest.raises(TTRPCError, match="cannot delete a running process"):
        world.delete()
    world.kill()
    world.wait()
    world.delete()


def test_a_created_container_can_be_deleted(world):
    """Delete without a start kills and removes."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.delete()
    world.shutdown()


def test_many_calls_wait_at_once(world):
    """Waits on one connection are answered when the process ends, while other calls go on."""
    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    others = [client.Client.connect(world.where, 5) for _ in range(5)]
    results = []
    threads = [
        threading.Thread(
            target=lambda c=c: results.append(world.call("Wait", world.api.WaitRequest(id=world.id), 20, c).exit_status)
        )
        for c in others
    ]
    for thread in threads:
        thread.start()
    assert world.state().status == task_pb2.RUNNING
    world.kill()
    for thread in threads:
        thread.join()
    assert results == [137] * 5
    for c in others:
        c.close()


def test_short_processes_are_never_lost(world):
    """Execs that end at once, over and over: each has its status and its exit event."""
    world.make_bundle(["sleep", "1000"]).start_shim()
    world.create()
    world.start()
    world.events.topics(2)
    for n in range(40):
        world.exec(f"e{n}", ["sh", "-c", f"exit {n}"])
        world.start(f"e{n}")
        assert world.wait(f"e{n}").exit_status == n
        assert world.delete(f"e{n}").exit_status == n
    events = [world.events.next() for _ in range(120)]
    assert [topic for topic, _ in events] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"] * 40
    assert [e.exit_status for topic, e in events if topic == "/tasks/exit"] == list(range(40))


def test_statistics(world):
    """Stats gives the cgroup's numbers in the message of the machine's cgroup version."""
    world.make_bundle(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100"]).start_shim()
    world.create()
    world.start()
    stats = world.call("Stats", world.api.StatsRequest(id=world.id)).stats
    assert stats.type_url in ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
    from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as m1
    from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as m2

    metrics = (m1 if ".v1." in stats.type_url else m2).Metrics()
    metrics.ParseFromString(stats.value)
    assert metrics.pids.current >= 1
    usage = metrics.memory.usage.usage if ".v1." in stats.type_url else metrics.memory.usage
    assert usage > 0


def test_update(world):
    """Update sets limits on the running container."""
    from google.protobuf import any_pb2

    world.make_bundle(["sleep", "100"]).start_shim()
    world.create()
    world.start()
    resources = any_pb2.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", value=b'{"pids":{"limit":77}}'
    )
    world.call("Update", world.api.UpdateTaskRequest(id=world.id, resources=resources))
    for base in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        path = f"{base}/shimtest/{world.id}/pids.max"
        if os.path.exists(path):
            with open(path) as file:
                assert file.read().strip() == "77"
            return
    pytest.fail("no pids cgroup")
