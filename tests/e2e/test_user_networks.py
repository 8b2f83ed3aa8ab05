"""Networks of the user's own: made, inspected, connected, isolated, published, pruned."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from support.engine import Engine, await_true, free_port

SERVER = ("busybox", "httpd", "-f", "-p", "80", "-h", "/data")
LABEL = "gantry.test=user-networks"


@pytest.fixture
def net(clean: Engine) -> Iterator[Engine]:
    """The engine without containers and without this module's networks, before and after."""

    def remove() -> None:
        clean.remove_containers()
        if ids := clean.out("network", "ls", "-q", "--filter", f"label={LABEL}").split():
            clean.docker("network", "rm", *ids)

    remove()
    yield clean
    remove()


def create(docker: Engine, name: str, *options: str) -> str:
    """Make a network that the fixture removes."""
    return docker.out("network", "create", "--label", LABEL, *options, name)


def inspect(docker: Engine, kind: str, name: str, part: str) -> object:
    """A part of an inspect."""
    return json.loads(docker.out("inspect", "--type", kind, "-f", "{{json " + part + "}}", name))


def refusal(docker: Engine, *arguments: str) -> str:
    """What the engine says to a command that must fail."""
    done = docker.docker(*arguments, check=False)
    assert done.returncode != 0
    return done.stderr


def await_httpd(docker: Engine, name: str) -> None:
    """Wait until the server in a container answers inside it."""
    command = ("exec", name, "wget", "-qO-", "127.0.0.1/shipped")
    await_true(lambda: docker.docker(*command, check=False).returncode == 0, "no httpd")


def reaches(docker: Engine, name: str, address: str) -> bool:
    """Whether a container gets an answer from an address within a second."""
    command = ("exec", name, "timeout", "1", "wget", "-qO-", f"http://{address}/shipped")
    return docker.docker(*command, check=False).returncode == 0


def test_a_network_as_it_was_asked_for(net: Engine) -> None:
    """Subnet, range, gateway, auxiliary addresses, options, labels and flags are what inspect shows."""
    options = ("--subnet", "10.213.0.0/24", "--ip-range", "10.213.0.128/25", "--gateway", "10.213.0.3")
    options += ("--aux-address", "printer=10.213.0.128", "--internal", "--attachable", "--label", "a=b")
    network_id = create(net, "tun-full", *options, "-o", "com.docker.network.driver.mtu=1400")
    assert len(network_id) == 64
    assert inspect(net, "network", "tun-full", ".IPAM") == {
        "Driver": "default",
        "Options": {},
        "Config": [
            {
                "Subnet": "10.213.0.0/24",
                "IPRange": "10.213.0.128/25",
                "Gateway": "10.213.0.3",
                "AuxiliaryAddresses": {"printer": "10.213.0.128"},
            }
        ],
    }
    assert inspect(net, "network", "tun-full", ".Options") == {"com.docker.network.driver.mtu": "1400"}
    assert inspect(net, "network", "tun-full", ".Labels") == {"gantry.test": "user-networks", "a": "b"}
    flags = net.out("network", "inspect", network_id[:12], "-f", "{{.Internal}} {{.Attachable}} {{.Scope}} {{.Driver}}")
    assert flags == "true true local bridge"
    net.docker("run", "-d", "--name", "one", "--network", "tun-full", "busybox", "sleep", "1000")
    assert inspect(net, "container", "one", '(index .NetworkSettings.Networks "tun-full").IPAddress') == "10.213.0.129"
    assert net.out("exec", "one", "cat", "/sys/class/net/eth0/mtu") == "1400"
    assert "default" not in net.out("exec", "one", "ip", "route")


