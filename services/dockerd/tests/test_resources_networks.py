"""Networks in the kernel: everything in network namespaces of the test's own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import TypeVar

import pytest

from dockerd import errors
from dockerd.config import Config
from dockerd.containers.model import PortBinding
from dockerd.networks import NetworkService, bridge, netlink, netns
from dockerd.networks.model import Attachment
from dockerd.networks.store import SCHEMA, SCHEMA_2
from gantry.database import Database
from gantry.linux.namespaces import CLONE_NEWNET, setns, unshare

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

Result = TypeVar("Result")


class Events:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, str, Mapping[str, str]]] = []

    def publish(self, kind: str, action: str, actor: str, attributes: Mapping[str, str]) -> None:
        self.published.append((kind, action, actor, attributes))


def in_thread(work: Callable[[], Result]) -> Result:
    """Run ``work`` in a thread whose namespaces die with it, and give its result."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def alone(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test in a network namespace of its own, with lo up, and check that it leaves no mount behind."""

    def wrapper(tmp_path: Path) -> None:
        def work() -> None:
            unshare(CLONE_NEWNET)
            with netlink.RouteSocket() as host:
                host.run([netlink.set_up(1, "lo")])
            test(tmp_path)

        try:
            in_thread(work)
            assert mounts_below(tmp_path) == []
        finally:
            for path in mounts_below(tmp_path):
                netns.remove(path)

    wrapper.__doc__ = test.__doc__
    return wrapper


