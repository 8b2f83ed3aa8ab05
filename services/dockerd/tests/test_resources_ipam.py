"""Addresses: subnets of the default bridge, and what containers get from them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from dockerd import errors
from dockerd.networks.ipam import AddressPool, choose_subnet, hardware_address, parse_bip


def pool(subnet: str, used: tuple[str, ...] = ()) -> AddressPool:
    network = IPv4Network(subnet)
    return AddressPool(network, [network.network_address + 1], map(IPv4Address, used))


def test_lowest_free_address_first() -> None:
    """Addresses come in order, without the gateway."""
    addresses = pool("10.0.0.0/24")
    assert [str(addresses.take()) for _ in range(3)] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]


def test_a_returned_address_is_the_next() -> None:
    """The lowest free address is reused at once, as in the real engine."""
    addresses = pool("10.0.0.0/24")
    taken = [addresses.take() for _ in range(4)]
    addresses.give_back(taken[2])
    addresses.give_back(taken[1])
    assert [addresses.take() for _ in range(3)] == [taken[1], taken[2], IPv4Address("10.0.0.6")]


def test_addresses_in_use_are_skipped() -> None:
    """What running containers have from before a restart is not given away, and can be returned."""
    addresses = pool("10.0.0.0/24", used=("10.0.0.2", "10.0.0.4"))
    assert [str(addresses.take()) for _ in range(2)] == ["10.0.0.3", "10.0.0.5"]
    addresses.give_back(IPv4Address("10.0.0.4"))
    assert str(addresses.take()) == "10.0.0.4"


def test_returning_twice_gives_one_address() -> None:
    """An address that is free already is not put in twice."""
    addresses = pool("10.0.0.0/29")
    first = addresses.take()
    addresses.give_back(first)
    addresses.give_back(first)
    assert [str(addresses.take()) for _ in range(2)] == ["10.0.0.2", "10.0.0.3"]


def test_an_exhausted_subnet_is_said() -> None:
    """A /29 has five addresses besides the gateway; neither network nor broadcast address is among them."""
    addresses = pool("10.0.0.0/29")
    assert {str(addresses.take()) for _ in range(5)} == {f"10.0.0.{n}" for n in range(2, 7)}
    with pytest.raises(errors.Unavailable, match="no available IPv4 addresses"):
        addresses.take()


def test_the_hardware_address_follows_the_address() -> None:
    """Docker's form: 02:42 and the four bytes of the address."""
    assert hardware_address(IPv4Address("172.17.0.2")).hex(":") == "02:42:ac:11:00:02"


@pytest.mark.parametrize("text", ["", "10.0.0.0/16", "10.0.255.255/16", "10.0.0.1/32", "10.0.0.1/31", "::1/64", "x"])
def test_bad_bip(text: str) -> None:
    """--bip must be a host's address in a subnet with room."""
    with pytest.raises(errors.InvalidParameter, match="bip"):
        parse_bip(text)


def test_bip() -> None:
    """The address and its subnet."""
    assert parse_bip("192.168.5.1/24") == IPv4Interface("192.168.5.1/24")


def test_a_subnet_that_nothing_else_has() -> None:
    """Whatever the host has a route to is avoided, also a smaller or larger part."""
    taken = [IPv4Network("172.30.5.0/24"), IPv4Network("172.16.0.0/13")]
    assert choose_subnet(taken) == IPv4Interface("172.24.0.1/16")
    assert choose_subnet([]) == IPv4Interface("172.30.0.1/16")


def test_configured_pools() -> None:
    """default-address-pools are cut into subnets of their size."""
    pools = [("10.10.0.0/23", 24)]
    assert choose_subnet([IPv4Network("10.10.0.0/24")], pools) == IPv4Interface("10.10.1.1/24")
    with pytest.raises(errors.Unavailable, match="non-overlapping"):
        choose_subnet([IPv4Network("10.0.0.0/8")], pools)
    with pytest.raises(errors.InvalidParameter, match="size 16"):
        choose_subnet([], [("10.10.0.0/23", 16)])
