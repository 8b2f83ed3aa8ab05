"""What the suites of :mod:`contract.suites` run against: our containerd, and the real one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support import programs
from support.engine import Daemon, answers, stop_template, unmount_below
from support.machine import MARK

pytest.register_assert_rewrite("contract.suites")


@pytest.fixture(scope="module", params=["ours", "real"])
def containerd_channel(
    request: pytest.FixtureRequest, machine: str, short_directory: Callable[[], Path]
) -> Iterator[tuple[grpc.Channel, bool]]:
    """A channel to a containerd of one make, and whether it is the real one (GANTRY_REAL_CONTAINERD, or installed)."""
    real = request.param == "real"
    program = programs.real("REAL_CONTAINERD", "containerd") if real else programs.ours("containerd")
    directory = short_directory()
    env, address = programs.environment(**{MARK: machine}), directory / "s"
    config = directory / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    argv = [program, "--config", str(config), "--address", str(address)]
    argv += ["--root", str(directory / "root"), "--state", str(directory / "state")]
    daemon = Daemon(argv, directory / "log", env, lambda: answers(address))
    daemon.start()
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    try:
        with grpc.insecure_channel(f"unix:{address}", options) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            yield channel, real
    finally:
        daemon.stop()
        stop_template(directory / "state" / "io.gantry.shim.template.v1" / "runc-v2.sock", env)
        unmount_below(directory)


@pytest.fixture
def peer(containerd_channel: tuple[grpc.Channel, bool]) -> Iterator[object]:
    """The peer of one test, in a namespace of its own."""
    from contract.suites.peer import Peer

    channel, real = containerd_channel
    return Peer(channel, f"suite-{uuid.uuid4().hex[:12]}", real=real)
