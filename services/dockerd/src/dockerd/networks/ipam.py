"""Addresses: which subnet a network gets, and which address a container."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dockerd import errors

__all__ = ["NETWORK_POOLS", "AddressPool", "choose_subnet", "hardware_address", "parse_bip"]

NETWORK_POOLS: Sequence[tuple[str, int]] = (
    *((f"172.{number}.0.0/16", 16) for number in range(17, 32)),
    ("192.168.0.0/16", 20),
)
"""Where the subnets of user-defined networks come from: base network and prefix length, in this order."""

_DEFAULT_POOLS = (
    "172.30.0.0/16",
    *(f"172.{number}.0.0/16" for number in range(17, 30)),
    *(f"192.168.{number}.0/20" for number in range(0, 256, 16)),
)


class AddressPool:
    """The addresses of one subnet. Hands out the lowest that is free, as the real engine does.

    The network's own address, its broadcast address and ``reserved`` (the gateway) are never handed out; of the rest
    only those in ``within``, if that is given. ``network`` is the name for messages. Not locked: the owner serializes.
    """

    def __init__(
        self,
        subnet: IPv4Network,
        reserved: Iterable[IPv4Address],
        used: Iterable[IPv4Address] = (),
        *,
        within: IPv4Network | None = None,
        network: str = "bridge",
    ) -> None:
        self.subnet = subnet
        self._network = network
        part = within or subnet
        self._first = max(int(part.network_address), int(subnet.network_address) + 1)
        self._last = min(int(part.broadcast_address), int(subnet.broadcast_address) - 1)
        self._reserved = frozenset(int(address) for address in reserved)
        self._used = {int(address) for address in used}
        self._next = self._first  # everything below is used, reserved, or in the heap
        self._returned: list[int] = []

    def take(self) -> IPv4Address:
        """Return an address that nobody has. Raises Unavailable when there is none left."""
        while self._returned:
            number = heapq.heappop(self._returned)
            if number not in self._used:
                self._used.add(number)
                return IPv4Address(number)
        while self._next <= self._last:
            number = self._next
            self._next += 1
            if number not in self._used and number not in self._reserved:
                self._used.add(number)
                return IPv4Address(number)
        raise errors.Unavailable(f"no available IPv4 addresses on this network's address pools: {self._network}")

    def claim(self, address: IPv4Address) -> None:
        """Take the address that somebody asked for. Raises Forbidden, in the real engine's words, when it is taken."""
        number = int(address)
        taken = number in self._used or number in self._reserved
        if taken or address in (self.subnet.network_address, self.subnet.broadcast_address):
            raise errors.Forbidden("Address already in use")
        self._used.add(number)

    def give_back(self, address: IPv4Address) -> None:
        """Make an address free again. One that is free already is left so."""
        number = int(address)
        if number in self._used:
            self._used.discard(number)
            if self._first <= number < self._next:
                heapq.heappush(self._returned, number)


def hardware_address(address: IPv4Address) -> bytes:
    """A container's MAC address: locally administered, and the same for the same IPv4 address.

    Whoever has resolved the address before is right again when the next container gets it.
    """
    return b"\x02\x42" + address.packed


def parse_bip(text: str) -> IPv4Interface:
    """The bridge's address from ``--bip``. Raises InvalidParameter."""
    try:
        address = IPv4Interface(text)
    except ValueError as error:
        raise errors.InvalidParameter(f"bip: invalid CIDR address: {text}") from error
    network = address.network
    if network.prefixlen > 30 or address.ip in (network.network_address, network.broadcast_address):
        raise errors.InvalidParameter(f"bip: {text} is not the address of a host in a subnet with room for containers")
    return address


def choose_subnet(taken: Sequence[IPv4Network], pools: Sequence[tuple[str, int]] = ()) -> IPv4Interface:
    """A bridge's address in the first subnet that overlaps with nothing in ``taken``: what the host has routes to.

    ``pools`` are base networks in CIDR form and the prefix length of the subnets to cut from them; without any, the
    engine's own list is used. Raises Unavailable.
    """
    candidates = pools or [(pool, IPv4Network(pool).prefixlen) for pool in _DEFAULT_POOLS]
    for base, size in candidates:
        try:
            network = IPv4Network(base)
        except ValueError as error:
            raise errors.InvalidParameter(f"default-address-pools: invalid base {base}: {error}") from error
        if not network.prefixlen <= size <= 30:
            raise errors.InvalidParameter(f"default-address-pools: size {size} does not fit base {base}")
        for subnet in network.subnets(new_prefix=size):
            if not any(subnet.overlaps(other) for other in taken):
                return IPv4Interface((subnet.network_address + 1, size))
    raise errors.Unavailable(
        "could not find an available, non-overlapping IPv4 address pool for the default bridge: "
        "set one with --bip or default-address-pools"
    )
