"""The default bridge, and the device pairs that join containers to it."""

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
    "remove_other",
]

_INTERFACE = "eth0"
_DEVICE_NAME = re.compile(r"[^/:\s]{1,15}")


@dataclass(frozen=True)
class EngineNames:
    """What tells this engine's kernel objects from another's on the same machine."""

    bridge: str
    table: str
    device_prefix: str


@dataclass(frozen=True)
class Bridge:
    """A bridge that is up: its device, and its address, which is the containers' gateway."""

    name: str
    index: int
    address: IPv4Interface
    mtu: int


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
    )


def taken_networks(socket: netlink.RouteSocket, except_device: str) -> Sequence[IPv4Network]:
    """What the host has routes to, other than through ``except_device``."""
    own = socket.link(except_device)
    index = own.index if own is not None else -1
    return [network for network, device in socket.routes() if device != index]


def ensure_bridge(socket: netlink.RouteSocket, name: str, address: IPv4Interface, mtu: int) -> Bridge:
    """Make the bridge, or take over the one that is there, with ``address`` on it, and up.

    Raises OSError, and Conflict when the device exists with other addresses.
    """
    link = socket.link(name)
    if link is None:
        # Locally administered, unicast.
        hardware = bytes([(secrets.randbits(8) & 0xFC) | 0x02]) + secrets.token_bytes(5)
        socket.run([netlink.add_bridge(name, mtu, hardware)])
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
) -> None:
    """Join the calling thread's namespace (descriptor ``namespace``) to the bridge: eth0, its address, default route.

    ``inside`` is a socket of that namespace; ``device`` is the name of the half that stays on the host. Raises OSError;
    the pair then goes with the namespace.
    """
    host.run([netlink.add_veth(device, bridge.index, bridge.mtu, _INTERFACE, hardware, namespace)])
    outer = host.link(device)
    if outer is None:
        raise OSError(f"device {device} vanished")
    host.run(
        [
            netlink.set_hairpin(outer.index, device),
            netlink.add_forwarding_entry(outer.index, device, hardware),
            netlink.add_neighbour(bridge.index, address, hardware),
        ]
    )
    netns.write_sysctl(f"net/ipv6/conf/{_INTERFACE}/disable_ipv6", "1")
    inner = inside.link(_INTERFACE)
    if inner is None:
        raise OSError(f"device {_INTERFACE} vanished")
    prefix = bridge.address.network.prefixlen
    inside.run(
        [
            netlink.add_address(inner.index, _INTERFACE, IPv4Interface((address, prefix))),
            netlink.set_up(inner.index, _INTERFACE),
            netlink.add_default_route(bridge.address.ip),
        ]
    )


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
