"""The networks of one engine, and the places of its containers on them.

What a container's network consists of is written down before the kernel makes it. So whatever moment the engine dies
at, the next one finds in its database all that may be left over: :meth:`NetworkService.restore`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from dockerd import errors
from dockerd.config import Config
from dockerd.events import EventLog
from dockerd.networks import bridge as bridges
from dockerd.networks import ipam, netlink, netns, nftables, ports
from dockerd.networks.model import Attachment, Endpoint, Json, Network, PublishedPort, network_settings
from dockerd.networks.store import PREDEFINED, NetworkStore
from gantry.database import Database

__all__ = ["NetworkService"]

_log = logging.getLogger(__name__)

_BRIDGE = "bridge"
_PREFIX = "failed to set up container networking: "
_IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"


class NetworkService:
    """Networks and endpoints. Threads may call it at the same time."""

    def __init__(self, config: Config, database: Database, events: EventLog) -> None:
        self._config = config
        self._events = events
        self._store = NetworkStore(database)
        self._names = bridges.engine_names(config)
        self._namespaces = os.path.join(config.exec_root, "netns")
        self._ports = ports.PortKeeper()
        self._lock = threading.Lock()  # of the pool
        self._pool: ipam.AddressPool | None = None
        self._bridge: bridges.Bridge | None = None
        self._netlink: netlink.RouteSocket | None = None
        self._nftables: nftables.Nftables | None = None

    def start(self) -> None:
        """Bring up the default bridge and the rules. What containers have from before stays as it is.

        Raises an engine error when the host does not allow it.
        """
        os.makedirs(self._namespaces, exist_ok=True)
        self._store.ensure_predefined()
        self._netlink = netlink.RouteSocket()
        if self._config.bridge == "none":
            return
        try:
            self._start_bridge(self._netlink)
        except OSError as error:
            raise errors.SystemFailure(f"cannot set up the default bridge {self._names.bridge}: {error}") from error

    def close(self) -> None:
        """Let go of sockets. Bridge, rules and containers' networks stay; published ports are no longer kept."""
        self._ports.close()
        if self._netlink is not None:
            self._netlink.close()
        if self._nftables is not None:
            self._nftables.close()

    def allocate(
        self,
        container_id: str,
        *,
        name: str,
        mode: str,
        exposed_ports: Iterable[str] = (),
        port_bindings: Mapping[str, Sequence[ports.Binding] | None] | None = None,
        publish_all: bool = False,
        mac_address: str = "",
    ) -> Attachment:
        """Make a container's network and publish its ports, before the container exists.

        ``name`` is the container's name; ``mode`` is HostConfig.NetworkMode (``default``, ``bridge``, ``host``,
        ``none``, ``container:ID`` with the full id). Undo with :meth:`release`, which is also right after a failure.

        Raises NotFound for an unknown network, InvalidParameter for a malformed port or address, Conflict when the
        container has a network already or ``container:ID`` has none, SystemFailure when a port is taken or the kernel
        refuses.
        """
        if mode.startswith("container:"):
            return self._join(mode.partition(":")[2])
        if self._store.endpoint(container_id) is not None:
            raise errors.Conflict(f"{_PREFIX}container {container_id} has a network already")
        network = self._network_for(mode)
        exposed = {f"{port}/{protocol}" for port, protocol in map(ports.parse_port, exposed_ports)}
        endpoint = Endpoint(
            container_id=container_id,
            container_name=name.lstrip("/"),
            network=network.name,
            network_id=network.id,
            endpoint_id=secrets.token_hex(32),
            sandbox_id=secrets.token_hex(32),
        )
        if network.name == "host":
            self._store.insert(endpoint)
        elif network.name == "none":
            endpoint = dataclasses.replace(endpoint, namespace=self._namespace(container_id))
            self._allocate_none(endpoint)
        else:
            requests = ports.parse_requests(port_bindings or {}, exposed, publish_all)
            endpoint = dataclasses.replace(
                endpoint,
                namespace=self._namespace(container_id),
                device=self._names.device_prefix + secrets.token_hex(4)[: 15 - len(self._names.device_prefix)],
                exposed=tuple(sorted(exposed)),
                hardware_address=_parse_mac(mac_address),
            )
            endpoint = self._allocate_bridge(endpoint, requests)
        self._publish_event("connect", endpoint)
        settings = network_settings(endpoint, network.name)
        return Attachment(endpoint.namespace or None, settings, endpoint.address, endpoint.gateway)

    def release(self, container_id: str) -> None:
        """Take a container's network away and make its address and ports free. Without one there is nothing to do.

        What the kernel cannot take away now is left for :meth:`restore`; an error is logged, not raised.
        """
        endpoint = self._store.endpoint(container_id)
        if endpoint is None:
            return
        self._dismantle(endpoint)
        self._publish_event("disconnect", endpoint)

    def restore(self, live_ids: Iterable[str]) -> None:
        """Take over what belongs to the containers ``live_ids``, and remove whatever belongs to no other.

        Called once after :meth:`start`, before anything is allocated.
        """
        live = frozenset(live_ids)
        kept: list[Endpoint] = []
        for endpoint in self._store.endpoints():
            if endpoint.container_id in live:
                kept.append(endpoint)
                self._keep_ports_again(endpoint)
            else:
                self._dismantle(endpoint)
        wanted = {os.path.basename(endpoint.namespace) for endpoint in kept if endpoint.namespace}
        for entry in os.listdir(self._namespaces):
            if entry not in wanted:
                with _logged("remove a left-over network namespace"):
                    netns.remove(os.path.join(self._namespaces, entry))
        devices = {endpoint.device for endpoint in kept}
        for link in self._route_socket().links():
            if link.name.startswith(self._names.device_prefix) and link.name not in devices:
                with _logged("remove a left-over device"):
                    self._route_socket().run([netlink.delete_link(link.name)])

    def rename(self, container_id: str, name: str) -> None:
        """Show a running container under its new name."""
        endpoint = self._store.endpoint(container_id)
        if endpoint is not None:
            self._store.update(dataclasses.replace(endpoint, container_name=name.lstrip("/")))

    def settings(self, container_id: str, mode: str = "default") -> Json:
        """The body of ``NetworkSettings``; ``mode`` tells the network of a container that does not run."""
        endpoint = self._store.endpoint(container_id)
        if endpoint is not None:
            return network_settings(endpoint, endpoint.network)
        name = "" if mode.startswith("container:") else _BRIDGE if mode in ("", "default") else mode
        return network_settings(None, name)

    def endpoint(self, container_id: str) -> Endpoint | None:
        """The container's endpoint while it runs."""
        return self._store.endpoint(container_id)

    def endpoints(self) -> Sequence[Endpoint]:
        """The endpoints of all running containers."""
        return self._store.endpoints()

    def networks(self) -> Sequence[Network]:
        """All networks, by name."""
        return self._store.networks()

    def network(self, reference: str) -> Network:
        """The network with that name, id, or beginning of an id. Raises NotFound, InvalidParameter when several fit."""
        known = self._store.networks()
        for network in known:
            if reference in (network.name, network.id):
                return network
        found = [network for network in known if reference and network.id.startswith(reference)]
        if len(found) > 1:
            raise errors.InvalidParameter(f"network {reference} is ambiguous ({len(found)} matches found on name)")
        if not found:
            raise errors.NotFound(f"network {reference} not found")
        return found[0]

    @property
    def gateway(self) -> str:
        """The default bridge's address: what ``host-gateway`` means. Empty without a bridge."""
        return str(self._bridge.address.ip) if self._bridge is not None else ""

    def _start_bridge(self, host: netlink.RouteSocket) -> None:
        name = self._names.bridge
        remembered = self._store.bridge_address(_BRIDGE)
        address = bridges.choose_address(host, self._config, name, remembered)
        endpoints = [endpoint for endpoint in self._store.endpoints() if endpoint.address]
        if not self._config.bridge and not endpoints:
            bridges.remove_other(host, name, address)
        self._bridge = bridges.ensure_bridge(host, name, address, self._config.mtu)
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
        used = [IPv4Address(endpoint.address) for endpoint in endpoints]
        self._pool = ipam.AddressPool(address.network, [address.ip], used)
        _enable_forwarding()
        self._nftables = nftables.Nftables()
        translations = [one for endpoint in endpoints for one in endpoint.translations()]
        self._nftables.run(nftables.install_table(self._names.table, name, address.network, translations))
        self._pass_firewalls(self._nftables)

    def _pass_firewalls(self, rules: nftables.Nftables) -> None:
        """Be accepted where another Docker keeps a chain for that; say so when another's rules keep containers in."""
        with _logged("look for other firewalls"):
            name = self._names.bridge
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

    def _network_for(self, mode: str) -> Network:
        reference = _BRIDGE if mode in ("", "default") else mode
        try:
            network = self.network(reference)
        except errors.NotFound as error:
            raise errors.NotFound(f"{_PREFIX}{error}") from error
        if network.name == _BRIDGE and self._bridge is None:
            if mode == _BRIDGE:
                raise errors.InvalidParameter(
                    f"{_PREFIX}the engine was started without a default bridge (--bridge none)"
                )
            return self.network("none")
        return network

    def _join(self, other: str) -> Attachment:
        endpoint = self._store.endpoint(other)
        if endpoint is None:
            raise errors.Conflict(f"cannot join network namespace of a non running container: {other}")
        # The settings of a container without a network of its own are empty; its files are the other's.
        return Attachment(endpoint.namespace or None, network_settings(None, ""), endpoint.address, endpoint.gateway)

    def _allocate_none(self, endpoint: Endpoint) -> None:
        self._store.insert(endpoint)

        def inside(_descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                bridges.prepare_loopback(own)

        try:
            netns.create(endpoint.namespace, inside)
        except OSError as error:
            self._store.delete(endpoint.container_id)
            raise errors.SystemFailure(f"{_PREFIX}cannot make a network namespace: {error}") from error

    def _allocate_bridge(self, endpoint: Endpoint, requests: Sequence[ports.PortRequest]) -> Endpoint:
        bridge, pool = self._bridge, self._pool
        assert bridge is not None
        assert pool is not None
        with self._lock:
            address = pool.take()
        hardware = bytes.fromhex(endpoint.hardware_address.replace(":", "")) or ipam.hardware_address(address)
        endpoint = dataclasses.replace(
            endpoint,
            address=str(address),
            prefix=bridge.address.network.prefixlen,
            gateway=str(bridge.address.ip),
            hardware_address=hardware.hex(":"),
        )
        try:
            endpoint = dataclasses.replace(endpoint, published=self._keep_ports(endpoint, requests))
            self._store.insert(endpoint)
        except BaseException:
            self._give_back(endpoint)
            raise
        try:
            self._connect(endpoint, bridge, address, hardware)
        except (OSError, errors.EngineError) as error:
            self._dismantle(endpoint)
            if isinstance(error, OSError):
                raise errors.SystemFailure(f"{_PREFIX}{error}") from error
            raise
        return endpoint

    def _connect(self, endpoint: Endpoint, bridge: bridges.Bridge, address: IPv4Address, hardware: bytes) -> None:
        def inside(descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                bridges.prepare_loopback(own)
                bridges.connect(self._route_socket(), own, bridge, endpoint.device, descriptor, address, hardware)

        netns.create(endpoint.namespace, inside)
        self._rules().run(nftables.add_translations(self._names.table, endpoint.translations()))

    def _keep_ports(self, endpoint: Endpoint, requests: Sequence[ports.PortRequest]) -> tuple[PublishedPort, ...]:
        """Reserve a host port for each request, or none. Raises SystemFailure in the real engine's words."""
        published: list[PublishedPort] = []
        for request in requests:
            host = request.host_address
            try:
                port = self._ports.keep(endpoint.container_id, request)
            except ports.BindError as error:
                if self._ports.has(request.protocol, host, error.port):
                    reason = f"Bind for {host}:{error.port} failed: port is already allocated"
                else:
                    reason = (
                        f"failed to bind host port for {host}:{error.port}:"
                        f"{endpoint.address}:{request.port}/{request.protocol}: {error.reason}"
                    )
                raise errors.SystemFailure(
                    f"{_PREFIX}driver failed programming external connectivity on endpoint "
                    f"{endpoint.container_name} ({endpoint.endpoint_id}): {reason}"
                ) from error
            published.append(PublishedPort(request.port, request.protocol, str(host), port))
        return tuple(published)

    def _keep_ports_again(self, endpoint: Endpoint) -> None:
        """Reserve the ports of a container that runs since before this engine's start."""
        for port in endpoint.published:
            host = IPv4Address(port.host_address)
            request = ports.PortRequest(port.port, port.protocol, host, port.host_port, port.host_port)
            try:
                self._ports.keep(endpoint.container_id, request)
            except ports.BindError as error:
                # The container keeps the traffic: the translation comes before whoever took the port meanwhile.
                _log.warning(
                    "host port %s:%d/%s of running container %s is now also bound by another program: %s",
                    port.host_address,
                    port.host_port,
                    port.protocol,
                    endpoint.container_name,
                    error.reason,
                )

    def _dismantle(self, endpoint: Endpoint) -> None:
        """Undo everything of an endpoint, however much of it there is."""
        if endpoint.published:
            with _logged("close published ports"):
                self._delete_translations(endpoint)
        if endpoint.device:
            # The pair goes with the namespace, but later: its address may be another's by then.
            with contextlib.suppress(OSError):
                self._route_socket().run([netlink.detach(endpoint.device)])
        if endpoint.namespace:
            with _logged("remove a network namespace"):
                netns.remove(endpoint.namespace)
        self._store.delete(endpoint.container_id)
        self._give_back(endpoint)

    def _delete_translations(self, endpoint: Endpoint) -> None:
        rules = self._rules()
        for translation in endpoint.translations():
            # One by one: a half-made endpoint has some of them, and nftables takes all of a transaction or nothing.
            with contextlib.suppress(errors.SystemFailure):
                rules.run(nftables.delete_translations(self._names.table, [translation]))

    def _give_back(self, endpoint: Endpoint) -> None:
        """Make the address and the ports of an endpoint free again."""
        self._ports.release(endpoint.container_id)
        with self._lock:
            if endpoint.address and self._pool is not None:
                self._pool.give_back(IPv4Address(endpoint.address))

    def _publish_event(self, action: str, endpoint: Endpoint) -> None:
        attributes = {
            "container": endpoint.container_id,
            "name": endpoint.network,
            "type": PREDEFINED.get(endpoint.network, endpoint.network),
        }
        self._events.publish("network", action, endpoint.network_id, attributes)

    def _namespace(self, container_id: str) -> str:
        return os.path.join(self._namespaces, container_id)

    def _route_socket(self) -> netlink.RouteSocket:
        if self._netlink is None:
            raise errors.Unavailable("the networks are not up")
        return self._netlink

    def _rules(self) -> nftables.Nftables:
        if self._nftables is None:
            raise errors.Unavailable("the default bridge is not up")
        return self._nftables


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Go on after a failure: what is left over is found again at the next start."""
    try:
        yield
    except (OSError, errors.EngineError) as error:
        _log.error("cannot %s: %s", what, error)


def _parse_mac(text: str) -> str:
    """A hardware address in its usual form, or empty. Raises InvalidParameter."""
    if not text:
        return ""
    try:
        value = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        value = b""
    if len(value) != 6:
        raise errors.InvalidParameter(f"{text} is not a valid mac address")
    return value.hex(":")


def _enable_forwarding() -> None:
    """Let the kernel pass packets on between devices: without it no container reaches further than the host."""
    with open(_IP_FORWARD, "r+") as file:
        if file.read().strip() != "1":
            file.seek(0)
            file.write("1")
