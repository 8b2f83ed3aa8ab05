"""What the network domain is made of, as immutable values, and their form in the Engine API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from ipaddress import IPv4Address
from typing import Any

from dockerd.networks.nftables import Translation

__all__ = ["PREDEFINED", "Attachment", "Endpoint", "Network", "PublishedPort", "network_settings"]

Json = dict[str, Any]

PREDEFINED: Mapping[str, str] = {"bridge": "bridge", "host": "host", "none": "null"}
"""Networks that are always there, and their drivers."""


@dataclass(frozen=True)
class PublishedPort:
    """A container's port and the host's address and port that lead to it."""

    port: int
    protocol: str
    host_address: str
    host_port: int

    def translation(self, address: str) -> Translation:
        """The rule for it, when the container has ``address``."""
        host = IPv4Address(self.host_address)
        return Translation(self.protocol, host, self.host_port, IPv4Address(address), self.port)


@dataclass(frozen=True)
class Network:
    """One of the networks. ``subnet`` (CIDR) and ``gateway`` are empty for those without addresses.

    ``device`` is its bridge; ``configured`` tells that the subnet was the user's choice.
    """

    id: str
    name: str
    driver: str
    created_at: str
    subnet: str = ""
    gateway: str = ""
    options: tuple[tuple[str, str], ...] = ()
    device: str = ""
    configured: bool = False
    ip_range: str = ""
    auxiliary: tuple[tuple[str, str], ...] = ()
    internal: bool = False
    attachable: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    ipam_options: tuple[tuple[str, str], ...] | None = None

    @property
    def predefined(self) -> bool:
        """Whether it is one of those that are always there."""
        return self.name in PREDEFINED

    @property
    def created(self) -> float:
        """Its age's beginning, in seconds since 1970."""
        return datetime.fromisoformat(self.created_at[:26] + "+00:00").timestamp()


@dataclass(frozen=True)
class Endpoint:
    """A container's place on a network while it runs.

    ``device`` is the host's half of its device pair, ``namespace`` the path of its pinned network namespace; both and
    the addresses are empty where the network has no such thing. ``names`` are what others on a user-defined network
    call it, ``links`` what only it calls others (alias, name), ``servers`` the name servers that the user chose for it.
    """

    container_id: str
    container_name: str
    network: str
    network_id: str
    endpoint_id: str
    sandbox_id: str
    namespace: str = ""
    device: str = ""
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    hardware_address: str = ""
    exposed: tuple[str, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    interface: str = "eth0"
    priority: int = 0
    names: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    def translations(self) -> list[Translation]:
        """The rules for all its published ports."""
        return [port.translation(self.address) for port in self.published]

    def encode(self) -> str:
        """For the database."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Endpoint:
        """The inverse of :meth:`encode`."""
        fields: Json = json.loads(text)
        fields["published"] = tuple(PublishedPort(**port) for port in fields["published"])
        fields["exposed"] = tuple(fields["exposed"])
        fields["names"] = tuple(fields.get("names", ()))
        fields["servers"] = tuple(fields.get("servers", ()))
        fields["links"] = tuple((alias, target) for alias, target in fields.get("links", ()))
        return cls(**fields)


@dataclass(frozen=True)
class Attachment:
    """What a container's start needs to know of its network.

    ``netns_path`` is the namespace to enter; None is the host's own. ``address`` and ``gateway`` are empty without a
    bridge. ``settings`` is the body of ``NetworkSettings``; ``addresses`` are those on all networks. ``resolver`` tells
    that one of the networks is the user's, whose names are to be resolved.
    """

    netns_path: str | None
    settings: Json
    address: str = ""
    gateway: str = ""
    addresses: tuple[str, ...] = ()
    resolver: bool = False


def network_settings(
    memberships: Mapping[str, Mapping[str, Any]],
    endpoints: Sequence[Endpoint],
    network_ids: Mapping[str, str],
    names: Mapping[str, Sequence[str]],
) -> Json:
    """``NetworkSettings`` of an inspect.

    ``memberships`` are the networks that the container is to be on with the settings that a client sent, empty for one
    that uses another's (``container:ID``); ``endpoints`` its places on them while it runs; ``names`` its DNS names by
    network, for those that have any.
    """
    places = {endpoint.network: endpoint for endpoint in endpoints}
    networks = {
        network: {
            **_as_sent(settings),
            **_addressing(places.get(network)),
            "NetworkID": network_ids.get(network, ""),
            "DNSNames": list(names[network]) if network in names else None,
        }
        for network, settings in memberships.items()
    }
    for network, body in networks.items():
        if network not in places:
            body["MacAddress"] = str(_lower(memberships[network]).get("macaddress") or "")
    first = endpoints[0] if endpoints else Endpoint("", "", "", "", "", "")
    # The addresses of the default bridge are given at the top too, for clients of before 1.21.
    return {
        "Bridge": "",
        "SandboxID": first.sandbox_id,
        "SandboxKey": first.namespace,
        "Ports": _ports(endpoints),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        **_addressing(places.get("bridge")),
        "Networks": networks,
    }


def _lower(settings: Mapping[str, Any]) -> Json:
    return {name.lower(): value for name, value in settings.items()}


def _as_sent(settings: Mapping[str, Any]) -> Json:
    sent = _lower(settings)
    return {
        "IPAMConfig": sent.get("ipamconfig"),
        "Links": sent.get("links"),
        "Aliases": sent.get("aliases"),
        "DriverOpts": sent.get("driveropts"),
        "GwPriority": sent.get("gwpriority") or 0,
    }


def _addressing(endpoint: Endpoint | None) -> Json:
    here = endpoint or Endpoint("", "", "", "", "", "")
    return {
        "EndpointID": here.endpoint_id,
        "Gateway": here.gateway,
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": here.address,
        "IPPrefixLen": here.prefix,
        "IPv6Gateway": "",
        "MacAddress": here.hardware_address,
    }


def _ports(endpoints: Sequence[Endpoint]) -> Json:
    ports: Json = {}
    for endpoint in endpoints:
        if endpoint.gateway:
            ports.update({key: None for key in endpoint.exposed if key not in ports})
        for published in endpoint.published:
            key = f"{published.port}/{published.protocol}"
            ports[key] = [
                *(ports.get(key) or ()),
                {"HostIp": published.host_address, "HostPort": str(published.host_port)},
            ]
    return dict(sorted(ports.items()))