def mounts_below(directory: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{directory}/")]


def inside(path: str | None, work: Callable[[], Result]) -> Result:
    """Run ``work`` in the namespace at ``path``."""
    assert path is not None

    def enter() -> Result:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            setns(descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)
        return work()

    return in_thread(enter)


@contextlib.contextmanager
def engine(directory: Path, **settings: str) -> Iterator[NetworkService]:
    """An engine's networks, with what it left when it was last there."""
    data, execution = directory / "data", directory / "exec"
    data.mkdir(exist_ok=True)
    config = Config(data_root=str(data), exec_root=str(execution), **{"bip": "10.77.0.1/24", **settings})
    database = Database(data / "engine.db", [SCHEMA, SCHEMA_2])
    service = NetworkService(config, database, Events())  # type: ignore[arg-type]
    service.start()
    try:
        yield service
    finally:
        service.close()
        database.close()


def links() -> list[str]:
    with netlink.RouteSocket() as here:
        return sorted(link.name for link in here.links() if link.kind in ("veth", "bridge"))


def ruleset() -> str:
    return subprocess.run(["nft", "list", "ruleset"], text=True, capture_output=True, check=True).stdout


def listener(kind: socket.SocketKind = socket.SOCK_STREAM, address: str = "0.0.0.0", port: int = 80) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.settimeout(5)
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def talk(server: socket.socket, connect: Callable[[], socket.socket]) -> str:
    """Connect to ``server``, and give the address that it sees."""
    with connect() as client:
        connection, peer = server.accept()
        connection.sendall(b"ok")
        connection.close()
        assert client.recv(2) == b"ok"
        return str(peer[0])


def client(address: str, port: int, source: str = "") -> Callable[[], socket.socket]:
    return lambda: socket.create_connection((address, port), timeout=5, source_address=(source, 0) if source else None)


def outsider(service: NetworkService, directory: Path) -> str:
    """A machine on another network of this host: 192.0.2.2, with the host as its router at 192.0.2.1."""
    path = str(directory / "outside")
    with netlink.RouteSocket() as host:
        other = bridge.ensure_bridge(host, "outer", IPv4Interface("192.0.2.1/24"), 1500)

        def join(descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                bridge.prepare_loopback(own)
                address = IPv4Address("192.0.2.2")
                hardware = b"\x02\x42\0\0\0\1"
                gateway = IPv4Address("192.0.2.1")
                bridge.connect(host, own, other, "outer-client", descriptor, address, hardware, gateway=gateway)

        netns.create(path, join)
    return path


def publish(service: NetworkService, name: str = "web", **ports: str) -> Attachment:
    bindings = {f"{port[1:]}/tcp": [PortBinding(host_port=host)] for port, host in ports.items()}
    return service.allocate(name * 8, name=name, mode="default", port_bindings=bindings)


@alone
def test_a_container_has_its_own_network(tmp_path: Path) -> None:
    """eth0 with address and default route, lo up, and afterwards nothing is left."""
    with engine(tmp_path) as service:
        attachment = service.allocate("c1", name="/one", mode="bridge")
        assert (attachment.address, attachment.gateway) == ("10.77.0.2", "10.77.0.1")
        assert attachment.netns_path == str(tmp_path / "exec/netns/c1")

        def look() -> tuple[list[tuple[str, bool]], list[IPv4Interface]]:
            with netlink.RouteSocket() as own:
                found = [(link.name, link.up) for link in own.links()]
                eth0 = own.link("eth0")
                assert eth0 is not None
                return sorted(found), own.addresses(eth0.index)

        devices, addresses = inside(attachment.netns_path, look)
        assert ("eth0", True) in devices
        assert ("lo", True) in devices
        assert addresses == [IPv4Interface("10.77.0.2/24")]
        # Reached through the bridge by the host, and the other way round.
        server = inside(attachment.netns_path, listener)
        assert talk(server, client("10.77.0.2", 80)) == "10.77.0.1"
        with listener(port=81) as here:
            assert talk(here, lambda: inside(attachment.netns_path, client("10.77.0.1", 81))) == "10.77.0.2"
        server.close()
        service.release("c1")
        assert os.listdir(tmp_path / "exec/netns") == []
        assert service.endpoints() == []


@alone
def test_inspect_shows_the_network(tmp_path: Path) -> None:
    """The body of NetworkSettings while running and before."""
    with engine(tmp_path) as service:
        before = service.settings("c1", "default")
        assert before["Networks"]["bridge"]["IPAddress"] == ""
        assert before["Ports"] == {}
        service.allocate(
            "c1",
            name="one",
            mode="default",
            exposed_ports=["90"],
            port_bindings={"80/tcp": [PortBinding(host_ip="127.0.0.1", host_port="8080")]},
        )
        settings = service.settings("c1")
        assert settings["Ports"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "90/tcp": None}
        network = settings["Networks"]["bridge"]
        for key in ("IPAddress", "MacAddress", "Gateway", "EndpointID", "IPPrefixLen"):
            assert network[key] == settings[key] != ""
        assert network["NetworkID"] == service.network("bridge").id
        assert network["MacAddress"] == "02:42:0a:4d:00:02"
        service.release("c1")
        assert service.settings("c1")["SandboxKey"] == ""


@alone
def test_no_network_and_the_hosts_network(tmp_path: Path) -> None:
    """none has only lo; host has no namespace; container:ID has the other's."""
    with engine(tmp_path) as service:
        isolated = service.allocate("c1", name="one", mode="none")

        def devices() -> list[str]:
            with netlink.RouteSocket() as own:
                return [link.name for link in own.links() if link.up]

        assert inside(isolated.netns_path, devices) == ["lo"]
        assert service.allocate("c2", name="two", mode="host").netns_path is None
        assert list(service.settings("c2")["Networks"]) == ["host"]
        shared = service.allocate("c3", name="three", mode="container:c1")
        assert shared.netns_path == isolated.netns_path
        assert shared.settings["Networks"] == {}
        with pytest.raises(errors.Conflict, match="non running container: gone"):
            service.allocate("c4", name="four", mode="container:gone")
        with pytest.raises(errors.NotFound, match="network nope not found"):
            service.allocate("c5", name="five", mode="nope")
        for container in ("c1", "c2", "c3"):
            service.release(container)
        assert service.endpoints() == []


@alone
def test_published_ports_are_reached_from_everywhere(tmp_path: Path) -> None:
    """From the host by loopback and address, from the container itself, and from outside; unpublished ones are not."""
    with engine(tmp_path) as service:
        web = publish(service, "web", p80="8080")
        outside = outsider(service, tmp_path)
        server = inside(web.netns_path, listener)
        assert talk(server, client("127.0.0.1", 8080)) == "10.77.0.1"
        assert talk(server, client("10.77.0.1", 8080)) == "10.77.0.1"
        assert talk(server, lambda: inside(web.netns_path, client("10.77.0.1", 8080))) == "10.77.0.1"
        # The client's own address is kept.
        assert talk(server, lambda: inside(outside, client("192.0.2.1", 8080))) == "192.0.2.2"
        with pytest.raises(OSError, match="timed out"):
            inside(outside, lambda: socket.create_connection(("10.77.0.2", 80), timeout=0.3))
        server.close()
        service.release("web" * 8)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 8080), timeout=1)
        netns.remove(outside)