def test_what_cannot_be_a_network(net: Engine) -> None:
    """The real engine's words for names and addresses."""
    create(net, "tun-one", "--subnet", "10.213.0.0/24")
    for options, words in (
        (("tun-one",), "network with name tun-one already exists"),
        (("bridge",), "operation is not permitted on predefined bridge network"),
        (("-d", "nope", "tun-x"), 'plugin "nope" not found'),
        (("-d", "host", "tun-x"), 'only one instance of "host" network is allowed'),
        (("--subnet", "10.213.0.0/25", "tun-x"), "Pool overlaps with other one on this address space"),
        (("--subnet", "10.214.0.1/24", "tun-x"), "invalid subnet 10.214.0.1/24: it should be 10.214.0.0/24"),
        (("-d", "null", "tun-x"), 'only one instance of "null" network is allowed'),
        (("-o", "com.docker.network.bridge.enable_icc=x", "tun-x"), "failed to parse com.docker.network.bridge.enable"),
    ):
        assert words in refusal(net, "network", "create", *options), options


def test_list_filters(net: Engine) -> None:
    """name, id, driver, type, label, scope and dangling."""
    first, second = create(net, "tun-one", "--label", "which=first"), create(net, "tun-two")
    net.docker("run", "-d", "--network", "tun-two", "busybox", "sleep", "1000")

    def listed(*filters: str) -> set[str]:
        options = [part for one in (*filters, f"label={LABEL}") for part in ("--filter", one)]
        return set(net.out("network", "ls", "--no-trunc", "-q", *options).split())

    assert listed() == {first, second}
    assert listed("name=tun-o") == {first}
    assert listed(f"id={second[:20]}") == {second}
    assert listed("driver=bridge", "scope=local", "type=custom") == {first, second}
    assert listed("type=builtin") == listed("driver=null") == listed("scope=global") == set()
    assert listed("label=which=first") == {first}
    # The real engine does not look at who is running here, and lists the used one as well.
    assert first in listed("dangling=true")
    assert first not in listed("dangling=false")


def test_remove_and_prune(net: Engine) -> None:
    """Not while a container runs there; what is predefined never; prune takes what nobody uses."""
    create(net, "tun-used")
    create(net, "tun-free")
    net.docker("run", "-d", "--name", "user", "--network", "tun-used", "busybox", "sleep", "1000")
    assert re.search(
        r'network tun-used has active endpoints \(name:"user" id:"', refusal(net, "network", "rm", "tun-used")
    )
    assert "bridge is a pre-defined network and cannot be removed" in refusal(net, "network", "rm", "bridge")
    pruned = net.out("network", "prune", "-f", "--filter", f"label={LABEL}")
    assert pruned.split() == ["Deleted", "Networks:", "tun-free"]
    net.docker("stop", "-t", "0", "user")
    net.docker("network", "rm", "tun-used")
    assert "network tun-used not found" in refusal(net, "network", "inspect", "tun-used")


def test_fixed_addresses(net: Engine) -> None:
    """--ip and --mac-address are had; one that is taken, or outside, is refused; stop makes it free."""
    create(net, "tun-fixed", "--subnet", "10.213.0.0/24")
    create(net, "tun-any")
    fixed = ("--network", "tun-fixed", "--ip", "10.213.0.9")
    net.docker("run", "-d", "--name", "one", *fixed, "--mac-address", "02:11:22:33:44:55", "busybox", "sleep", "1000")
    place = inspect(net, "container", "one", '(index .NetworkSettings.Networks "tun-fixed")')
    assert isinstance(place, dict)
    assert place["IPAMConfig"] == {"IPv4Address": "10.213.0.9"}
    assert (place["IPAddress"], place["IPPrefixLen"], place["Gateway"]) == ("10.213.0.9", 24, "10.213.0.1")
    assert place["MacAddress"] == "02:11:22:33:44:55"
    assert net.out("exec", "one", "cat", "/sys/class/net/eth0/address") == "02:11:22:33:44:55"
    assert "Address already in use" in refusal(net, "run", "--rm", *fixed, "busybox", "true")
    for network, address, words in (
        ("tun-fixed", "10.9.9.9", "no configured subnet or ip-range contain the IP address 10.9.9.9"),
        ("tun-any", "10.9.9.9", "only when connecting to networks with user configured subnets"),
        ("bridge", "10.9.9.9", "user specified IP address is supported on user defined networks only"),
    ):
        command = ("run", "--rm", "--network", network, "--ip", address, "busybox", "true")
        assert words in refusal(net, *command)
    net.docker("stop", "-t", "0", "one")
    assert net.docker("run", "--rm", *fixed, "busybox", "true").returncode == 0


