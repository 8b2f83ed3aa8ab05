"""Loggers and files, events while containerd is away, the delete and info commands, out of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from google.protobuf import any_pb2

from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.contracts.containerd.types import introspection_pb2, mount_pb2
from gantry.ttrpc import Code, TTRPCError

LOGGER = """#!{python}
import os, select, sys
with open(sys.argv[1], "wb") as log:
    words = os.environ["CONTAINER_ID"], os.environ["CONTAINER_NAMESPACE"], sys.argv[2]
    log.write(" ".join(words).encode() + b"\\n")
    log.flush()
    os.close(5)
    sources = {{3, 4}}
    while sources:
        for source in select.select(sources, (), ())[0]:
            data = os.read(source, 65536)
            if not data:
                sources.discard(source)
            log.write(data)
            log.flush()
"""


def test_a_binary_logger(world):
    """The program of a binary:// URI gets both streams, its environment and its arguments."""
    program = world.root / "logger"
    program.write_text(LOGGER.format(python=sys.executable))
    program.chmod(0o755)
    world.make_bundle(["sh", "-c", "echo out; echo err >&2"]).start_shim()
    log = world.root / "log"
    uri = f"binary://{program}?{log}=value"
    world.create(stdout=uri, stderr=uri)
    assert log.read_text() == f"{world.id} shimtest value\n"
    world.start()
    assert world.wait().exit_status == 0
    deadline = time.monotonic() + 10
    while sorted(log.read_text().splitlines()[1:]) != ["err", "out"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.delete()


def test_a_logger_that_does_not_exist(world):
    """Create fails by name and leaves nothing."""
    world.make_bundle(["true"]).start_shim()
    with pytest.raises(TTRPCError, match=r"(?i)no such file|exit status"):
        world.create(stdout="binary:///no/such/logger", stderr="binary:///no/such/logger")
    world.shutdown()


def test_output_to_a_file(world):
    """file:// appends both streams."""
    world.make_bundle(["sh", "-c", "echo out; echo err >&2"]).start_shim()
    path = world.root / "deep" / "log"
    world.create(stdout=f"file://{path}", stderr=f"file://{path}")
    world.start()
    assert world.wait().exit_status == 0
    world.delete()
    assert sorted(path.read_text().splitlines()) == ["err", "out"]


def test_an_unknown_scheme_is_refused(world):
    """The scheme is named."""
    world.make_bundle(["true"]).start_shim()
    with pytest.raises(TTRPCError, match="unknown STDIO scheme ftp"):
        world.create(stdout="ftp://x/y", stderr="ftp://x/y")
    world.shutdown()


def test_the_root_file_system_is_mounted_and_unmounted(world, harness):
    """An overlay from Create's mounts is the container's root, and is gone after Delete."""
    world.make_bundle(["sh", "-c", "echo changed > /etc/file"], rootfs=False)
    (world.bundle / "rootfs").mkdir()
    for name in ("upper", "work"):
        (world.root / name).mkdir()
    harness.make_rootfs(world.root / "lower")
    world.start_shim()
    options = [f"{key}dir={world.root / key}" for key in ("lower", "upper", "work")]
    world.create(rootfs=[mount_pb2.Mount(type="overlay", source="overlay", options=options)])
    assert harness.mounts_below(world.bundle) == [str(world.bundle / "rootfs")]
    world.start()
    assert world.wait().exit_status == 0
    world.delete()
    assert harness.mounts_below(world.bundle) == []
    assert (world.root / "upper/etc/file").read_text() == "changed\n"


def test_a_root_that_cannot_be_mounted(world, harness):
    """Create names the step; what was mounted before it is taken away."""
    world.make_bundle(["true"], rootfs=False).start_shim()
    mounts = [
        mount_pb2.Mount(type="tmpfs", source="tmpfs"),
        mount_pb2.Mount(type="overlay", source="overlay", options=["lowerdir=/no/such"]),
    ]
    with pytest.raises(TTRPCError, match="failed to mount rootfs component"):
        world.create(rootfs=mounts)
    assert harness.mounts_below(world.bundle) == []
    world.shutdown()


def test_events_wait_for_containerd(world):
    """What happens while containerd is away is told when it is back, in order, each once."""
    world.make_bundle(["sh", "-c", "sleep 0.1; exit 4"]).start_shim()
    world.create()
    assert world.events.next()[0] == "/tasks/create"
    world.events.stop()
    world.start()
    assert world.wait().exit_status == 4
    world.delete()
    world.events.start()
    assert world.events.topics(3, timeout=20) == ["/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_the_delete_command_cleans_up_after_a_dead_shim(world, harness):
    """A killed shim's container is killed, deleted and unmounted; the answer is a DeleteResponse with 137."""
    world.make_bundle(["sleep", "100"]).start_shim()
    pid = world.create(
        rootfs=[mount_pb2.Mount(type="bind", source=str(world.bundle / "rootfs"), options=["rbind"])]
    ).pid
    world.start()
    os.kill(world.shim_pid, 9)
    harness.wait_gone(world.shim_pid)
    os.kill(pid, 0)
    done = subprocess.run(
        world.argv("-bundle", str(world.bundle), "delete"), cwd=world.bundle, capture_output=True,
        env=world.environment(), timeout=20, check=True,
    )  # fmt: skip
    response = shim_pb2.DeleteResponse.FromString(done.stdout)
    assert (response.pid, response.exit_status) == (pid, 137)
    assert response.exited_at.seconds > 0
    harness.wait_gone(pid)
    assert harness.mounts_below(world.bundle) == []
    assert not (world.runtime_root / "shimtest" / world.id).exists()
    world.connection.close()
    world.connection = None
    if harness.SHIM == harness.OURS:
        assert not os.path.exists(world.where.removeprefix("unix://"))


def test_the_delete_command_with_nothing_to_delete(world, ours):
    """A bundle in which nothing was created is fine."""
    world.make_bundle(["true"])
    done = subprocess.run(
        world.argv("-bundle", str(world.bundle), "delete"), cwd=world.bundle, capture_output=True,
        env=world.environment(), timeout=20, check=True,
    )  # fmt: skip
    assert shim_pb2.DeleteResponse.FromString(done.stdout).exit_status == 137


def test_out_of_memory_is_told(world):
    """A process killed for want of memory gives an event before or beside its exit."""
    limit = 16 << 20
    world.make_bundle(
        ["sh", "-c", "sleep 0.2; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"],
        linux={"resources": {"devices": [{"allow": True, "access": "rwm"}], "memory": {"limit": limit}}},
    ).start_shim()
    world.create()
    world.start()
    assert world.wait().exit_status == 137
    topics = world.events.topics(4)
    assert "/tasks/oom" in topics
    world.delete()


def test_what_is_not_supported_is_refused_by_name(world, ours):
    """Checkpoints, and options of another runtime."""
    world.make_bundle(["true"]).start_shim()
    with pytest.raises(TTRPCError, match="checkpoint is not supported") as caught:
        world.call("Checkpoint", world.api.CheckpointTaskRequest(id=world.id))
    assert caught.value.code is Code.UNIMPLEMENTED
    with pytest.raises(TTRPCError, match=r"runtime options of type 'other\.Options'"):
        world.create(options=any_pb2.Any(type_url="other.Options", value=b"x"))
    world.shutdown()


def test_a_process_namespace_that_is_shared(world):
    """Without a process namespace of its own the container's other processes are ended with its first."""
    world.make_bundle(
        ["sh", "-c", "sleep 1000 & echo; exit 3"], namespaces=["ipc", "uts", "mount", "network"]
    ).start_shim()
    world.create()
    world.start()
    assert world.wait().exit_status == 3
    world.delete()


def test_info(world, ours):
    """-info describes the shim, its contracts and the runtime's features."""
    done = subprocess.run(
        world.argv("-info"), input=world.options().SerializeToString(), capture_output=True, timeout=20, check=True
    )
    info = introspection_pb2.RuntimeInfo.FromString(done.stdout)
    assert info.name == "io.containerd.runc.v2"
    assert info.annotations["io.gantry.shim.template.v1"] == info.version.version
    assert info.annotations["io.gantry.stdio.v1"]
    assert b"ociVersionMin" in info.features.value


def test_version_and_bad_flags(world, ours):
    """-v prints the version; a wrong flag is named in Go's words with status 2."""
    done = subprocess.run(world.argv("-v"), capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("containerd-shim-runc-v2:\n  Version:  ")
    done = subprocess.run([*world.argv("-nope"), "start"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "flag provided but not defined: -nope" in done.stderr