@alone
def test_a_port_on_one_address(tmp_path: Path) -> None:
    """127.0.0.1:8080 is not reached by the host's other addresses."""
    with engine(tmp_path) as service:
        bindings = {"80/tcp": [PortBinding(host_ip="127.0.0.1", host_port="8080")]}
        web = service.allocate("web", name="web", mode="default", port_bindings=bindings)
        server = inside(web.netns_path, listener)
        assert talk(server, client("127.0.0.1", 8080)) == "10.77.0.1"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("10.77.0.1", 8080), timeout=1)
        server.close()
        service.release("web")


@alone
def test_the_hosts_loopback_is_out_of_reach(tmp_path: Path) -> None:
    """A container that sends to 127.0.0.1 through its gateway does not reach what the host serves there."""
    with engine(tmp_path) as service, listener(address="127.0.0.1", port=99):
        web = publish(service)

        def attack() -> None:
            netns.write_sysctl("net/ipv4/conf/eth0/route_localnet", "1")
            netns.write_sysctl("net/ipv4/conf/all/route_localnet", "1")
            for command in (
                "ip rule add pref 0 iif lo table 7",
                "ip route add local 127.0.0.5/32 dev lo table 7",
                "ip route add 127.0.0.1/32 via 10.77.0.1 dev eth0 table 7",
                "ip rule add pref 1 table local",
                "ip rule del pref 0 table local",
            ):
                subprocess.run(command.split(), check=False, capture_output=True)
            socket.create_connection(("127.0.0.1", 99), timeout=0.3, source_address=("10.77.0.2", 0))

        with pytest.raises(OSError, match=r"timed out|refused|Invalid|unreachable"):
            inside(web.netns_path, attack)
        service.release("web" * 8)


@alone
def test_a_taken_port_is_an_error_before_anything_is_made(tmp_path: Path) -> None:
    """Docker's words for another program's port and for another container's, and nothing half-made is left."""
    with engine(tmp_path) as service, listener(port=8081):
        publish(service, "web", p80="8080")
        before = (links(), ruleset())
        with pytest.raises(errors.SystemFailure) as caught:
            publish(service, "two", p80="8080")
        assert str(caught.value).startswith(
            "failed to set up container networking: driver failed programming external connectivity on endpoint two ("
        )
        assert str(caught.value).endswith("): Bind for 0.0.0.0:8080 failed: port is already allocated")
        with pytest.raises(errors.SystemFailure, match=r"0\.0\.0\.0:8081:10\.77\.0\.3:80/tcp: address already in use$"):
            publish(service, "two", p80="8081")
        assert (links(), ruleset()) == before
        assert publish(service, "two", p80="8082").address == "10.77.0.3"
        service.release("web" * 8)
        service.release("two" * 8)


@alone
def test_an_ephemeral_port_is_told(tmp_path: Path) -> None:
    """Port 0 is chosen by the kernel, and shown."""
    with engine(tmp_path) as service:
        attachment = publish(service, "web", p80="")
        (binding,) = attachment.settings["Ports"]["80/tcp"]
        assert binding["HostIp"] == "0.0.0.0"
        server = inside(attachment.netns_path, listener)
        assert talk(server, client("127.0.0.1", int(binding["HostPort"]))) == "10.77.0.1"
        server.close()
        service.release("web" * 8)


@alone
def test_datagrams(tmp_path: Path) -> None:
    """udp ports are published too, and a port may have both protocols."""
    with engine(tmp_path) as service:
        bindings = {"53/udp": [PortBinding(host_port="5300")], "53/tcp": [PortBinding(host_port="5300")]}
        attachment = service.allocate("dns", name="dns", mode="default", port_bindings=bindings)
        server = inside(attachment.netns_path, lambda: listener(socket.SOCK_DGRAM, port=53))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect(("127.0.0.1", 5300))
            # A first packet may be lost while an idle bridge wakes up: whoever asks by datagram asks again.
            server.settimeout(1)
            for attempt in range(5):
                asking.send(b"question")
                try:
                    data, peer = server.recvfrom(100)
                    break
                except TimeoutError:
                    assert attempt < 4, "no datagram arrives"
            server.sendto(data.upper(), peer)
            assert asking.recv(100) == b"QUESTION"
        server.close()
        service.release("dns")


