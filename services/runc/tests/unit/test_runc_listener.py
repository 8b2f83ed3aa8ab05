from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gantry.linux import unix
from runc import SPEC_VERSION, listener, messages, seccomp
from runc.errors import RuntimeFailure


def profile(**more: Any) -> Any:
    """A profile that notifies of one call."""
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": "/x", **more}


def test_a_profile_that_notifies_has_a_listener() -> None:
    """With its path and metadata; one that does not notify has none, whatever path it names."""
    made = listener.plan(profile(listenerMetadata="m"))
    assert made is not None
    assert (made.path, made.metadata) == ("/x", "m")
    assert listener.plan({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (profile(listenerPath=""), "seccomp listenerPath is not set"),
        (profile(defaultAction="SCMP_ACT_NOTIFY"), "cannot be used as default action"),
        (profile(syscalls=[{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]), "for the write syscall"),
    ],
)
def test_notifications_that_can_not_be(value: Any, message: str) -> None:
    """Are refused."""
    with pytest.raises(RuntimeFailure, match=message):
        listener.plan(value)


def test_filter_flags() -> None:
    """A listener where it is notified, the harmless flag where none is named; nothing for all threads of one."""
    assert seccomp.flag_bits({"defaultAction": "SCMP_ACT_ALLOW"}) == 4
    assert seccomp.flag_bits({"defaultAction": "SCMP_ACT_ALLOW", "flags": []}) == 0
    assert seccomp.flag_bits({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]}) == 0
    assert seccomp.flag_bits(profile(flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])) == 40
    assert "SECCOMP_FILTER_FLAG_LOG" in seccomp.supported_flags()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_and_the_descriptor_reach_the_agent(tmp_path: Path, abstract: bool) -> None:
    """In one connection that is closed behind them."""
    path = f"@{tmp_path}" if abstract else str(tmp_path / "agent")
    state: dict[str, object] = {"id": "c", "status": "creating"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path.replace("@", "\0"))
        server.listen()
        made = listener.Listener(path, "meta")
        reader, writer = os.pipe()
        listener.send(made, listener.process_state(made, 7, state), writer)
        os.close(writer)
        connection, _ = server.accept()
        with connection:
            data, descriptors = unix.receive_packet(connection)
            assert connection.recv(1) == b""
    assert json.loads(data) == {
        "ociVersion": SPEC_VERSION,
        "fds": ["seccompFd"],
        "pid": 7,
        "metadata": "meta",
        "state": state,
    }
    os.write(descriptors[0], b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (*descriptors, reader):
        os.close(fd)


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    """In the words that callers match on."""
    with pytest.raises(RuntimeFailure, match="failed to connect with seccomp agent"):
        listener.send(listener.Listener(str(tmp_path / "none"), ""), b"{}", 0)


def test_what_the_runtime_waits_for() -> None:
    """A process that fails, or ends, before it is ready is told."""
    made = listener.Listener("/x", "")
    for message, expected in ((b"failed\0why", "why"), (None, "exited before it was ready")):
        ours, theirs = messages.pair()
        if message:
            os.write(theirs.fileno(), message)
        theirs.close()
        with pytest.raises(RuntimeFailure, match=expected):
            listener.expect_ready(ours, made, os.getpid(), dict)
        ours.close()
