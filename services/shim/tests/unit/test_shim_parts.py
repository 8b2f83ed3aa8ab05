"""The parts that need no root: flags, configuration, loop, writer, sessions, metrics, mounts."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from shim import bootstrap, cgroups, flags, launch, metrics, rootfs
from shim.errors import AlreadyExists, InvalidArgument
from shim.loop import Lock, Loop
from shim.reaper import Reaper
from shim.streams import config
from shim.streams.hub import Hub
from shim.streams.session import SessionSpec
from shim.streams.source import Input
from shim.streams.writer import HIGH, Writer


@pytest.fixture
def loop():
    """A loop of its own."""
    made = Loop()
    yield made
    made.close()


def run_until(loop, condition, rounds=10_000):
    """Runs the loop until the condition holds."""
    loop._running = True
    for _ in range(rounds):
        if condition():
            return
        loop.call_later(0.005, lambda: None)
        loop.run_once()
    raise AssertionError("the condition never held")


def test_flags_in_gos_syntax():
    """One or two dashes, `=` or the next word, switches with and without a value; the verb ends them."""
    parsed = flags.parse(["-namespace", "ns", "--id=a", "-debug", "-address=x", "start", "-debug=false"])
    assert (parsed.namespace, parsed.id, parsed.debug, parsed.address) == ("ns", "a", True, "x")
    assert (parsed.verb, parsed.arguments) == ("start", ["start", "-debug=false"])
    assert flags.parse(["-debug=false", "-version"]).v


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-nope"], "flag provided but not defined: -nope"),
        (["-id"], "flag needs an argument: -id"),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
        (["---id"], "bad flag syntax: ---id"),
    ],
)
def test_bad_flags_are_named(arguments, text):
    """In the words of Go's flag package."""
    with pytest.raises(flags.UsageError, match=text):
        flags.parse(arguments)


def test_the_socket_is_named_as_containerds_shim_names_it():
    """SHA-256 of address, namespace and id joined as a path."""
    address = bootstrap.socket_address("", "/run/containerd/containerd.sock", "k8s.io", "abc")
    assert address.startswith("unix:///run/containerd/s/")
    assert len(address) == len("unix:///run/containerd/s/") + 64
    assert address == bootstrap.socket_address("", "/run/containerd/./containerd.sock", "k8s.io", "abc")


def test_a_dead_shims_socket_is_replaced_and_a_live_ones_is_not(tmp_path):
    """Only where nobody answers a new socket takes the place."""
    address = f"unix://{tmp_path}/s/x"
    bootstrap.bind(address).close()
    live = bootstrap.bind(address)
    with pytest.raises(AlreadyExists):
        bootstrap.bind(address)
    live.close()


