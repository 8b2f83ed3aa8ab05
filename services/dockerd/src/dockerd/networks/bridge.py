"""Bridges, and the device pairs that join containers to them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dockerd import errors
from dockerd.config import Config
from dockerd.networks import ipam, netlink, netns

__all__ = [
    "Bridge",
    "EngineNames",
    "choose_address",
    "connect",
    "engine_names",
    "ensure_bridge",
    "prepare_loopback",
    "reattach",
    "remove_other",
]

# What the kernel takes, without what means something in a ruleset.
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True)
class EngineNames:
    """What tells this engine's kernel objects from another's on the same machine."""

    bridge: str
    table: str
    device_prefix: str
    network_prefix: str
    mark: str

    def network_bridge(self, network_id: str) -> str:
        """The name of a user-defined network's bridge, for those whose user gives none."""
        return self.network_prefix + network_id[: 15 - len(self.network_prefix)]


@dataclass(frozen=True)
class Bridge:
    """A bridge that is up: its device, and its address, which is the containers' gateway.

    On one that is ``isolated`` containers do not reach each other.
    """

    name: str
    index: int
    address: IPv4Interface
    mtu: int
    isolated: bool = False


def engine_names(config: Config) -> EngineNames:
    """Names that depend on the exec root alone, so that a restarted engine finds what it made."""
    root = os.path.realpath(config.exec_root)
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()
    default = Config()
    own = root != os.path.realpath(default.exec_root)
    bridge = config.bridge or (f"gantry-{digest[:8]}" if own else "gantry0")
    if _DEVICE_NAME.fullmatch(bridge) is None:
        raise errors.InvalidParameter(f"bridge: {bridge!r} cannot be the name of a network device")
    return EngineNames(
        bridge=bridge,
        table=f"gantry-{digest[:8]}" if own else "gantry",
        device_prefix=f"gv{digest[:6]}",
        network_prefix=f"gb{digest[:5]}-" if own else "br-",
        mark=f"gantry network of {digest[:16]}",
    )


def taken_networks(socket: netlink.RouteSocket, except_device: str) -> Sequence[IPv4Network]:
    """What the host has routes to, other than through ``except_device``."""
    own = socket.link(except_device)
    index = own.index if own is not None else -1
    return [network for network, device in socket.routes() if device != index]


def ensure_bridge(socket: netlink.RouteSocket, name: str, address: IPv4Interface, mtu: int, mark: str = "") -> Bridge:
    """Make the bridge, or take over the one that is there, with ``address`` on it, and up.

    ``mark`` is left on one that is made here.

    Raises OSError, and Conflict when the device exists with other addresses.
    """
    link = socket.link(name)
    if link is None:
        # Locally administered, unicast.
        hardware = bytes([(secrets.randbits(8) & 0xFC) | 0x02]) + secrets.token_bytes(5)
        socket.run([netlink.add_bridge(name, mtu, hardware), *([netlink.set_alias(name, mark)] if mark else [])])
        link = socket.link(name)
        assert link is not None
    elif link.kind != "bridge":
        raise errors.Conflict(f"the device {name} exists and is not a bridge: choose another with --bridge")
    present = socket.addresses(link.index)
    requests = []
    if address not in present:
        if present:
            listed = ", ".join(str(one) for one in present)
            raise errors.Conflict(
                f"the bridge {name} exists with address {listed} instead of {address}: set --bip to that, or remove it"
            )
        requests.append(netlink.add_address(link.index, name, address))
    # No IPv6 on the bridge: nothing uses it, and without it the device sends nothing on its own.
    netns.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    # Replies to connections that the host made from 127.0.0.1 come back through here.
    netns.write_sysctl(f"net/ipv4/conf/{name}/route_localnet", "1")
    socket.run([*requests, netlink.set_up(link.index, name)])
    return Bridge(name, link.index, address, mtu)


def remove_other(socket: netlink.RouteSocket, name: str, address: IPv4Interface) -> None:
    """Remove a bridge of the engine's own that nobody uses, if it has another address: ``--bip`` was changed."""
    link = socket.link(name)
    if link is not None and link.kind == "bridge" and address not in socket.addresses(link.index):
        socket.run([netlink.delete_link(name)])


def prepare_loopback(socket: netlink.RouteSocket) -> None:
    """Bring ``lo`` of a new namespace (the socket's and the calling thread's) up, and set what every container gets."""
    # As the real engine: any user may bind any port and use ping; the namespace is the container's own.
    netns.write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    netns.write_sysctl("net/ipv4/ping_group_range", "0 2147483647")
    socket.run([netlink.set_up(1, "lo")])


def connect(
    host: netlink.RouteSocket,
    inside: netlink.RouteSocket,
    bridge: Bridge,
    device: str,
    namespace: int,
    address: IPv4Address,
    hardware: bytes,
    *,
    interface: str = "eth0",
    gateway: IPv4Address | None = None,
) -> None:
    """Join the calling thread's namespace (descriptor ``namespace``) to the bridge: a device, its address, and a
    default route through ``gateway`` if that is given.

    ``inside`` is a socket of that namespace; ``device`` is the name of the half that stays on the host, ``interface``
    that of the other. Raises OSError; the pair then goes with the namespace.
    """
    host.run([netlink.add_veth(device, bridge.index, bridge.mtu, interface, hardware, namespace)])
    outer = host.link(device)
    if outer is None:
        raise OSError(f"device {device} vanished")
    host.run(
        [
            netlink.set_hairpin(outer.index, device, isolated=bridge.isolated),
            netlink.add_forwarding_entry(outer.index, device, hardware),
            netlink.add_neighbour(bridge.index, address, hardware),
        ]
    )
    netns.write_sysctl(f"net/ipv6/conf/{interface}/disable_ipv6", "1")
    inner = inside.link(interface)
    if inner is None:
        raise OSError(f"device {interface} vanished")
    prefix = bridge.address.network.prefixlen
    inside.run(
        [
            netlink.add_address(inner.index, interface, IPv4Interface((address, prefix))),
            netlink.set_up(inner.index, interface),
            *([netlink.add_default_route(gateway)] if gateway is not None else []),
        ]
    )


def reattach(host: netlink.RouteSocket, bridge: Bridge, device: netlink.Link) -> None:
    """Put a container's device back on its bridge, if it is not there: that was removed and made again."""
    if device.master != bridge.index:
        hairpin = netlink.set_hairpin(device.index, device.name, isolated=bridge.isolated)
        host.run([netlink.attach(device.name, bridge.index), hairpin])


def choose_address(socket: netlink.RouteSocket, config: Config, name: str, remembered: str | None) -> IPv4Interface:
    """The bridge's address: as set, as an existing bridge has it, as it was, or the first that is free."""
    if config.bip:
        address = ipam.parse_bip(config.bip)
        if address.network in taken_networks(socket, name):
            # A larger or smaller network elsewhere is the administrator's choice; the same one can only be a mistake.
            raise errors.Conflict(
                f"bip: the network {address.network} is in use by another device: choose another for {name}"
            )
        return address
    link = socket.link(name)
    if link is not None:
        present = socket.addresses(link.index)
        if present:
            return present[0]
    taken = taken_networks(socket, name)
    if remembered:
        address = IPv4Interface(remembered)
        if not any(address.network.overlaps(other) for other in taken):
            return address
    return ipam.choose_subnet(taken, [(pool.base, pool.size) for pool in config.default_address_pools])
