"""The networks that have a bridge: their devices, their free addresses, and the rules for all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dockerd import errors
from dockerd.config import Config
from dockerd.networks import bridge as bridges
from dockerd.networks import ipam, netlink, nftables
from dockerd.networks.definition import BRIDGE_OPTION, Definition, option_flag
from dockerd.networks.model import Endpoint, Network
from dockerd.networks.store import NetworkStore

__all__ = ["LiveNetwork", "LiveNetworks", "logged"]

_log = logging.getLogger(__name__)

_BRIDGE = "bridge"
_IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"


@dataclasses.dataclass(frozen=True)
class LiveNetwork:
    """A network whose bridge is up. ``pool`` is used under the lock of :class:`LiveNetworks`."""

    network: Network
    bridge: bridges.Bridge
    pool: ipam.AddressPool

    @property
    def gateway(self) -> IPv4Address | None:
        """Where its containers send what is for others; None where nothing leaves the network."""
        return None if self.network.internal else self.bridge.address.ip

    @property
    def host_address(self) -> IPv4Address:
        """The host's address for published ports that name none."""
        return IPv4Address(dict(self.network.options).get(BRIDGE_OPTION + "host_binding_ipv4") or "0.0.0.0")


class LiveNetworks:
    """Brings networks up and takes them down. Threads may call it at the same time."""

    def __init__(self, config: Config, store: NetworkStore) -> None:
        self._config = config
        self._store = store
        self.names = bridges.engine_names(config)
        self._changes = threading.Lock()  # of which networks there are
        self._addresses = threading.Lock()  # of every pool
        # Whoever forgets an endpoint with published ports holds it: a table made meanwhile would open them again.
        self.rule_changes = threading.Lock()
        self._live: dict[str, LiveNetwork] = {}  # by network id
        self._failures: dict[str, str] = {}
        self._netlink: netlink.RouteSocket | None = None
        self._nftables: nftables.Nftables | None = None

    def start(self) -> None:
        """Bring up the bridges and the rules of all networks. What containers have from before stays as it is.

        Raises an engine error when the host does not allow the default bridge; another network that cannot be brought
        up is logged, and whoever wants to use it is told.
        """
        self._netlink = netlink.RouteSocket()
        self._nftables = nftables.Nftables()
        endpoints = self._store.endpoints()
        if self._config.bridge != "none":
            try:
                self._start_default([one for one in endpoints if one.network == _BRIDGE])
            except OSError as error:
                raise errors.SystemFailure(f"cannot set up the default bridge {self.names.bridge}: {error}") from error
        known = [network for network in self._store.networks() if network.device]
        self._remove_unknown({network.device for network in known})
        for network in known:
            used = [IPv4Address(one.address) for one in endpoints if one.network_id == network.id and one.address]
            try:
                self._bring_up(network, used)
            except (OSError, errors.EngineError) as error:
                self._failures[network.id] = str(error)
                _log.error("network %s cannot be brought up: %s", network.name, error)
        if self._live:
            enable_forwarding()
            self._install_rules()
            for live in self._live.values():
                self._pass_firewalls(live.bridge.name)

    def close(self) -> None:
        """Let go of sockets. Bridges and rules stay."""
        if self._netlink is not None:
            self._netlink.close()
        if self._nftables is not None:
            self._nftables.close()

    def get(self, network: Network) -> LiveNetwork:
        """The network with its bridge. Raises Unavailable when that is not up."""
        live = self._live.get(network.id)
        if live is None:
            raise self._not_up(network.id, network.name)
        return live

    def bridge(self, network_id: str, name: str) -> bridges.Bridge:
        """The bridge of a network. Raises Unavailable when that is not up."""
        live = self._live.get(network_id)
        if live is None:
            raise self._not_up(network_id, name)
        return live.bridge

    def _not_up(self, network_id: str, name: str) -> errors.Unavailable:
        return errors.Unavailable(f"network {name} is not up: {self._failures.get(network_id, 'it has no bridge')}")

    def default(self) -> LiveNetwork | None:
        """The default bridge's network, if there is one."""
        return next((live for live in self._live.values() if live.network.name == _BRIDGE), None)

    def create(self, wanted: Definition) -> Network:
        """Make a network: its row, its bridge, its rules; or nothing of it.

        Raises Conflict for a name that is taken, Forbidden for addresses that another network has, InvalidParameter
        when no subnet is left, SystemFailure for what the kernel refuses.
        """
        with self._changes:
            network = self._define(wanted)
            self._store.insert_network(network)
            try:
                self._bring_up(network, ())
                enable_forwarding()
                self._install_rules()
            except BaseException as error:
                self._store.delete_network(network.id)
                self._take_down(network)
                if isinstance(error, OSError):
                    raise errors.SystemFailure(f"cannot create network {network.name}: {error}") from error
                raise
        self._pass_firewalls(network.device)
        return network

    def remove(self, network: Network) -> bool:
        """Take a network away whole; False, and nothing done, while a container is on it."""
        with self._changes:
            # The row first: no container gets a place on the network from then on.
            if not self._store.delete_network(network.id):
                return False
            self._take_down(network)
        with logged("forget a bridge in another Docker's rules"):
            self.rules.run(nftables.forget_bridge(self.rules.user_chain(), network.device))
        return True

    def take_address(self, live: LiveNetwork, wanted: str) -> IPv4Address:
        """An address of the network: the one that is wanted, or any. Raises Forbidden, Unavailable."""
        with self._addresses:
            if not wanted:
                return live.pool.take()
            address = IPv4Address(wanted)
            live.pool.claim(address)
            return address

    def give_address_back(self, network_id: str, address: str) -> None:
        """Make a container's address free again."""
        live = self._live.get(network_id)
        if live is not None and address:
            with self._addresses:
                live.pool.give_back(IPv4Address(address))

    @property
    def host(self) -> netlink.RouteSocket:
        """To the host's network namespace."""
        if self._netlink is None:
            raise errors.Unavailable("the networks are not up")
        return self._netlink

    @property
    def rules(self) -> nftables.Nftables:
        """For the engine's own table."""
        if self._nftables is None:
            raise errors.Unavailable("the networks are not up")
        return self._nftables

    def _start_default(self, endpoints: Sequence[Endpoint]) -> None:
        name = self.names.bridge
        address = bridges.choose_address(self.host, self._config, name, self._store.bridge_address(_BRIDGE))
        if not self._config.bridge and not endpoints:
            bridges.remove_other(self.host, name, address)
        bridge = bridges.ensure_bridge(self.host, name, address, self._config.mtu)
        self._store.set_bridge(
            _BRIDGE,
            str(address),
            {
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.enable_icc": "true",
                "com.docker.network.bridge.enable_ip_masquerade": "true",
                "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
                "com.docker.network.bridge.name": name,
                "com.docker.network.driver.mtu": str(self._config.mtu),
            },
        )
        network = next(one for one in self._store.networks() if one.name == _BRIDGE)
        used = [IPv4Address(endpoint.address) for endpoint in endpoints if endpoint.address]
        pool = ipam.AddressPool(address.network, [address.ip], used)
        self._live[network.id] = LiveNetwork(network, bridge, pool)

    def _define(self, wanted: Definition) -> Network:
        """The network that becomes of what is wanted: with an id, a device, and addresses that nobody has."""
        known = self._store.networks()
        if any(one.name == wanted.name for one in known):
            raise errors.Conflict(f"network with name {wanted.name} already exists")
        network_id = secrets.token_hex(32)
        device = dict(wanted.options).get(BRIDGE_OPTION + "name") or self.names.network_bridge(network_id)
        if any(one.device == device for one in known) or device == self.names.bridge:
            raise errors.Forbidden(f"network with bridge {device} exists already: choose another {BRIDGE_OPTION}name")
        address = self._choose_subnet(wanted, device, [IPv4Network(one.subnet) for one in known if one.subnet])
        now = datetime.now(UTC)
        return Network(
            id=network_id,
            name=wanted.name,
            driver="bridge",
            created_at=f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}000Z",
            subnet=str(address.network),
            gateway=str(address.ip),
            options=wanted.options,
            device=device,
            configured=bool(wanted.addressing.subnet),
            ip_range=wanted.addressing.ip_range,
            auxiliary=wanted.addressing.auxiliary,
            internal=wanted.internal,
            attachable=wanted.attachable,
            labels=wanted.labels,
            ipam_options=wanted.ipam_options,
        )

    def _choose_subnet(self, wanted: Definition, device: str, known: Sequence[IPv4Network]) -> IPv4Interface:
        routes = bridges.taken_networks(self.host, device)
        addressing = wanted.addressing
        if not addressing.subnet:
            pools = [(pool.base, pool.size) for pool in self._config.default_address_pools] or ipam.NETWORK_POOLS
            try:
                return ipam.choose_subnet([*known, *routes], pools)
            except errors.Unavailable:
                raise errors.InvalidParameter("all predefined address pools have been fully subnetted") from None
        subnet = IPv4Network(addressing.subnet)
        if any(subnet.overlaps(other) for other in known):
            raise errors.Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        if subnet in routes:
            # A larger or smaller network elsewhere is the administrator's choice; the same one can only be a mistake.
            raise errors.Forbidden(f"invalid pool request: the host has a route to {subnet} through another device")
        if addressing.gateway:
            return IPv4Interface(f"{addressing.gateway}/{subnet.prefixlen}")
        reserved = [IPv4Address(address) for _, address in addressing.auxiliary]
        within = IPv4Network(addressing.ip_range) if addressing.ip_range else None
        first = ipam.AddressPool(subnet, reserved, within=within, network=wanted.name).take()
        return IPv4Interface((first, subnet.prefixlen))

    def _bring_up(self, network: Network, used: Sequence[IPv4Address]) -> None:
        options = dict(network.options)
        subnet = IPv4Network(network.subnet)
        address = IPv4Interface(f"{network.gateway}/{subnet.prefixlen}")
        mtu = int(options.get("com.docker.network.driver.mtu") or self._config.mtu)
        bridge = bridges.ensure_bridge(self.host, network.device, address, mtu, self.names.mark)
        bridge = dataclasses.replace(bridge, isolated=not option_flag(options, "enable_icc"))
        pool = ipam.AddressPool(
            subnet,
            [address.ip, *(IPv4Address(one) for _, one in network.auxiliary)],
            used,
            within=IPv4Network(network.ip_range) if network.ip_range else None,
            network=network.name,
        )
        self._live[network.id] = LiveNetwork(network, bridge, pool)

    def _take_down(self, network: Network) -> None:
        live = self._live.pop(network.id, None)
        self._failures.pop(network.id, None)
        with logged(f"remove the rules of network {network.name}"):
            self._install_rules()
        link = self.host.link(network.device)
        # Only what this engine made: a bridge that was there before the network stays.
        if link is not None and link.alias == self.names.mark:
            with logged(f"remove the bridge of network {network.name}"):
                self.host.run([netlink.delete_link(network.device)])
        elif live is not None and link is not None:
            _log.info("the bridge %s was there before network %s and stays", network.device, network.name)

    def _remove_unknown(self, known: set[str]) -> None:
        """Remove bridges of networks that an engine was removing, or making, when it died."""
        for link in self.host.links():
            if link.alias == self.names.mark and link.name not in known:
                with logged("remove a left-over bridge"):
                    self.host.run([netlink.delete_link(link.name)])
                    self.rules.run(nftables.forget_bridge(self.rules.user_chain(), link.name))

    def _install_rules(self) -> None:
        table = [_rules(live) for live in list(self._live.values())]
        with self.rule_changes:
            translations = [one for endpoint in self._store.endpoints() for one in endpoint.translations()]
            self.rules.run(nftables.install_table(self.names.table, table, translations))

    def _pass_firewalls(self, name: str) -> None:
        """Be accepted where another Docker keeps a chain for that; say so when another's rules keep containers in."""
        rules = self.rules
        with logged("look for other firewalls"):
            listing = rules.run("list chains")
            user_chain = rules.user_chain()
            if commands := nftables.accept_bridge(listing, user_chain, name):
                rules.run(commands)
                _log.info("another Docker drops what is forwarded: %s is accepted in its chain DOCKER-USER", name)
            for chain in nftables.dropping_forward_chains(listing):
                if chain == "ip filter FORWARD" and user_chain:
                    continue
                _log.warning(
                    "chain %s (a firewall's) drops forwarded packets by default: unless it accepts those from and to "
                    "%s, containers reach neither each other nor the outside",
                    chain,
                    name,
                )


def _rules(live: LiveNetwork) -> nftables.BridgeRules:
    options = dict(live.network.options)
    return nftables.BridgeRules(
        name=live.bridge.name,
        subnet=live.bridge.address.network,
        masquerade=option_flag(options, "enable_ip_masquerade"),
        within=option_flag(options, "enable_icc"),
        internal=live.network.internal,
    )


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """Go on after a failure: what is left over is found again at the next start."""
    try:
        yield
    except (OSError, errors.EngineError) as error:
        _log.error("cannot %s: %s", what, error)


def enable_forwarding() -> None:
    """Let the kernel pass packets on between devices: without it no container reaches further than the host."""
    with open(_IP_FORWARD, "r+") as file:
        if file.read().strip() != "1":
            file.seek(0)
            file.write("1")
