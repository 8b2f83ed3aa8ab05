"""User-defined networks: what is asked for, as values, and what the kernel makes of it."""

from __future__ import annotations

import importlib.util
import json
import os
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dockerd import errors
from dockerd.networks import membership, netlink
from dockerd.networks.definition import Addressing, Definition, parse_addressing, parse_options
from dockerd.networks.ipam import AddressPool
from dockerd.networks.model import Endpoint, Network
from dockerd.networks.places import gateway_place
from dockerd.networks.store import SCHEMA, SCHEMA_2, NetworkStore
from gantry.database import Database


def _neighbour() -> ModuleType:
    """The tests of the default bridge, whose world these share."""
    spec = importlib.util.spec_from_file_location(
        "network_world", Path(__file__).with_name("test_resources_networks.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


world = _neighbour()
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def place(network: str, priority: int = 0, gateway: str = "10.0.0.1") -> Endpoint:
    return Endpoint("c", "c", network, network, "", "", gateway=gateway, priority=priority)


def test_everything_wrong_with_addresses_is_told() -> None:
    """All lines at once, in the real engine's words."""
    with pytest.raises(errors.InvalidParameter) as caught:
        parse_addressing("10.1.0.0/24", "10.2.0.0/25", "nope", {"h": "10.3.0.1"})
    assert str(caught.value) == (
        "invalid network config:\n"
        "* invalid ip-range 10.2.0.0/25: parent subnet 10.1.0.0/24 doesn't contain ip-range\n"
        "* invalid gateway nope: invalid address\n"
        "* invalid auxiliary address h: parent subnet 10.1.0.0/24 doesn't contain this address"
    )
    for subnet in ("", "10.1.0.0", "bad", "fd00::/64", "10.0.0.0/33"):
        with pytest.raises(errors.InvalidParameter, match="invalid CIDR block notation"):
            parse_addressing(subnet, "", "", {})
    with pytest.raises(errors.InvalidParameter, match="no room"):
        parse_addressing("10.1.0.0/31", "", "", {})


@pytest.mark.parametrize(
    "options",
    [
        {"com.docker.network.bridge.enable_icc": "yes"},
        {"com.docker.network.bridge.host_binding_ipv4": "here"},
        {"com.docker.network.driver.mtu": "-1"},
        {"com.docker.network.bridge.name": 'x"; flush'},
        {"com.docker.network.bridge.name": "sixteen-letters-"},
        {"com.docker.network.bridge.name": ""},
    ],
)
def test_options_that_have_no_meaning(options: dict[str, str]) -> None:
    """A device's name above all cannot become part of a ruleset."""
    with pytest.raises(errors.InvalidParameter):
        parse_options(options)


def test_options_of_the_real_driver_that_are_missing() -> None:
    """They are refused by name; what no driver knows is kept."""
    with pytest.raises(errors.NotSupported, match="gateway_mode_ipv4"):
        parse_options({"com.docker.network.bridge.gateway_mode_ipv4": "routed"})
    assert parse_options({"mine": "x"}) == (("mine", "x"),)


def test_an_address_that_is_asked_for() -> None:
    """It is had once, outside the range too, and never the gateway's."""
    pool = AddressPool(
        IPv4Network("10.0.0.0/24"), [IPv4Address("10.0.0.1")], within=IPv4Network("10.0.0.128/25"), network="n"
    )
    assert str(pool.take()) == "10.0.0.128"
    pool.claim(IPv4Address("10.0.0.9"))
    for taken in ("10.0.0.1", "10.0.0.9", "10.0.0.128", "10.0.0.0", "10.0.0.255"):
        with pytest.raises(errors.Forbidden, match="Address already in use"):
            pool.claim(IPv4Address(taken))
    pool.give_back(IPv4Address("10.0.0.9"))
    pool.claim(IPv4Address("10.0.0.9"))
    pool.give_back(IPv4Address("10.0.0.9"))
    assert str(pool.take()) == "10.0.0.129"  # what came back lies outside the range


def test_the_network_that_leads_outside() -> None:
    """By priority, then by name; an internal one never."""
    assert gateway_place([place("b"), place("a"), place("c")]) == place("a")
    assert gateway_place([place("b", 5), place("a")]) == place("b", 5)
    assert gateway_place([place("a", 9, gateway=""), place("b")]) == place("b")
    assert gateway_place([place("a", gateway="")]) is None


def test_settings_of_a_place() -> None:
    """Names in any letter case; what is missing here is refused by name."""
    wanted = membership.parse("n", {"ipamconfig": {"IPv4ADDRESS": "10.0.0.9"}, "ALIASES": ["a"], "GwPriority": 3})
    assert wanted == membership.Membership("10.0.0.9", "", ("a",), 3)
    for settings in (
        {"DriverOpts": {"a": "b"}},
        {"IPAMConfig": {"IPv6Address": "fd00::1"}},
        {"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}},
    ):
        with pytest.raises(errors.NotSupported, match=r"EndpointsConfig\.n"):
            membership.parse("n", settings)
    assert membership.parse("n", {"Links": ["/db:Base", "web"]}).links == (("base", "db"), ("web", "web"))
    bad: list[dict[str, Any]] = [
        {"Links": ["a:b:c"]},
        {"Links": [":b"]},
        {"Links": "ab"},
        {"Aliases": [1]},
        {"GwPriority": "x"},
        {"IPAMConfig": 1},
        {"MacAddress": "x"},
    ]
    for settings in bad:
        with pytest.raises(errors.InvalidParameter):
            membership.parse("n", settings)


def test_an_address_needs_a_subnet_of_the_users() -> None:
    """The real engine's words, all of them."""
    bridge = Network("1", "bridge", "bridge", "", "10.0.0.0/24", "10.0.0.1")
    with pytest.raises(errors.InvalidParameter) as caught:
        membership.check(membership.Membership("10.9.0.1"), bridge)
    assert str(caught.value) == (
        "invalid endpoint settings:\n"
        "* user specified IP address is supported on user defined networks only\n"
        "* no configured subnet or ip-range contain the IP address 10.9.0.1"
    )


def test_places_of_an_older_engine_are_kept(tmp_path: Path) -> None:
    """A container that runs since before an update has its address and its ports."""
    path = tmp_path / "engine.db"
    old = Database(path, [SCHEMA])
    place = {"container_id": "c1", "container_name": "one", "network": "bridge", "network_id": "n1"}
    place |= {"endpoint_id": "e", "sandbox_id": "s", "address": "10.0.0.2", "prefix": 24, "gateway": "10.0.0.1"}
    port = {"port": 80, "protocol": "tcp", "host_address": "0.0.0.0", "host_port": 8080}
    with old.write() as connection:
        connection.execute("INSERT INTO networks (name, id, driver, created_at) VALUES ('bridge', 'n1', 'bridge', '')")
        connection.execute(
            "INSERT INTO endpoints VALUES ('c1', 'bridge', '10.0.0.2', ?)",
            (json.dumps({**place, "published": [port], "exposed": []}),),
        )
    old.close()
    database = Database(path, [SCHEMA, SCHEMA_2])
    store = NetworkStore(database)
    (endpoint,) = store.endpoints_of("c1")
    assert (endpoint.address, endpoint.published[0].host_port, endpoint.interface) == ("10.0.0.2", 8080, "eth0")
    assert [network.id for network in store.networks()] == ["n1"]
    assert not store.delete_network("n1")
    database.close()


@root
@world.alone
def test_networks_outlive_an_engine(tmp_path: Path) -> None:
    """The next engine has the network, its containers, ports and addresses; a bridge that was taken away is back."""
    with world.engine(tmp_path) as service:
        network = service.create(Definition("own", Addressing("10.88.0.0/24")))
        bindings = {"80/tcp": [world.PortBinding(host_port="8080")]}
        live = service.allocate("c1", name="one", mode="own", memberships={"own": {}}, port_bindings=bindings)
        service.create(Definition("idle", Addressing("10.89.0.0/24")))
    with netlink.RouteSocket() as host:
        idle = next(link.name for link in host.links() if link.alias and link.name != network.device)
        host.run([netlink.delete_link(idle)])
    with world.engine(tmp_path) as service:
        service.restore(["c1"])
        assert service.network("own") == network
        assert idle in world.links()
        server = world.inside(live.netns_path, world.listener)
        assert world.talk(server, world.client("127.0.0.1", 8080)) == "10.88.0.1"
        server.close()
        assert service.allocate("c2", name="two", mode="own").address == "10.88.0.3"
        assert service.remove("idle").name == "idle"
        with pytest.raises(errors.Forbidden, match=r'has active endpoints \(name:"one" id:'):
            service.remove("own")
        service.release("c1")
        service.release("c2")
        service.remove("own")
        assert "8080" not in world.ruleset()
        assert network.device not in world.links()


@root
@world.alone
def test_a_bridge_that_was_taken_away_has_its_containers_again(tmp_path: Path) -> None:
    """Somebody removes the device of a network that containers are on: the next engine puts all back."""
    with world.engine(tmp_path) as service:
        device = service.create(Definition("own", Addressing("10.88.0.0/24"))).device
        one = service.allocate("c1", name="one", mode="own")
        two = service.allocate("c2", name="two", mode="own")
    with netlink.RouteSocket() as host:
        host.run([netlink.delete_link(device)])
    with world.engine(tmp_path) as service:
        service.restore(["c1", "c2"])
        server = world.inside(one.netns_path, world.listener)
        address = world.talk(server, lambda: world.inside(two.netns_path, world.client(one.address, 80)))
        assert address == two.address
        server.close()
        service.release("c1")
        service.release("c2")


@root
@world.alone
def test_bridges_of_networks_that_are_not_known_go(tmp_path: Path) -> None:
    """An engine that died while it removed a network has forgotten it already."""
    with world.engine(tmp_path) as service:
        network = service.create(Definition("own"))
        service._store.delete_network(network.id)
        assert network.device in world.links()
    with world.engine(tmp_path) as service:
        assert network.device not in world.links()
        assert service.network("bridge").name == "bridge"


@root
@world.alone
def test_a_network_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """Names, subnets and devices that others have."""
    with world.engine(tmp_path) as service:
        service.create(Definition("own", Addressing("10.88.0.0/24")))
        before = (world.links(), world.ruleset(), [one.name for one in service.networks()])
        for wanted, refusal in (
            (Definition("own"), errors.Conflict),
            (Definition("two", Addressing("10.88.0.0/16")), errors.Forbidden),
            (Definition("two", Addressing("10.77.0.0/25")), errors.Forbidden),
            (Definition("two", options=(("com.docker.network.bridge.name", "lo"),)), errors.Conflict),
        ):
            with pytest.raises(refusal):
                service.create(wanted)
        assert (world.links(), world.ruleset(), [one.name for one in service.networks()]) == before
        service.remove("own")


@root
@world.alone
def test_the_users_name_for_the_bridge(tmp_path: Path) -> None:
    """A new one goes with the network; one that was there stays."""
    name = "com.docker.network.bridge.name"
    with world.engine(tmp_path) as service:
        service.create(Definition("own", options=((name, "mine0"),)))
        assert "mine0" in world.links()
        service.remove("own")
        assert "mine0" not in world.links()
        with netlink.RouteSocket() as host:
            host.run([netlink.add_bridge("theirs0", 1500, b"\x02\x42\0\0\0\7")])
            service.create(Definition("own", options=((name, "theirs0"),)))
            service.remove("own")
            assert host.link("theirs0") is not None


@root
@world.alone
def test_default_pools(tmp_path: Path) -> None:
    """Subnets that the host has a route to, and those of other networks, are left out."""
    with world.engine(tmp_path) as service, netlink.RouteSocket() as host:
        host.run([netlink.add_bridge("other0", 1500, b"\x02\x42\0\0\0\7")])
        link = host.link("other0")
        assert link is not None
        host.run([netlink.add_address(link.index, "other0", IPv4Interface("172.17.0.1/16"))])
        host.run([netlink.set_up(link.index, "other0")])
        subnets = [service.create(Definition(name)).subnet for name in ("a", "b")]
        assert subnets == ["172.18.0.0/16", "172.19.0.0/16"]


@root
@world.alone
def test_networks_in_place_of_the_modes(tmp_path: Path) -> None:
    """Settings for other networks are had instead of the bridge, or of none; what was left is not joined again."""
    with world.engine(tmp_path) as service:
        service.create(Definition("a"))
        for mode in ("bridge", "none", "a"):
            attachment = service.allocate("c1", name="one", mode=mode, memberships={"a": {}})
            assert [one.network for one in service.endpoints()] == ["a"]
            assert attachment.resolver
            service.release("c1")
        alone = service.allocate("c1", name="one", mode="none", memberships={"none": {}, "a": {}})
        assert (alone.addresses, alone.resolver) == ((), False)
        service.release("c1")


@root
@world.alone
def test_a_second_place_that_fails_takes_the_first_along(tmp_path: Path) -> None:
    """Of several networks all or none are had."""
    with world.engine(tmp_path) as service:
        service.create(Definition("a", Addressing("10.88.0.0/24")))
        service.create(Definition("b", Addressing("10.89.0.0/24")))
        service.allocate("c1", name="one", mode="b", memberships={"b": {"IPAMConfig": {"IPv4Address": "10.89.0.9"}}})
        both = {"a": {}, "b": {"IPAMConfig": {"IPv4Address": "10.89.0.9"}}}
        with pytest.raises(errors.Forbidden, match="networking: Address already in use"):
            service.allocate("c2", name="two", mode="a", memberships=both)
        assert [one.container_id for one in service.endpoints()] == ["c1"]
        assert service.allocate("c2", name="two", mode="a", memberships={"a": {}}).address == "10.88.0.2"
        service.connect("c2", service.network("b"), name="two", hostname="h", settings={})
        with pytest.raises(errors.Forbidden, match="endpoint with name two already exists in network b"):
            service.connect("c2", service.network("b"), name="two", hostname="h", settings={})
        assert service.disconnect("c2", service.network("bridge")) is None
        service.release("c1")
        service.release("c2")
        assert service.endpoints() == []