def test_programs_are_looked_for_beside_the_shim_first(tmp_path, monkeypatch):
    """Then in PATH; a missing one is named in Go's words."""
    for name in ("scripts", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert launch.find_program("tool", str(tmp_path / "scripts")) == str(tmp_path / "scripts/tool")
    (tmp_path / "scripts/tool").chmod(0o644)
    assert launch.find_program("tool", str(tmp_path / "scripts")) == str(tmp_path / "path/tool")
    with pytest.raises(FileNotFoundError, match=r'exec: "no": executable file not found in \$PATH'):
        launch.find_program("no", str(tmp_path / "scripts"))


def test_stdio_fields():
    """Schemes, paths and loggers; different sockets in one process are refused."""
    assert config.scheme_of("/run/fifo") == "fifo"
    with pytest.raises(InvalidArgument, match="unknown STDIO scheme http"):
        config.scheme_of("http://x")
    logger = config.binary_of("binary:///bin/log?a=1&b&a=2")
    assert (logger.path, logger.arguments) == ("/bin/log", ("a", "1", "b", ""))
    with pytest.raises(InvalidArgument, match="different"):
        config.session_uri(config.StdioConfig(stdout="gantry-stdio:///a/x", stderr="gantry-stdio:///b/x"))
    with pytest.raises(InvalidArgument, match="driver"):
        config.session_uri(config.StdioConfig(stdout="gantry-stdio:///a/x?driver=syslog"))
    assert config.session_uri(config.StdioConfig(stdout="/fifo")) is None


def test_an_overlay_with_very_many_layers_fits_one_page():
    """Layers become relative to their common directory, in their order; a short overlay stays as it is."""
    layers = [f"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs" for n in range(80)]
    mount = rootfs.Mount("overlay", "overlay", ("index=off", "lowerdir=" + ":".join(layers)))
    directory, shorter = rootfs.shortened(mount)
    assert directory == "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert shorter.options[1].startswith("lowerdir=0/fs:1/fs:")
    assert len(",".join(shorter.options)) < 4096
    small = rootfs.Mount("overlay", "overlay", ("lowerdir=/a:/b",))
    assert rootfs.shortened(small) == ("", small)


def test_cgroups_of_a_process():
    """Hybrid and v1 have a directory a controller, v2 has one."""
    lines = ["9:name=systemd:/x", "3:cpu,cpuacct:/a/b", "0::/u"]
    found = cgroups.parse(lines, unified=False)
    assert found.directory("cpuacct") == "/sys/fs/cgroup/cpuacct/a/b"
    assert found.directory("memory") == ""
    assert cgroups.parse(["0::/u/v"], unified=True).directory("memory") == "/sys/fs/cgroup/u/v"


def test_metrics_of_both_versions(tmp_path):
    """Numbers come from the files' names, what is missing is zero, `max` is the largest number on v2."""
    for name, text in {
        "memory.stat": "cache 5\npgfault 7\nswap 9\ntotal_rss 3\n",
        "memory.usage_in_bytes": "100\n",
        "cpuacct.usage": "12345\n",
        "cpuacct.usage_percpu": "1 2\n",
        "cpuacct.stat": "user 3\nsystem 4\n",
        "pids.max": "max\n",
        "pids.current": "2\n",
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Total 10\nTotal 10\n",
    }.items():
        (tmp_path / name).write_text(text)
    everywhere = dict.fromkeys(("memory", "cpu", "cpuacct", "pids", "blkio"), str(tmp_path))
    one = metrics.read(cgroups.Cgroup(controllers=everywhere))
    assert (one.memory.cache, one.memory.pg_fault, one.memory.usage.usage, one.memory.total_rss) == (5, 7, 100, 3)
    assert (one.cpu.usage.total, list(one.cpu.usage.per_cpu), one.cpu.usage.user) == (12345, [1, 2], 30_000_000)
    assert (one.pids.current, one.pids.limit) == (2, 0)
    assert [(e.op, e.value) for e in one.blkio.io_service_bytes_recursive] == [("Read", 10), ("Total", 10)]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n")
    (tmp_path / "cpu.pressure").write_text("some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n")
    two = metrics.read(cgroups.Cgroup(unified=str(tmp_path)))
    assert (two.memory.usage_limit, two.pids.limit) == (2**64 - 1, 2**64 - 1)
    assert (two.io.usage[0].rbytes, two.io.usage[0].wios) == (1, 4)
    assert (two.cpu.psi.some.avg10, two.cpu.psi.some.total) == (1.5, 77)


def test_coroutines_wait_for_futures(loop):
    """Results and errors pass through awaits; a lock lets one in at a time, in order."""
    order = []
    lock = Lock(loop)
    gate = loop.future()

    async def worker(name):
        async with lock:
            order.append(f"{name} in")
            await gate
            order.append(f"{name} out")
            return name

    async def failing():
        await gate
        raise ValueError("no")

    tasks = [loop.spawn(worker(name)) for name in "ab"]
    bad = loop.spawn(failing())
    gate.set_result(None)
    run_until(loop, lambda: all(task.done for task in [*tasks, bad]))
    assert order == ["a in", "a out", "b in", "b out"]
    assert [task.result() for task in tasks] == ["a", "b"]
    with pytest.raises(ValueError, match="no"):
        bad.result()


def test_waiting_is_bounded(loop):
    """`within` tells whether the future came."""
    never = loop.future()
    task = loop.spawn(loop.within(never, 0.01))
    run_until(loop, lambda: task.done)
    assert task.result() is False


def test_a_failing_callback_ends_nothing_else(loop):
    """The loop goes on after an exception."""
    called = []
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(lambda: called.append(True))
    run_until(loop, lambda: bool(called))


def test_exits_before_their_claim_are_kept_while_a_launch_is_under_way(loop):
    """A process may end before its pid is known; its status is delivered once, and others' are dropped after it."""
    reaper = Reaper(loop)
    reaper.install()
    got = []
    try:
        with reaper.launching():
            pid = os.fork()
            if not pid:
                os._exit(7)
            run_until(loop, lambda: pid in reaper._unclaimed)
            reaper.claim(pid, got.append)
        run_until(loop, lambda: bool(got))
        assert (got[0].pid, got[0].status) == (pid, 7)
        killed = os.fork()
        if not killed:
            signal.pause()
        reaper.claim(killed, got.append)
        os.kill(killed, signal.SIGKILL)
        run_until(loop, lambda: len(got) == 2)
        assert got[1].status == 137
        assert not reaper._unclaimed
    finally:
        reaper.close()


def test_a_thousand_short_processes(loop):
    """None is lost, whatever signals coalesce."""
    reaper = Reaper(loop)
    reaper.install()
    got = {}
    expected = {}
    try:
        for batch in range(20):
            for n in range(50):
                pid = os.fork()
                if not pid:
                    os._exit((batch + n) % 200)
                expected[pid, batch] = (batch + n) % 200
                reaper.claim(pid, lambda ended, batch=batch: got.__setitem__((ended.pid, batch), ended.status))
            run_until(loop, lambda batch=batch: len(got) == 50 * (batch + 1))
    finally:
        reaper.close()
    assert got == expected


def test_a_writer_says_when_its_reader_is_behind(loop):
    """Above HIGH it is congested; when the reader catches up it calls back, and every byte arrives."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    room = []
    writer = Writer(loop, write, on_room=lambda: room.append(True))
    data = os.urandom(HIGH + 100_000)
    writer.write(data[:1000], data[1000:])
    assert writer.congested
    got = bytearray()
    finished = []
    writer.finish(lambda: finished.append(True))

    def drained():
        try:
            got.extend(os.read(read, 65536))
        except BlockingIOError:
            return bool(finished)
        return False

    run_until(loop, drained)
    assert got == data
    assert room == [True]
    writer.close()
    os.close(read)


def test_a_writer_whose_reader_is_gone(loop):
    """It reports that once, drops what waits, and finishes."""
    read, write = os.pipe()
    os.close(read)
    broken, finished = [], []
    writer = Writer(loop, write, on_broken=lambda: broken.append(True))
    writer.write(b"x")
    writer.finish(lambda: finished.append(True))
    assert (broken, finished) == ([True], [True])
    writer.close()


def test_two_clients_type_into_one_process(loop):
    """Input of several sessions is joined; one's end with close_stdin_on_eof ends it for the process."""
    hub = Hub(loop, terminal=False)
    read, write = os.pipe()
    os.set_blocking(read, False)
    clients = []
    for name in ("a", "b"):
        ours, theirs = socket.socketpair()
        hub.attach(
            theirs.detach(), SessionSpec(id=name, stdin=True, early_input=name.encode(), close_stdin_on_eof=True)
        )
        clients.append(ours)
    hub.set_input(Input(loop, write))
    with pytest.raises(AlreadyExists):
        hub.attach(0, SessionSpec(id="a"))
    got = bytearray()
    ended = []

    def take():
        try:
            data = os.read(read, 100)
        except BlockingIOError:
            return
        got.extend(data)
        if not data:
            ended.append(True)

    def has(text):
        take()
        return bytes(got) == text

    run_until(loop, lambda: has(b"ab"))
    clients[1].send(b"c")
    run_until(loop, lambda: has(b"abc"))
    clients[0].shutdown(socket.SHUT_WR)
    run_until(loop, lambda: take() or bool(ended))
    hub.finish()
    run_until(loop, lambda: hub.flushed.done)
    assert [client.recv(10) for client in clients] == [b"", b""]
    for client in clients:
        client.close()
    os.close(read)
