"""Things that go wrong: each a clear error, and nothing half-made left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from support import programs
from support.engine import Engine, busybox_tar, engine


def request(
    docker: Engine, method: str, path: str, body: bytes = b"", kind: str = "application/json"
) -> tuple[int, bytes]:
    """One HTTP request over the engine's socket; returns status and body."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(docker.socket))
        headers = ("Host: d", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}")
        connection.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode() + body)
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
    head_bytes, _, rest = reply.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), rest


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/containers/create", b"{", 400, ""),
        ("POST", "/containers/create", b'{"Image": 5}', 400, ""),
        ("POST", "/containers/create", b"{}", 400, ""),
        ("POST", "/containers/create", b'{"Image": "no/such:image"}', 404, "No such image: no/such:image"),
        ("POST", "/containers/create?name=a/b", b'{"Image": "busybox"}', 400, "Invalid container name (a/b)"),
        ("GET", "/containers/nothing/json", b"", 404, "No such container: nothing"),
        ("POST", "/containers/nothing/start", b"", 404, "No such container: nothing"),
        ("DELETE", "/containers/nothing", b"", 404, "No such container: nothing"),
        ("GET", "/images/nothing/json", b"", 404, "No such image: nothing"),
        ("POST", "/exec/nothing/start", b"{}", 404, "No such exec instance: nothing"),
        ("GET", "/containers/json?filters=rubbish", b"", 400, "invalid"),
        ("GET", "/containers/json?limit=many", b"", 500, "invalid syntax"),
        ("GET", "/nowhere", b"", 404, "page not found"),
    ],
)
def test_errors_are_json_messages(clean: Engine, method: str, path: str, body: bytes, status: int, text: str) -> None:
    """Each wrong request gets the API's status and a JSON message."""
    got, reply = request(clean, method, path, body)
    message = json.loads(reply)["message"]
    assert (got, text.lower() in message.lower()) == (status, True), message
    assert message


def test_failed_start_leaves_nothing(clean: Engine) -> None:
    """After a start that fails at the very end: no task, no mount, no address, no cgroup; a later start can succeed."""
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    links = len(os.listdir("/sys/class/net"))
    clean.docker("create", "--name", "broken", "busybox", "/no/such/program")
    done = clean.docker("start", "broken", check=False)
    assert done.returncode == 1
    assert "no such file or directory" in done.stderr
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "broken") == "created 127"
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) == mounts
    assert len(os.listdir("/sys/class/net")) == links
    assert clean.docker("rm", "broken").returncode == 0


def test_second_daemon_on_the_same_directories_is_refused(clean: Engine) -> None:
    """Two dockerd never share a data root."""
    done = subprocess.run(clean.dockerd.argv, capture_output=True, text=True, timeout=30, check=False, env=clean.env)
    assert done.returncode == 1
    assert "is still running" in done.stderr or "already" in done.stderr
    assert clean.docker("ps").returncode == 0


def test_unknown_daemon_options(tmp_path: Path) -> None:
    """A wrong flag and a wrong key in daemon.json are errors that name them."""
    done = subprocess.run([programs.ours("dockerd"), "--no-such-flag"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-flag" in done.stderr
    (tmp_path / "daemon.json").write_text('{"no-such-key": true}')
    argv = [programs.ours("dockerd"), "--config-file", str(tmp_path / "daemon.json"), "--validate"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-key" in done.stderr
    (tmp_path / "daemon.json").write_text('{"debug": ')
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_full_disk(machine: str, tmp_path: Path) -> None:
    """An import that fills the disk is an error that says so, and leaves an engine that works."""
    directory = tmp_path / "e"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)], check=True)
    try:
        with engine(directory, machine) as small:
            small.docker("import", "-", "busybox", stdin=busybox_tar())
            big = subprocess.run(
                ["tar", "-cf", "-", "-C", "/usr/bin", "containerd"], capture_output=True, check=True
            ).stdout
            done = small.docker("import", "-", "big", stdin=big, check=False)
            assert done.returncode != 0
            assert "no space left on device" in done.stderr.lower()
            assert small.out("images", "--format", "{{.Repository}}") == "busybox"
            assert small.out("run", "--rm", "--network", "none", "busybox", "echo", "works") == "works"
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