def test_connect_and_disconnect_a_running_container(net: Engine) -> None:
    """The device appears and goes, /etc/hosts follows, the default route is that of the first network by name."""
    create(net, "tun-b", "--subnet", "10.213.2.0/24")
    create(net, "tun-a", "--subnet", "10.213.1.0/24")
    net.docker("run", "-d", "--name", "one", "--network", "tun-b", "busybox", "sleep", "1000")
    net.docker("network", "connect", "--ip", "10.213.1.77", "--alias", "other", "tun-a", "one")
    routes = net.out("exec", "one", "ip", "route")
    assert "default via 10.213.1.1 dev eth1" in routes
    assert re.search(r"10\.213\.2\.0/24 dev eth0", routes)
    hosts = net.out("exec", "one", "cat", "/etc/hosts")
    assert "10.213.1.77\t" in hosts
    assert "10.213.2.2\t" in hosts
    place = inspect(net, "container", "one", '(index .NetworkSettings.Networks "tun-a")')
    assert isinstance(place, dict)
    assert place["Aliases"] == ["other"]
    assert place["DNSNames"][:2] == ["one", "other"]
    assert "10.213.1.77/24" in net.out("network", "inspect", "tun-a", "-f", "{{json .Containers}}")
    again = refusal(net, "network", "connect", "tun-a", "one")
    assert "endpoint with name one already exists in network tun-a" in again
    net.docker("network", "disconnect", "tun-a", "one")
    assert "default via 10.213.2.1 dev eth0" in net.out("exec", "one", "ip", "route")
    assert "10.213.1.77" not in net.out("exec", "one", "cat", "/etc/hosts")
    assert "is not connected to network tun-a" in refusal(net, "network", "disconnect", "tun-a", "one")
    assert list(inspect(net, "container", "one", ".NetworkSettings.Networks")) == ["tun-b"]  # type: ignore[call-overload]


def test_connect_a_created_container(net: Engine) -> None:
    """What is chosen before the start is had after it; several networks at once too."""
    create(net, "tun-a", "--subnet", "10.213.1.0/24")
    create(net, "tun-b", "--subnet", "10.213.2.0/24")
    net.docker("create", "--name", "one", "--network", "tun-b", "busybox", "sleep", "1000")
    net.docker("network", "connect", "--ip", "10.213.1.5", "tun-a", "one")
    net.docker("start", "one")
    networks = inspect(net, "container", "one", ".NetworkSettings.Networks")
    assert isinstance(networks, dict)
    assert {name: one["IPAddress"] for name, one in networks.items()} == {"tun-a": "10.213.1.5", "tun-b": "10.213.2.2"}
    assert "10.213.2.2" in net.out("exec", "one", "ip", "address", "show", "eth0")
    net.docker("stop", "-t", "0", "one")
    net.docker("network", "disconnect", "tun-b", "one")
    net.docker("start", "one")
    assert "10.213.1.5" in net.out("exec", "one", "ip", "address", "show", "eth0")
    both = ("--network", "tun-a", "--network", "name=tun-b,alias=x,gw-priority=1")
    assert "default via 10.213.2.1" in net.out("run", "--rm", *both, "busybox", "ip", "route")


def test_connections_that_make_no_sense(net: Engine) -> None:
    """The real engine's words for modes and for what is not there."""
    create(net, "tun-a")
    net.docker("run", "-d", "--name", "host", "--network", "host", "busybox", "sleep", "1000")
    net.docker("run", "-d", "--name", "none", "--network", "none", "busybox", "sleep", "1000")
    net.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    sharing = "container sharing network namespace with another container or host cannot be connected"
    assert sharing in refusal(net, "network", "connect", "tun-a", "host")
    assert "private (none) mode" in refusal(net, "network", "connect", "tun-a", "none")
    assert "private (none) mode" in refusal(net, "network", "connect", "none", "one")
    assert "must be created in host network mode" in refusal(net, "network", "connect", "host", "one")
    assert "No such container: nope" in refusal(net, "network", "connect", "tun-a", "nope")
    assert "network nope not found" in refusal(net, "network", "connect", "nope", "one")
    net.docker("create", "--name", "lost", "--network", "nope", "busybox", "true")
    lost = refusal(net, "start", "lost")
    assert "failed to set up container networking: network nope not found" in lost


