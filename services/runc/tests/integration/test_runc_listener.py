"""SCMP_ACT_NOTIFY against an agent that answers every call in the same way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gantry.linux import unix

RECEIVE, SEND = 0xC0502100, 0xC0182101  # linux/seccomp.h SECCOMP_IOCTL_NOTIF_*
CONTINUE = 1


class Agent:
    """Takes listeners at a socket, and answers: with an errno, or 0 to let the call go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer = errno.ENOMEDIUM
        self.states: list[dict[str, Any]] = []
        self.calls = 0
        self.problems: list[str] = []
        self._stop, self._stopped = os.pipe()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        os.close(self._stopped)
        self._thread.join()
        self._server.close()
        os.close(self._stop)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._stop)
        poll.register(self._server, select.POLLIN)
        listeners: set[int] = set()
        while True:
            for fd, event in poll.poll():
                if fd == self._stop:
                    for each in listeners:
                        os.close(each)
                    return
                if fd == self._server.fileno():
                    for each in self._take():
                        listeners.add(each)
                        poll.register(each, select.POLLIN)
                elif event & select.POLLIN:
                    self._answer(fd)
                else:  # nobody is left who could call
                    poll.unregister(fd)
                    listeners.discard(fd)
                    os.close(fd)

    def _take(self) -> list[int]:
        connection, _ = self._server.accept()
        with connection:
            data, descriptors = unix.receive_packet(connection)
            self.states.append(json.loads(data))
            if len(descriptors) != 1:
                self.problems.append("more than one descriptor")
        return descriptors

    def _answer(self, fd: int) -> None:
        request = bytearray(80)
        try:
            fcntl.ioctl(fd, RECEIVE, request)
            identity = request[:8]
            self.calls += 1
            answer = struct.pack("=qiI", 0, -self.answer, 0 if self.answer else CONTINUE)
            fcntl.ioctl(fd, SEND, bytes(identity) + answer)
        except FileNotFoundError:
            return  # the caller was killed meanwhile


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent at a socket."""
    made = Agent(tmp_path / "agent.sock")
    yield made
    made.close()
    assert made.problems == []


def notify(runtime, agent: Agent, *names: str, no_new_privileges: bool) -> None:
    """Have the container's agent told of these calls."""
    runtime.bundle.process["noNewPrivileges"] = no_new_privileges
    runtime.bundle.config["annotations"] = {"a": "b"}
    runtime.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(agent.path),
        "listenerMetadata": "some words",
        "syscalls": [{"names": list(names), "action": "SCMP_ACT_NOTIFY"}],
    }


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_the_agent_answers_for_the_first_process(runtime, agent: Agent, no_new_privileges: bool) -> None:
    """And is told whose calls they are."""
    notify(runtime, agent, "mkdir", "mkdirat", no_new_privileges=no_new_privileges)
    done = runtime.run("mkdir", "/tmp/x")
    assert done.returncode == 1
    assert "No medium found" in done.stderr
    assert agent.calls == 1
    (told,) = agent.states
    assert (told["fds"], told["metadata"], told["pid"]) == (["seccompFd"], "some words", told["state"]["pid"])
    state = told["state"]
    assert (state["id"], state["status"], state["bundle"]) == (runtime.id, "creating", str(runtime.bundle.path))
    assert state["annotations"]["a"] == "b"


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_calls_of_the_last_steps_can_be_notified_of(runtime, agent: Agent, no_new_privileges: bool) -> None:
    """Those that start the program among them; the agent lets them go on."""
    names = ["execve", "execveat", "openat", "open", "read", "close", "fcntl"]
    if not runtime.ours:
        names.remove("fcntl")  # some releases of the other runtime wait for ever then
    notify(runtime, agent, *names, no_new_privileges=no_new_privileges)
    agent.answer = 0
    assert runtime.output("echo", "done") == "done"
    assert agent.calls > 1


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_an_added_process_has_a_listener_of_its_own(runtime, agent: Agent, no_new_privileges: bool) -> None:
    """Its pid beside the container's state."""
    notify(runtime, agent, "mkdir", "mkdirat", no_new_privileges=no_new_privileges)
    runtime.detached("sleep", "100")
    done = runtime.exec("mkdir", "/tmp/x")
    assert "No medium found" in done.stderr
    first, added = agent.states
    assert added["state"]["status"] == "running"
    assert added["state"]["pid"] == first["pid"] == runtime.state()["pid"]
    assert added["pid"] != first["pid"]


def test_without_an_agent(runtime, agent: Agent, tmp_path: Path) -> None:
    """There is no container; a profile that does not notify needs none."""
    notify(runtime, agent, "mkdir", no_new_privileges=True)
    runtime.bundle.linux["seccomp"]["listenerPath"] = str(tmp_path / "none.sock")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "failed to connect with seccomp agent" in done.stderr
    del runtime.bundle.linux["seccomp"]["syscalls"]
    assert runtime.run("true").returncode == 0


def test_hooks_and_program_get_no_listener(runtime, agent: Agent, hook, tmp_path: Path) -> None:
    """The descriptor stays with the runtime."""
    notify(runtime, agent, "mkdir", no_new_privileges=True)
    script = {"path": "/bin/sh", "args": ["sh", "-c", "ls /proc/self/fd >/dev/fds"], "env": ["PATH=/bin"]}
    runtime.bundle.config["hooks"] = {"startContainer": [script]}
    out = runtime.output("sh", "-c", "wc -l </dev/fds; ls /proc/self/fd | wc -l").split()
    assert out == ["4", "4"]
