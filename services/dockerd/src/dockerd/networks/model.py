"""What the network domain is made of, as immutable values, and their form in the Engine API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Any

from dockerd.networks.nftables import Translation

__all__ = ["Attachment", "Endpoint", "Network", "PublishedPort", "network_settings"]

Json = dict[str, Any]


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
    """One of the networks. ``subnet`` (CIDR) and ``gateway`` are empty for those without addresses."""

    id: str
    name: str
    driver: str
    created_at: str
    subnet: str = ""
    gateway: str = ""
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """A container's place on a network while it runs.

    ``device`` is the host's half of its device pair, ``namespace`` the path of its pinned network namespace; both and
    the addresses are empty where the network has no such thing.
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
        return cls(**fields)


@dataclass(frozen=True)
class Attachment:
    """What a container's start needs to know of its network.

    ``netns_path`` is the namespace to enter; None is the host's own. ``address`` and ``gateway`` are empty without a
    bridge. ``settings`` is the body of ``NetworkSettings``.
    """

    netns_path: str | None
    settings: Json
    address: str = ""
    gateway: str = ""


def network_settings(
    endpoint: Endpoint | None, network: str, network_id: str = "", aliases: Sequence[str] | None = None
) -> Json:
    """``NetworkSettings`` of an inspect.

    ``network`` is the name of the network that the container is to be on, empty for one that uses another's
    (``container:ID``); ``endpoint`` is None while it does not run.
    """
    here = endpoint or Endpoint("", "", network, network_id, "", "")
    addressing: Json = {
        "EndpointID": here.endpoint_id,
        "Gateway": here.gateway,
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": here.address,
        "IPPrefixLen": here.prefix,
        "IPv6Gateway": "",
        "MacAddress": here.hardware_address,
    }
    networks: Json = {}
    if network:
        networks[network] = {
            "IPAMConfig": None,
            "Links": None,
            "Aliases": list(aliases) if aliases else None,
            "DriverOpts": None,
            "GwPriority": 0,
            "NetworkID": here.network_id,
            "DNSNames": None,
            **addressing,
        }
    # The addresses of the default bridge are given at the top too, for clients of before 1.21.
    top = addressing if here.address else {**addressing, "EndpointID": ""}
    return {
        "Bridge": "",
        "SandboxID": here.sandbox_id,
        "SandboxKey": here.namespace,
        "Ports": _ports(here),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        **top,
        "Networks": networks,
    }


def _ports(endpoint: Endpoint) -> Json:
    ports: Json = dict.fromkeys(endpoint.exposed)
    for published in endpoint.published:
        key = f"{published.port}/{published.protocol}"
        ports[key] = [
            *(ports.get(key) or ()),
            {"HostIp": published.host_address, "HostPort": str(published.host_port)},
        ]
    return dict(sorted(ports.items()))
