"""How a container wants to be on a network: one entry of ``NetworkingConfig.EndpointsConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dockerd import errors
from dockerd.networks.model import Network

__all__ = ["Membership", "check", "dns_names", "parse", "parse_mac"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Membership:
    """The settings that have an effect; empty means that the engine chooses.

    ``links`` are names that only this container has for others: (its name, the other's).
    """

    address: str = ""
    hardware_address: str = ""
    aliases: tuple[str, ...] = ()
    priority: int = 0
    links: tuple[tuple[str, str], ...] = ()


def parse(network: str, settings: Mapping[str, Any]) -> Membership:
    """Read the settings as a client sent them, names in any letter case.

    Raises InvalidParameter for a value of the wrong kind, NotSupported naming what this engine does not have.
    """
    plain = {name.lower(): value for name, value in settings.items() if value}
    ipam = plain.get("ipamconfig") or {}
    if not isinstance(ipam, Mapping):
        raise errors.InvalidParameter(f"EndpointsConfig.{network}.IPAMConfig: an object is wanted")
    addresses = {name.lower(): value for name, value in ipam.items() if value}
    for name in ("ipv6address", "linklocalips"):
        if addresses.get(name):
            raise errors.NotSupported(f"EndpointsConfig.{network}.IPAMConfig.{name} is not supported by this engine")
    if plain.get("driveropts"):
        raise errors.NotSupported(f"EndpointsConfig.{network}.DriverOpts is not supported by this engine")
    aliases = plain.get("aliases") or ()
    priority = plain.get("gwpriority") or 0
    if not isinstance(aliases, (list, tuple)) or not all(isinstance(one, str) for one in aliases):
        raise errors.InvalidParameter(f"EndpointsConfig.{network}.Aliases: a list of strings is wanted")
    if not isinstance(priority, int):
        raise errors.InvalidParameter(f"EndpointsConfig.{network}.GwPriority: a whole number is wanted")
    return Membership(
        links=_parse_links(network, plain.get("links") or ()),
        address=str(addresses.get("ipv4address") or ""),
        hardware_address=parse_mac(str(plain.get("macaddress") or "")),
        aliases=tuple(aliases),
        priority=priority,
    )


def _parse_links(network: str, links: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(links, (list, tuple)) or not all(isinstance(one, str) for one in links):
        raise errors.InvalidParameter(f"EndpointsConfig.{network}.Links: a list of strings is wanted")
    found: list[tuple[str, str]] = []
    for link in links:
        parts = link.split(":")
        if len(parts) > 2 or not all(parts):
            raise errors.InvalidParameter(f"bad format for links: {link}")
        target = parts[0].lstrip("/")
        found.append((parts[-1].lstrip("/").lower(), target.lower()))
    return tuple(found)


def check(wanted: Membership, network: Network) -> None:
    """Raise InvalidParameter, in the real engine's words, for what ``network`` does not allow."""
    wrong: list[str] = []
    if network.predefined and wanted.aliases:
        wrong.append("network-scoped alias is supported only for containers in user defined networks")
    if network.predefined and wanted.links:
        raise errors.NotSupported("links on the default bridge are not supported by this engine: use another network")
    if wanted.address:
        if network.predefined:
            wrong.append("user specified IP address is supported on user defined networks only")
        try:
            address: IPv4Address | None = IPv4Address(wanted.address)
        except ValueError:
            address = None
            wrong.append(f"invalid IPv4 address: {wanted.address}")
        if not network.configured and (not network.predefined or not network.subnet):
            wrong.append(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        elif address is None or address not in IPv4Network(network.subnet) or not network.configured:
            wrong.append(f"no configured subnet or ip-range contain the IP address {wanted.address}")
    if wrong:
        lines = wrong if len(wrong) == 1 else [f"* {line}" for line in wrong]
        raise errors.InvalidParameter("invalid endpoint settings:\n" + "\n".join(lines))


def dns_names(container_id: str, container_name: str, hostname: str, aliases: tuple[str, ...]) -> list[str]:
    """The names by which others on the network find the container, each once, the container's own name first."""
    names = (container_name.lstrip("/"), *aliases, container_id[:12], hostname)
    return list(dict.fromkeys(name for name in names if name))


def parse_mac(text: str) -> str:
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
