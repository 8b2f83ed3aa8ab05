"""The networks of one engine, and the places of its containers on them.

What a container's network consists of is written down before the kernel makes it. So whatever moment the engine dies
at, the next one finds in its database all that may be left over: :meth:`NetworkService.restore`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dockerd import errors
from dockerd.config import Config
from dockerd.dns.companion import bind_sockets
from dockerd.events import EventLog
from dockerd.networks import bridge as bridges
from dockerd.networks import membership, netlink, netns, ports
from dockerd.networks.definition import Definition
from dockerd.networks.live import LiveNetwork, LiveNetworks, logged
from dockerd.networks.model import PREDEFINED, Attachment, Endpoint, Json, Network, network_settings
from dockerd.networks.places import FAILURE, Places, gateway_place
from dockerd.networks.resolver import Resolver, Sockets
from dockerd.networks.store import NetworkStore
from gantry.database import Database

__all__ = ["NetworkService"]

_BRIDGE = "bridge"

Memberships = Mapping[str, Mapping[str, Any]]


class NetworkService:
    """Networks and endpoints. Threads may call it at the same time, for one container one at a time."""

    def __init__(self, config: Config, database: Database, events: EventLog) -> None:
        self._config = config
        self._events = events
        self._store = NetworkStore(database)
        self._live = LiveNetworks(config, self._store)
        self._places = Places(self._live, self._store)
        self._resolver = Resolver(config.exec_root, self._store)
        self._namespaces = os.path.join(config.exec_root, "netns")

    def start(self) -> None:
        """Bring up the networks and the rules. What containers have from before stays as it is.

        Raises an engine error when the host does not allow it.
        """
        os.makedirs(self._namespaces, exist_ok=True)
        self._store.ensure_predefined()
        self._live.start()

    def close(self) -> None:
        """Let go of sockets. Bridges, rules and containers' networks stay; published ports are no longer kept."""
        self._resolver.close()
        self._places.close()
        self._live.close()

    def check(self, memberships: Memberships) -> None:
        """Raise InvalidParameter for settings that their network does not allow; a network may not be there yet."""
        for reference, settings in memberships.items():
            try:
                network = self.network(reference)
            except errors.NotFound:
                continue
            try:
                membership.check(membership.parse(network.name, settings), network)
            except errors.InvalidParameter as error:
                raise errors.InvalidParameter(f"invalid config for network {reference}: {error}") from None

    def allocate(
        self,
        container_id: str,
        *,
        name: str,
        mode: str,
        memberships: Memberships | None = None,
        hostname: str = "",
        exposed_ports: Iterable[str] = (),
        port_bindings: Mapping[str, Sequence[ports.Binding] | None] | None = None,
        publish_all: bool = False,
        mac_address: str = "",
        servers: Sequence[str] = (),
    ) -> Attachment:
        """Make a container's network and publish its ports, before the container exists.

        ``name`` is the container's name; ``mode`` is HostConfig.NetworkMode (``default``, ``bridge``, ``host``,
        ``none``, a network's name, ``container:ID`` with the full id); ``memberships`` are the networks that it is to
        be on, with the settings that a client sent: the one of ``mode`` is the first; ``servers`` are the name servers
        to ask for what is no container, if not the host's. Undo with :meth:`release`, which is also right after a
        failure.

        Raises NotFound for an unknown network, InvalidParameter for a malformed port or address, Conflict when the
        container has a network already or ``container:ID`` has none, Forbidden for an address that is taken,
        SystemFailure when a port is taken or the kernel refuses.
        """
        if mode.startswith("container:"):
            return self._join(mode.partition(":")[2])
        if self._store.endpoints_of(container_id):
            raise errors.Conflict(f"{FAILURE}container {container_id} has a network already")
        wanted = self._wanted(mode, memberships or {}, mac_address)
        exposed = {f"{port}/{protocol}" for port, protocol in map(ports.parse_port, exposed_ports)}
        sandbox = secrets.token_hex(32)
        endpoints = [
            Endpoint(
                container_id=container_id,
                container_name=name.lstrip("/"),
                network=network.name,
                network_id=network.id,
                endpoint_id=secrets.token_hex(32),
                sandbox_id=sandbox,
                namespace="" if network.name == "host" else os.path.join(self._namespaces, container_id),
                exposed=tuple(sorted(exposed)) if network.subnet else (),
                interface=f"eth{number}" if network.subnet else "",
                names=self._names(network, container_id, name, hostname, settings),
                servers=tuple(servers),
                links=settings.links,
            )
            for number, (network, settings) in enumerate(wanted)
        ]
        if wanted[0][0].name == "host":
            self._store.insert(endpoints[0])
        elif wanted[0][0].name == "none":
            self._allocate_none(endpoints[0])
        else:
            asked = (port_bindings or {}, exposed, publish_all)
            endpoints = self._allocate_bridges(endpoints, wanted, asked)
        for endpoint in endpoints:
            self._publish_event("connect", endpoint)
        return self._attachment(endpoints)

    def release(self, container_id: str) -> None:
        """Take a container's network away and make its addresses and ports free. Without one there is nothing to do.

        What the kernel cannot take away now is left for :meth:`restore`; an error is logged, not raised.
        """
        endpoints = self._store.endpoints_of(container_id)
        if not endpoints:
            return
        self._resolver.forget(endpoints)
        self._places.dismantle(endpoints)
        self._resolver.gone(endpoints)
        for endpoint in endpoints:
            self._publish_event("disconnect", endpoint)

    def connect(
        self, container_id: str, network: Network, *, name: str, hostname: str, settings: Mapping[str, Any]
    ) -> Endpoint:
        """Give a running container a place on one more network.

        Raises Forbidden when it is there already or the address is taken, InvalidParameter for settings that do not go
        with the network, SystemFailure when the kernel refuses; nothing is changed then.
        """
        present = self._store.endpoints_of(container_id)
        if any(one.network_id == network.id for one in present):
            raise errors.Forbidden(f"endpoint with name {name.lstrip('/')} already exists in network {network.name}")
        if not present or not present[0].namespace:
            raise errors.Conflict(f"container {container_id} has no network namespace of its own")
        wanted = membership.parse(network.name, settings)
        membership.check(wanted, network)
        live = self._live.get(network)
        numbers = [int(one.interface.removeprefix("eth")) for one in present if one.interface.startswith("eth")]
        endpoint = Endpoint(
            container_id=container_id,
            container_name=name.lstrip("/"),
            network=network.name,
            network_id=network.id,
            endpoint_id=secrets.token_hex(32),
            sandbox_id=present[0].sandbox_id,
            namespace=present[0].namespace,
            exposed=present[0].exposed,
            interface=f"eth{max(numbers, default=-1) + 1}",
            names=self._names(network, container_id, name, hostname, wanted),
            servers=present[0].servers,
            links=wanted.links,
        )
        endpoint = self._places.reserve(endpoint, live, wanted)

        def inside(descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                self._places.plug(endpoint, live, descriptor, own)
                self._places.lead_through([*present, endpoint], own)

        try:
            netns.enter(endpoint.namespace, inside)
            self._places.move_ports([*present, endpoint])
        except (OSError, errors.EngineError) as error:
            self._leave(endpoint)
            if isinstance(error, OSError):
                raise errors.SystemFailure(f"cannot connect {endpoint.container_name}: {error}") from error
            raise
        self._tell_names(container_id, [endpoint])
        self._publish_event("connect", endpoint)
        return endpoint

    def disconnect(self, container_id: str, network: Network) -> Endpoint | None:
        """Take a running container off a network; None when it is not on it."""
        present = self._store.endpoints_of(container_id)
        endpoint = next((one for one in present if one.network_id == network.id), None)
        if endpoint is None:
            return None
        self._leave(endpoint)
        self._tell_names(container_id, [endpoint])
        self._publish_event("disconnect", endpoint)
        return endpoint

    def create(self, wanted: Definition) -> Network:
        """Make a network. Raises as :meth:`LiveNetworks.create`."""
        network = self._live.create(wanted)
        self._events.publish("network", "create", network.id, {"name": network.name, "type": network.driver})
        return network

    def remove(self, reference: str) -> Network:
        """Remove a network. Raises NotFound, and Forbidden for one that is predefined or has containers on it."""
        network = self.network(reference)
        if network.predefined:
            raise errors.Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        if not self._live.remove(network):
            here = ", ".join(
                f'name:"{one.container_name}" id:"{one.endpoint_id[:12]}"'
                for one in self._store.endpoints()
                if one.network_id == network.id
            )
            raise errors.Forbidden(
                f"error while removing network: network {network.name} has active endpoints ({here})"
            )
        self._events.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})
        return network

    def restore(self, live_ids: Iterable[str]) -> None:
        """Take over what belongs to the containers ``live_ids``, and remove whatever belongs to no other.

        Called once after :meth:`start`, before anything is allocated.
        """
        live = frozenset(live_ids)
        self._resolver.forget_others(live)
        kept: list[Endpoint] = []
        for endpoint in self._store.endpoints():
            if endpoint.container_id in live:
                kept.append(endpoint)
                self._places.keep_ports_again(endpoint)
            else:
                self._places.dismantle([endpoint])
        wanted = {os.path.basename(endpoint.namespace) for endpoint in kept if endpoint.namespace}
        for entry in os.listdir(self._namespaces):
            if entry not in wanted:
                with logged("remove a left-over network namespace"):
                    netns.remove(os.path.join(self._namespaces, entry))
        self._places.restore_devices({endpoint.device: endpoint for endpoint in kept if endpoint.device})
        self._resolver.synchronize()

    def rename(self, container_id: str, name: str) -> None:
        """Show a running container under its new name."""
        for endpoint in self._store.endpoints_of(container_id):
            new = name.lstrip("/")
            names = tuple(new if one == endpoint.container_name else one for one in endpoint.names)
            self._store.update(dataclasses.replace(endpoint, container_name=new, names=names))
        self._tell_names(container_id, ())

    def settings(
        self,
        container_id: str,
        mode: str = "default",
        memberships: Memberships | None = None,
        *,
        name: str = "",
        hostname: str = "",
    ) -> Json:
        """The body of ``NetworkSettings``; ``mode`` and ``memberships`` as for :meth:`allocate`."""
        endpoints = self._store.endpoints_of(container_id)
        if mode.startswith("container:"):
            return network_settings({}, (), {}, {})
        known = self._store.networks()
        ids = {network.name: network.id for network in known}
        shown: dict[str, Mapping[str, Any]] = {endpoint.network: {} for endpoint in endpoints}
        shown |= {_name_in(known, reference): sent for reference, sent in (memberships or {}).items()}
        if memberships is None and not shown:
            shown = {_name_in(known, mode): {}}
        names = {}
        for network, settings in shown.items():
            if network not in PREDEFINED:
                aliases = next((value for key, value in settings.items() if key.lower() == "aliases"), None)
                names[network] = membership.dns_names(container_id, name, hostname, tuple(aliases or ()))
        return network_settings(shown, endpoints, ids, names)

    def endpoint(self, container_id: str) -> Endpoint | None:
        """The container's first endpoint while it runs."""
        return next(iter(self._store.endpoints_of(container_id)), None)

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
        live = self._live.default()
        return str(live.bridge.address.ip) if live is not None else ""

    def _wanted(
        self, mode: str, memberships: Memberships, mac_address: str
    ) -> list[tuple[Network, membership.Membership]]:
        """The networks that a container is to be on, that of its mode first, and how."""
        first = self._network_for(mode)
        settings = {network.id: sent for network, sent in self._resolved(memberships)}
        others = [network for network, _ in self._resolved(memberships) if network.id != first.id]
        if mode == "host" or (first.id in settings and first.name == "none"):
            others = []
        elif memberships and first.id not in settings:
            # Disconnected from it since it was created.
            others, first = others[1:], others[0]
        wanted: list[tuple[Network, membership.Membership]] = []
        for network in (first, *others):
            parsed = membership.parse(network.name, settings.get(network.id, {}))
            if network is first and mac_address and not parsed.hardware_address:
                parsed = dataclasses.replace(parsed, hardware_address=membership.parse_mac(mac_address))
            if network.subnet:
                membership.check(parsed, network)
            wanted.append((network, parsed))
        return wanted

    def _resolved(self, memberships: Memberships) -> list[tuple[Network, Mapping[str, Any]]]:
        try:
            return [
                (self.network(_BRIDGE if reference in ("", "default") else reference), settings)
                for reference, settings in memberships.items()
            ]
        except errors.NotFound as error:
            raise errors.NotFound(f"{FAILURE}{error}") from error

    def _network_for(self, mode: str) -> Network:
        reference = _BRIDGE if mode in ("", "default") else mode
        try:
            network = self.network(reference)
        except errors.NotFound as error:
            raise errors.NotFound(f"{FAILURE}{error}") from error
        if network.name == _BRIDGE and self._live.default() is None:
            if mode == _BRIDGE:
                raise errors.InvalidParameter(
                    f"{FAILURE}the engine was started without a default bridge (--bridge none)"
                )
            return self.network("none")
        return network

    def _join(self, other: str) -> Attachment:
        endpoints = self._store.endpoints_of(other)
        if not endpoints:
            raise errors.Conflict(f"cannot join network namespace of a non running container: {other}")
        # The settings of a container without a network of its own are empty; its files are the other's.
        return self._attachment(endpoints, own=False)

    def _attachment(self, endpoints: Sequence[Endpoint], *, own: bool = True) -> Attachment:
        leading = gateway_place(endpoints) or endpoints[0]
        return Attachment(
            endpoints[0].namespace or None,
            self.settings(endpoints[0].container_id) if own else network_settings({}, (), {}, {}),
            leading.address,
            leading.gateway,
            addresses=tuple(endpoint.address for endpoint in endpoints if endpoint.address),
            resolver=any(endpoint.network not in PREDEFINED for endpoint in endpoints),
        )

    def _allocate_none(self, endpoint: Endpoint) -> None:
        self._store.insert(endpoint)

        def inside(_descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                bridges.prepare_loopback(own)

        try:
            netns.create(endpoint.namespace, inside)
        except OSError as error:
            self._store.delete(endpoint)
            raise errors.SystemFailure(f"{FAILURE}cannot make a network namespace: {error}") from error

    def _allocate_bridges(
        self,
        endpoints: Sequence[Endpoint],
        wanted: Sequence[tuple[Network, membership.Membership]],
        asked: tuple[Mapping[str, Sequence[ports.Binding] | None], Iterable[str], bool],
    ) -> list[Endpoint]:
        lives = [self._live.get(network) for network, _ in wanted]
        leading = gateway_place(
            [
                dataclasses.replace(endpoint, gateway=str(live.gateway or ""), priority=settings.priority)
                for endpoint, live, (_, settings) in zip(endpoints, lives, wanted, strict=True)
            ]
        )
        reserved: list[Endpoint] = []
        try:
            for endpoint, live, (_, settings) in zip(endpoints, lives, wanted, strict=True):
                try:
                    made = self._places.reserve(endpoint, live, settings)
                except errors.EngineError as error:
                    raise type(error)(f"{FAILURE}{error}") from error
                reserved.append(made)
                if leading is not None and leading.network_id == made.network_id:
                    requests = ports.parse_requests(*asked, default=live.host_address)
                    reserved[-1] = self._places.publish(made, requests)
            self._make(reserved, lives)
        except BaseException as error:
            self._places.dismantle(reserved)
            if isinstance(error, OSError):
                raise errors.SystemFailure(f"{FAILURE}{error}") from error
            raise
        return reserved

    def _tell_names(self, container_id: str, changed: Sequence[Endpoint]) -> None:
        """The container's places, or its names, are others than before."""
        endpoints = self._store.endpoints_of(container_id)
        if any(one.names for one in (*endpoints, *changed)):
            self._resolver.update(endpoints, [one.network_id for one in changed])

    def _make(self, endpoints: Sequence[Endpoint], lives: Sequence[LiveNetwork]) -> None:
        def inside(descriptor: int) -> Sockets | None:
            with netlink.RouteSocket() as own:
                bridges.prepare_loopback(own)
                for endpoint, live in zip(endpoints, lives, strict=True):
                    self._places.plug(endpoint, live, descriptor, own)
                self._places.lead_through(endpoints, own)
            return bind_sockets() if any(endpoint.names for endpoint in endpoints) else None

        sockets = netns.create(endpoints[0].namespace, inside)
        with contextlib.ExitStack() as stack:
            for own in sockets or ():
                stack.enter_context(own)
            for endpoint in endpoints:
                self._places.open_ports(endpoint)
            if sockets is not None:
                self._resolver.serve(endpoints, sockets)

    def _leave(self, endpoint: Endpoint) -> None:
        """Take the endpoint away; its published ports, and the default route, become those of another."""
        current = self._store.endpoints_of(endpoint.container_id)
        here = next((one for one in current if one.network_id == endpoint.network_id), endpoint)
        left = [one for one in current if one.network_id != endpoint.network_id]
        leading = gateway_place(left)
        if here.published and leading is not None:
            self._places.move_ports([dataclasses.replace(here, gateway=""), *left])
            here = dataclasses.replace(here, published=())
        self._places.unplug(here)

        def inside(_descriptor: int) -> None:
            with netlink.RouteSocket() as own:
                self._places.lead_through(left, own)

        with logged("set the default route"):
            netns.enter(endpoint.namespace, inside)

    @staticmethod
    def _names(
        network: Network, container_id: str, name: str, hostname: str, wanted: membership.Membership
    ) -> tuple[str, ...]:
        if network.predefined:
            return ()
        return tuple(membership.dns_names(container_id, name, hostname, wanted.aliases))

    def _publish_event(self, action: str, endpoint: Endpoint) -> None:
        attributes = {
            "container": endpoint.container_id,
            "name": endpoint.network,
            "type": PREDEFINED.get(endpoint.network, _BRIDGE),
        }
        self._events.publish("network", action, endpoint.network_id, attributes)


def _name_in(known: Sequence[Network], reference: str) -> str:
    """A network's name for its name or id, or the reference when there is none such."""
    if reference in ("", "default"):
        return _BRIDGE
    for network in known:
        if reference in (network.name, network.id) or (len(reference) >= 12 and network.id.startswith(reference)):
            return network.name
    return reference