def test_isolation(net: Engine) -> None:
    """Containers of one network reach each other, those of two do not, nor those without icc."""
    create(net, "tun-a")
    create(net, "tun-b")
    create(net, "tun-silent", "-o", "com.docker.network.bridge.enable_icc=false")
    address = {}
    for name, network in (
        ("a1", "tun-a"),
        ("a2", "tun-a"),
        ("b1", "tun-b"),
        ("s1", "tun-silent"),
        ("s2", "tun-silent"),
    ):
        net.docker("run", "-d", "--name", name, "--network", network, *SERVER)
        settings = f'(index .NetworkSettings.Networks "{network}").IPAddress'
        address[name] = str(inspect(net, "container", name, settings))
        await_httpd(net, name)
    assert reaches(net, "a1", address["a2"])
    assert not reaches(net, "a1", address["b1"])
    assert not reaches(net, "b1", address["a1"])
    net.docker("run", "-d", "--name", "plain", *SERVER)
    assert not reaches(net, "plain", address["a1"])
    assert not reaches(net, "s1", address["s2"])
    net.docker("network", "connect", "tun-b", "a1")
    assert reaches(net, "a1", address["b1"])


def test_published_ports(net: Engine) -> None:
    """As on the bridge; they follow the container to the network that leads outside."""
    create(net, "tun-b")
    create(net, "tun-a")
    port = free_port()
    net.docker("run", "-d", "--name", "web", "--network", "tun-b", "-p", f"127.0.0.1:{port}:80", *SERVER)
    await_httpd(net, "web")

    def fetch() -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/shipped")
        body = connection.getresponse().read()
        connection.close()
        return body

    assert fetch() == b"from the image\n"
    net.docker("network", "connect", "tun-a", "web")
    assert fetch() == b"from the image\n"
    net.docker("network", "disconnect", "tun-a", "web")
    assert fetch() == b"from the image\n"
    assert net.out("port", "web", "80") == f"127.0.0.1:{port}"


def lookup(docker: Engine, container: str, name: str) -> set[str]:
    """The IPv4 addresses (or names) that a container's resolver gives for a name, as busybox tells them."""
    text = docker.docker("exec", container, "nslookup", name, check=False).stdout
    answers = text.split("\n\n", 1)[-1]
    return set(re.findall(r"^Address: (\S+)$", answers, re.MULTILINE)) | set(
        re.findall(r"name = (\S+)$", answers, re.M)
    )


def test_names(net: Engine) -> None:
    """Container names, aliases, short ids, hostnames and reversed addresses, on the networks that the asker is on."""
    create(net, "tun-a")
    create(net, "tun-b")
    server = net.out("run", "-d", "--name", "db", "--network", "tun-a", "--network-alias", "store", *SERVER)
    net.docker("run", "-d", "--name", "db2", "--network", "tun-a", "--network-alias", "store", *SERVER)
    net.docker("run", "-d", "--name", "asker", "--network", "tun-a", "busybox", "sleep", "1000")
    net.docker("run", "-d", "--name", "other", "--network", "tun-b", "busybox", "sleep", "1000")

    def address(name: str, network: str = "tun-a") -> str:
        return str(inspect(net, "container", name, f'(index .NetworkSettings.Networks "{network}").IPAddress'))

    assert net.out("exec", "asker", "cat", "/etc/resolv.conf").count("nameserver") == 1
    assert "nameserver 127.0.0.11" in net.out("exec", "asker", "cat", "/etc/resolv.conf")
    for name in ("db", "DB", "db.tun-a", server[:12]):
        assert lookup(net, "asker", name) == {address("db")}, name
    assert lookup(net, "asker", "store") == {address("db"), address("db2")}
    assert lookup(net, "asker", address("db")) == {"db.tun-a"}
    assert lookup(net, "asker", "other") == lookup(net, "other", "db") == set()
    assert net.out("exec", "asker", "wget", "-qO-", "http://db/shipped") == "from the image"
    net.docker("network", "connect", "--alias", "guest", "tun-b", "asker")
    assert lookup(net, "other", "guest") == {address("asker", "tun-b")}
    assert lookup(net, "asker", "other") == {address("other", "tun-b")}
    net.docker("rename", "db2", "renamed")
    assert lookup(net, "asker", "renamed") == {address("renamed")}
    assert lookup(net, "asker", "db2") == set()
    net.docker("stop", "-t", "0", "renamed")
    assert lookup(net, "asker", "store") == {address("db")}
    net.docker("network", "disconnect", "tun-b", "asker")
    assert lookup(net, "asker", "other") == set()


