"""Containers' places on networks with a bridge: address, device pair, routes, published ports; made and undone."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from dockerd import errors
from dockerd.networks import bridge as bridges
from dockerd.networks import ipam, netlink, netns, nftables, ports
from dockerd.networks.live import LiveNetwork, LiveNetworks, logged
from dockerd.networks.membership import Membership
from dockerd.networks.model import Endpoint, PublishedPort
from dockerd.networks.store import NetworkStore

__all__ = ["FAILURE", "Places", "gateway_place"]

_log = logging.getLogger(__name__)

FAILURE = "failed to set up container networking: "
"""What the message of a container's start begins with when its network is the reason."""


def gateway_place(endpoints: Sequence[Endpoint]) -> Endpoint | None:
    """The endpoint that leads to everything else: by priority, then by the network's name, as the real engine chooses.

    None when every network is internal.
    """
    leading = [endpoint for endpoint in endpoints if endpoint.gateway]
    return min(leading, key=lambda one: (-one.priority, one.network)) if leading else None


class Places:
    """Makes endpoints and undoes them. Threads may call it at the same time, for one container one at a time."""

    def __init__(self, live: LiveNetworks, store: NetworkStore) -> None:
        self._live = live
        self._store = store
        self._ports = ports.PortKeeper()

    def close(self) -> None:
        """Published ports are no longer kept; everything else stays."""
        self._ports.close()

    def reserve(self, endpoint: Endpoint, live: LiveNetwork, wanted: Membership) -> Endpoint:
        """Give an endpoint its address and its names in the kernel, and write it down; nothing is made yet.

        Raises Forbidden for an address that is taken, Unavailable when none is left, NotFound for a network that is
        being removed.
        """
        address = self._live.take_address(live, wanted.address)
        hardware = wanted.hardware_address or ipam.hardware_address(address).hex(":")
        prefix = self._live.names.device_prefix
        made = dataclasses.replace(
            endpoint,
            device=prefix + secrets.token_hex(4)[: 15 - len(prefix)],
            address=str(address),
            prefix=live.bridge.address.network.prefixlen,
            gateway=str(live.gateway or ""),
            hardware_address=hardware,
            priority=wanted.priority,
        )
        try:
            self._store.insert(made)
        except BaseException:
            self._live.give_address_back(made.network_id, made.address)
            raise
        return made

    def plug(self, endpoint: Endpoint, live: LiveNetwork, descriptor: int, own: netlink.RouteSocket) -> None:
        """Make the device pair of a reserved endpoint.

        Called in the container's namespace, with its descriptor and a socket of it.
        """
        hardware = bytes.fromhex(endpoint.hardware_address.replace(":", ""))
        bridges.connect(
            self._live.host,
            own,
            live.bridge,
            endpoint.device,
            descriptor,
            IPv4Address(endpoint.address),
            hardware,
            interface=endpoint.interface,
        )

    def publish(self, endpoint: Endpoint, requests: Sequence[ports.PortRequest]) -> Endpoint:
        """Keep the host ports of a reserved endpoint, and write down which. Raises SystemFailure for a taken one."""
        if not requests:
            return endpoint
        published = dataclasses.replace(endpoint, published=self._keep_ports(endpoint, requests))
        self._store.update(published)
        return published

    def open_ports(self, endpoint: Endpoint) -> None:
        """Let in what comes to the published ports."""
        if endpoint.published:
            self._live.rules.run(nftables.add_translations(self._live.names.table, endpoint.translations()))

    def lead_through(self, endpoints: Sequence[Endpoint], own: netlink.RouteSocket) -> None:
        """Set the default route of the container's namespace, which ``own`` is of, as its endpoints want it."""
        leading = gateway_place(endpoints)
        if leading is not None:
            own.run([netlink.add_default_route(IPv4Address(leading.gateway), replace=True)])

    def move_ports(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """Lead the published ports to the endpoint that has the default route; returns the endpoints as they are then.

        Replies leave by the default route, so that is where connections must come in.
        """
        leading = gateway_place(endpoints)
        published = tuple(port for endpoint in endpoints for port in endpoint.published)
        if leading is None or not published or leading.published:
            return list(endpoints)
        changed: list[Endpoint] = []
        with self._live.rule_changes:
            for endpoint in endpoints:
                if endpoint.published:
                    self._delete_translations(endpoint)
                    self._store.update(dataclasses.replace(endpoint, published=()))
                new = dataclasses.replace(endpoint, published=published if endpoint is leading else ())
                changed.append(new)
            moved = next(endpoint for endpoint in changed if endpoint.published)
            self._store.update(moved)
            self.open_ports(moved)
        return changed

    def unplug(self, endpoint: Endpoint) -> None:
        """Take the device pair of a running container away, and its address; its published ports stay kept."""
        if endpoint.device:
            with logged("remove a device pair"), contextlib.suppress(FileNotFoundError):
                self._live.host.run([netlink.delete_link(endpoint.device)])
        self._forget(endpoint)

    def dismantle(self, endpoints: Sequence[Endpoint]) -> None:
        """Undo everything of a container's endpoints, however much of it there is."""
        for endpoint in endpoints:
            if endpoint.device:
                # The pair goes with the namespace, but later: its address may be another's by then.
                with contextlib.suppress(OSError):
                    self._live.host.run([netlink.detach(endpoint.device)])
        for namespace in {endpoint.namespace for endpoint in endpoints if endpoint.namespace}:
            with logged("remove a network namespace"):
                netns.remove(namespace)
        for endpoint in endpoints:
            self._forget(endpoint)
            self._ports.release(endpoint.container_id)

    def keep_ports_again(self, endpoint: Endpoint) -> None:
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

    def restore_devices(self, wanted: Mapping[str, Endpoint]) -> None:
        """Remove devices that belong to no container, and see to it that the others are on their bridges."""
        host = self._live.host
        for link in host.links():
            endpoint = wanted.get(link.name)
            if endpoint is not None:
                with logged("put a container's device back on its bridge"):
                    bridges.reattach(host, self._live.bridge(endpoint.network_id, endpoint.network), link)
            elif link.name.startswith(self._live.names.device_prefix):
                with logged("remove a left-over device"):
                    host.run([netlink.delete_link(link.name)])

    def _forget(self, endpoint: Endpoint) -> None:
        if endpoint.published:
            with self._live.rule_changes, logged("close published ports"):
                self._delete_translations(endpoint)
                self._store.delete(endpoint)
        else:
            self._store.delete(endpoint)
        self._live.give_address_back(endpoint.network_id, endpoint.address)

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
                    f"{FAILURE}driver failed programming external connectivity on endpoint "
                    f"{endpoint.container_name} ({endpoint.endpoint_id}): {reason}"
                ) from error
            published.append(PublishedPort(request.port, request.protocol, str(host), port))
        return tuple(published)

    def _delete_translations(self, endpoint: Endpoint) -> None:
        rules = self._live.rules
        for translation in endpoint.translations():
            # One by one: a half-made endpoint has some of them, and nftables takes all of a transaction or nothing.
            with contextlib.suppress(errors.SystemFailure):
                rules.run(nftables.delete_translations(self._live.names.table, [translation]))