@alone
def test_containers_reach_each_other_and_the_outside(tmp_path: Path) -> None:
    """Directly on the bridge with their own addresses; to the outside with the host's."""
    with engine(tmp_path) as service:
        one, two = publish(service, "one"), publish(service, "two")
        outside = outsider(service, tmp_path)
        server = inside(one.netns_path, listener)
        assert talk(server, lambda: inside(two.netns_path, client(one.address, 80))) == two.address
        server.close()
        server = inside(outside, listener)
        assert talk(server, lambda: inside(two.netns_path, client("192.0.2.2", 80))) == "192.0.2.1"
        server.close()
        service.release("one" * 8)
        service.release("two" * 8)
        netns.remove(outside)


@alone
def test_an_address_is_reused_with_another_hardware_address(tmp_path: Path) -> None:
    """Who knew the old container reaches the new one at once."""
    with engine(tmp_path) as service:
        for mac in ("", "02:42:00:00:00:99", ""):
            attachment = service.allocate("c1", name="one", mode="default", mac_address=mac)
            assert attachment.address == "10.77.0.2"
            server = inside(attachment.netns_path, listener)
            # A first packet may be lost while an idle bridge wakes up; what was known of the old container would be
            # believed for five seconds and more.
            talk(server, lambda: socket.create_connection(("10.77.0.2", 80), timeout=3))
            server.close()
            service.release("c1")
        with pytest.raises(errors.InvalidParameter, match="not a valid mac address"):
            service.allocate("c1", name="one", mode="default", mac_address="02:42")


@alone
def test_what_outlives_an_engine_is_taken_over_or_removed(tmp_path: Path) -> None:
    """The next engine serves the live container's port and address on, and removes all of the dead ones."""
    with engine(tmp_path) as service:
        live = publish(service, "web", p80="8080")
        publish(service, "two", p80="8082")
        service.allocate("none", name="none", mode="none")
    netns.create(str(tmp_path / "exec/netns/unknown"), lambda _descriptor: None)
    server = inside(live.netns_path, listener)
    assert talk(server, client("127.0.0.1", 8080)) == "10.77.0.1"  # no engine is needed for that
    with engine(tmp_path) as service:
        service.restore(["web" * 8])
        assert talk(server, client("127.0.0.1", 8080)) == "10.77.0.1"
        assert os.listdir(tmp_path / "exec/netns") == ["web" * 8]
        assert [endpoint.container_name for endpoint in service.endpoints()] == ["web"]
        assert "8082" not in ruleset()
        # The port is kept again, the dead container's is free, and so is its address.
        with pytest.raises(errors.SystemFailure, match="port is already allocated"):
            publish(service, "three", p80="8080")
        assert publish(service, "three", p80="8082").address == "10.77.0.3"
        service.restore([])
        assert os.listdir(tmp_path / "exec/netns") == []
        assert "8080" not in ruleset()
    server.close()


@alone
def test_two_engines_side_by_side(tmp_path: Path) -> None:
    """Names that depend on the exec root keep them apart; neither removes what is the other's."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with engine(tmp_path / "a") as first, engine(tmp_path / "b", bip="") as second:
        one, two = publish(first, "one", p80="8080"), publish(second, "two", p80="8081")
        assert two.gateway == "172.30.0.1"
        second.restore(["two" * 8])
        first.restore(["one" * 8])
        for attachment, port in ((one, 8080), (two, 8081)):
            server = inside(attachment.netns_path, listener)
            talk(server, client("127.0.0.1", port))
            server.close()
        with pytest.raises(errors.SystemFailure, match="failed to bind host port"):
            publish(second, "three", p80="8080")
        first.release("one" * 8)
        second.release("two" * 8)


@alone
def test_an_engine_without_a_bridge(tmp_path: Path) -> None:
    """--bridge none: containers have no network unless they ask for the host's."""
    with engine(tmp_path, bridge="none", bip="") as service:
        assert links() == []
        attachment = service.allocate("c1", name="one", mode="default")
        assert list(attachment.settings["Networks"]) == ["none"]
        with pytest.raises(errors.InvalidParameter, match="without a default bridge"):
            service.allocate("c2", name="two", mode="bridge")
        service.release("c1")