def test_names_after_a_first_user_network(net: Engine) -> None:
    """A container of the default bridge has names from the moment on that it is on a network with names."""
    create(net, "tun-a")
    net.docker("run", "-d", "--name", "db", "--network", "tun-a", *SERVER)
    net.docker("run", "-d", "--name", "asker", "busybox", "sleep", "1000")
    assert "127.0.0.11" not in net.out("exec", "asker", "cat", "/etc/resolv.conf")
    net.docker("network", "connect", "tun-a", "asker")
    assert "nameserver 127.0.0.11" in net.out("exec", "asker", "cat", "/etc/resolv.conf")
    assert net.out("exec", "asker", "wget", "-qO-", "http://db/shipped") == "from the image"


def test_links(net: Engine) -> None:
    """A name that only one container has for another."""
    create(net, "tun-a")
    net.docker("run", "-d", "--name", "db", "--network", "tun-a", *SERVER)
    net.docker("run", "-d", "--name", "asker", "--network", "tun-a", "--link", "db:base", "busybox", "sleep", "1000")
    assert net.out("exec", "asker", "wget", "-qO-", "http://base/shipped") == "from the image"
    assert lookup(net, "db", "base") == set()
    assert inspect(net, "container", "asker", '(index .NetworkSettings.Networks "tun-a").Links') == ["db:base"]


def test_options_of_the_resolver(net: Engine) -> None:
    """--dns-search and --dns-option are written; --dns is asked by the engine."""
    create(net, "tun-a")
    options = ("--network", "tun-a", "--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:3")
    text = net.out("run", "--rm", *options, "busybox", "cat", "/etc/resolv.conf")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == ["nameserver 127.0.0.11", "search example.org", "options ndots:3"]


@pytest.mark.skipif("GANTRY_ENGINE" in os.environ, reason="another's engine is not killed")
def test_networks_and_names_without_the_engine(net: Engine) -> None:
    """While dockerd is gone names resolve and ports are reached; a companion that dies is replaced."""
    create(net, "tun-a")
    port = free_port()
    net.docker("run", "-d", "--name", "db", "--network", "tun-a", "-p", f"127.0.0.1:{port}:80", *SERVER)
    net.docker("run", "-d", "--name", "asker", "--network", "tun-a", "busybox", "sleep", "1000")
    pid = int(inspect(net, "container", "asker", ".State.Pid"))  # type: ignore[call-overload]
    fetching = ["nsenter", "-t", str(pid), "-n", "-m", "/bin/wget", "-qO-", "http://db/shipped"]

    def fetched() -> bool:
        done = subprocess.run(fetching, capture_output=True, timeout=20, check=False)
        return done.stdout == b"from the image\n"

    def companion() -> int:
        log = str(net.directory / "d" / "dns.log")
        found = subprocess.run(["pgrep", "-f", "dockerd[.]dns"], capture_output=True, text=True, check=False).stdout
        return next(int(one) for one in found.split() if os.readlink(f"/proc/{one}/fd/2") == log)

    assert fetched()
    before = companion()
    net.dockerd.kill()
    assert fetched()
    net.dockerd.start()
    assert fetched()
    assert companion() == before
    net.docker("run", "-d", "--name", "late", "--network", "tun-a", "busybox", "sleep", "1000")
    assert lookup(net, "asker", "late") != set()
    os.kill(before, signal.SIGKILL)
    await_true(fetched, "no names after the companion was killed")
    net.docker("rm", "-f", "late")
    assert lookup(net, "asker", "late") == set()
    assert net.out("port", "db", "80") == f"127.0.0.1:{port}"
