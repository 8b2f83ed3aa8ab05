"""The default bridge, published ports, and the other network modes."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.engine import Engine, await_true, free_port

SERVER = ("busybox", "httpd", "-f", "-p", "80", "-h", "/data")


def await_httpd(docker: Engine, name: str) -> None:
    """Wait until the server in a container answers inside it."""
    command = ("exec", name, "wget", "-qO-", "127.0.0.1/shipped")
    await_true(lambda: docker.docker(*command, check=False).returncode == 0, "no httpd")


def fetch(port: int, host: str = "127.0.0.1") -> bytes:
    """GET /shipped from a published port."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", "/shipped")
    body = connection.getresponse().read()
    connection.close()
    return body


@contextmanager
def listener(address: str) -> Iterator[int]:
    """A server on the host that greets one client."""
    with socket.create_server((address, 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            connection.sendall(b"hello\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]


def test_published_port(clean: Engine) -> None:
    """-p HOST:CONTAINER is reachable on the host's addresses, is shown by port, and is free again afterwards."""
    port = free_port()
    clean.docker("run", "-d", "--name", "web", "-p", f"{port}:80", *SERVER)
    await_httpd(clean, "web")
    assert fetch(port) == b"from the image\n"
    assert f"0.0.0.0:{port}" in clean.out("port", "web", "80")
    gateway = clean.out("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}")
    assert fetch(port, gateway) == b"from the image\n"
    clean.docker("rm", "-f", "web")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_port_in_use(clean: Engine) -> None:
    """A port that someone listens on is an error before the container runs, and leaves nothing."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        done = clean.docker("run", "--name", "first", "-p", f"{port}:80", "busybox", "true", check=False)
    assert done.returncode == 125
    assert "address already in use" in done.stderr
    clean.docker("rm", "first")
    clean.docker("run", "-d", "--name", "second", "-p", f"{port}:80", *SERVER)
    done = clean.docker("run", "--name", "third", "-p", f"{port}:80", "busybox", "true", check=False)
    assert done.returncode == 125
    assert re.search(r"port is already allocated|address already in use", done.stderr)


def test_ephemeral_port(clean: Engine) -> None:
    """-p 80 takes a free port and tells it."""
    clean.docker("run", "-d", "--name", "ephemeral", "-p", "127.0.0.1::80", *SERVER)
    address = clean.out("port", "ephemeral", "80")
    port = int(address.removeprefix("127.0.0.1:"))
    await_httpd(clean, "ephemeral")
    assert fetch(port) == b"from the image\n"


def test_containers_reach_each_other_and_the_host(clean: Engine) -> None:
    """Two containers on the bridge talk to each other; the bridge's address is the host."""
    clean.docker("run", "-d", "--name", "server", *SERVER)
    address = clean.out("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "server")
    fetched = clean.docker("run", "--rm", "busybox", "wget", "-qO-", f"{address}/shipped")
    assert fetched.stdout == "from the image\n"
    gateway = clean.out("inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "server")
    with listener(gateway) as port:
        assert clean.out("run", "--rm", "busybox", "nc", gateway, str(port)) == "hello"


def test_modes(clean: Engine) -> None:
    """none has only lo, host is the host's, container:X shares X's."""
    assert clean.out("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net") == "lo"
    host = clean.out("run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net")
    assert host == os.readlink("/proc/self/ns/net")
    clean.docker("run", "-d", "--name", "owner", "busybox", "sleep", "1000")
    own = clean.out("exec", "owner", "readlink", "/proc/self/ns/net")
    assert clean.out("run", "--rm", "--network", "container:owner", "busybox", "readlink", "/proc/self/ns/net") == own
    assert own != host


def test_network_listing(clean: Engine) -> None:
    """The three networks that are always there."""
    assert sorted(clean.out("network", "ls", "--format", "{{.Name}}").split()) == ["bridge", "host", "none"]


def test_hosts_and_resolver(clean: Engine) -> None:
    """The container's own name resolves to its address; --dns and --add-host are written."""
    options = ("--hostname", "me", "--dns", "192.0.2.53", "--add-host", "db:192.0.2.7")
    seen = clean.out("run", "--rm", *options, "busybox", "sh", "-c", "cat /etc/hosts /etc/resolv.conf; hostname -i")
    assert re.search(r"^192\.0\.2\.7\s+db$", seen, re.MULTILINE)
    assert "nameserver 192.0.2.53" in seen
    address = seen.splitlines()[-1]
    assert re.search(rf"^{re.escape(address)}\s+me$", seen, re.MULTILINE)