@alone
def test_a_network_that_another_device_has(tmp_path: Path) -> None:
    """Two bridges with one network cannot both work, so the second engine says so."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with engine(tmp_path / "a"):
        with pytest.raises(errors.Conflict, match=r"10\.77\.0\.0/24 is in use"), engine(tmp_path / "b"):
            pass
        with engine(tmp_path / "b", bip="10.77.0.1/25"):
            pass


@alone
def test_another_bip(tmp_path: Path) -> None:
    """The bridge gets its new address while no container uses it, and is left alone while one does."""
    with engine(tmp_path):
        pass
    with engine(tmp_path, bip="10.78.0.1/24") as service:
        assert publish(service).address == "10.78.0.2"
    with pytest.raises(errors.Conflict, match=r"exists with address 10\.78\.0\.1/24"), engine(tmp_path):
        pass
    with engine(tmp_path, bip="") as service:  # what it was
        assert service.gateway == "10.78.0.1"
        service.restore([])


@alone
def test_a_device_that_is_no_bridge(tmp_path: Path) -> None:
    """A name that another device has is refused, and that device is left alone."""
    with pytest.raises(errors.Conflict, match="lo exists and is not a bridge"), engine(tmp_path, bridge="lo"):
        pass


@alone
def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    """A namespace that cannot be made gives back address, port and row."""
    with engine(tmp_path) as service:
        (tmp_path / "exec/netns" / ("web" * 8)).write_text("in the way")
        with pytest.raises(errors.SystemFailure, match="failed to set up container networking"):
            publish(service, "web", p80="8080")
        assert service.endpoints() == []
        assert publish(service, "web", p80="8080").address == "10.77.0.2"
        service.release("web" * 8)


@alone
def test_networks_are_found_by_name_and_id(tmp_path: Path) -> None:
    """Ids stay the same over restarts."""
    with engine(tmp_path) as service:
        ids = {network.name: network.id for network in service.networks()}
        assert sorted(ids) == ["bridge", "host", "none"]
        assert service.network(ids["host"][:12]).name == "host"
        with pytest.raises(errors.NotFound, match="network nope not found"):
            service.network("nope")
    with engine(tmp_path) as service:
        assert {network.name: network.id for network in service.networks()} == ids
        assert service.network("bridge").subnet == "10.77.0.0/24"


@alone
def test_one_network_for_a_container(tmp_path: Path) -> None:
    """A second one is refused, and the first stays whole."""
    with engine(tmp_path) as service:
        first = publish(service, "web", p80="8080")
        with pytest.raises(errors.Conflict, match="has a network already"):
            publish(service, "web", p80="8081")
        server = inside(first.netns_path, listener)
        assert talk(server, client("127.0.0.1", 8080)) == "10.77.0.1"
        server.close()
        with pytest.raises(errors.SystemFailure, match="port is already allocated"):
            publish(service, "two", p80="8080")
        service.release("web" * 8)


@alone
def test_many_at_once(tmp_path: Path) -> None:
    """Containers that start and end at the same time get addresses and ports of their own."""
    with engine(tmp_path) as service:
        seen: list[tuple[str, str]] = []
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for _ in range(5):
                    attachment = publish(service, f"c{number}", p80="")
                    seen.append((attachment.address, attachment.settings["Ports"]["80/tcp"][0]["HostPort"]))
                    service.release(f"c{number}" * 8)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(seen) == 40
        assert {address for address, _ in seen} <= {f"10.77.0.{number}" for number in range(2, 10)}
        assert service.endpoints() == []
        assert "elements" not in ruleset()
        # The kernel tears the device pairs down in the background.
        with netlink.RouteSocket() as host:
            for _ in range(500):
                if not [link for link in host.links() if link.kind == "veth"]:
                    break
                threading.Event().wait(0.01)
            else:
                raise AssertionError(links())
