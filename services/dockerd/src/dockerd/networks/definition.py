"""What a request to create a network asks for, checked as the real engine checks it.

Everything wrong with the addresses is told at once; the words are the real engine's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from dockerd import errors

__all__ = ["BRIDGE_OPTION", "Addressing", "Definition", "option_flag", "parse_addressing", "parse_options"]

BRIDGE_OPTION = "com.docker.network.bridge."
"""What the names of the bridge driver's options begin with."""

_MTU_OPTION = "com.docker.network.driver.mtu"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
# What the kernel takes, without what means something in a ruleset.
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_FLAGS = ("enable_icc", "enable_ip_masquerade", "default_bridge", "inhibit_ipv4")
_REFUSED = ("inhibit_ipv4", "default_bridge", "gateway_mode_ipv4", "trusted_host_interfaces")


@dataclass(frozen=True)
class Addressing:
    """The addresses that the user chose; empty is for the engine to choose. ``auxiliary`` are never given away."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Definition:
    """A network as the user wants it."""

    name: str
    addressing: Addressing = Addressing()
    internal: bool = False
    attachable: bool = False
    options: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    ipam_options: tuple[tuple[str, str], ...] | None = None


def parse_addressing(subnet: str, ip_range: str, gateway: str, auxiliary: Mapping[str, str]) -> Addressing:
    """One entry of ``IPAM.Config``. Raises InvalidParameter with everything that is wrong with it."""
    try:
        network = IPv4Network(subnet, strict=False)
        if "/" not in subnet:
            raise AddressValueError
    except ValueError:
        raise _invalid([f"invalid subnet {subnet}: invalid CIDR block notation"]) from None
    wrong: list[str] = []
    if str(network.network_address) != subnet.partition("/")[0]:
        wrong.append(f"invalid subnet {subnet}: it should be {network}")
    if ip_range:
        wrong += _wrong_range(ip_range, network)
    if gateway:
        wrong += _wrong_address("gateway", gateway, gateway, network)
    for name, address in sorted(auxiliary.items()):
        wrong += _wrong_address("auxiliary address", name, address, network)
    if wrong:
        raise _invalid(wrong)
    if network.prefixlen > 30:
        raise errors.InvalidParameter(f"subnet {network} has no room for a gateway and a container: take a larger one")
    return Addressing(str(network), ip_range, gateway, tuple(sorted(auxiliary.items())))


def _wrong_range(ip_range: str, network: IPv4Network) -> list[str]:
    try:
        part = IPv4Network(ip_range, strict=False)
        if "/" not in ip_range:
            raise AddressValueError
    except ValueError:
        return [f"invalid ip-range {ip_range}: invalid CIDR block notation"]
    if not part.subnet_of(network):
        return [f"invalid ip-range {ip_range}: parent subnet {network} doesn't contain ip-range"]
    if str(part.network_address) != ip_range.partition("/")[0]:
        return [f"invalid ip-range {ip_range}: it should be {part}"]
    return []


def _wrong_address(kind: str, name: str, text: str, network: IPv4Network) -> list[str]:
    try:
        address = IPv4Address(text)
    except ValueError:
        return [f"invalid {kind} {name}: invalid address"]
    if address not in network:
        return [f"invalid {kind} {name}: parent subnet {network} doesn't contain this address"]
    return []


def _invalid(wrong: list[str]) -> errors.InvalidParameter:
    lines = wrong if len(wrong) == 1 else [f"* {line}" for line in wrong]
    return errors.InvalidParameter("invalid network config:\n" + "\n".join(lines))


def parse_options(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The driver's options. One that the driver does not know is kept and has no effect, as in the real engine.

    Raises InvalidParameter for a value that is none, NotSupported for an option of the real driver that this one lacks.
    """
    for name, value in options.items():
        own = name.removeprefix(BRIDGE_OPTION) if name.startswith(BRIDGE_OPTION) else ""
        if own in _FLAGS and value not in (*_TRUE, *_FALSE):
            raise errors.InvalidParameter(
                f'failed to parse {name} value: {value} (strconv.ParseBool: parsing "{value}": invalid syntax)'
            )
        if own in _REFUSED and value not in ("", "nat", *_FALSE):
            raise errors.NotSupported(f"option {name}={value} of the bridge driver is not supported by this engine")
        if own == "host_binding_ipv4":
            try:
                IPv4Address(value)
            except ValueError:
                raise errors.InvalidParameter(f"failed to parse {name} value: {value} (nil ip)") from None
        if own == "name" and _DEVICE_NAME.fullmatch(value) is None:
            raise errors.InvalidParameter(f"{name}: {value!r} cannot be the name of a network device")
        if name == _MTU_OPTION and (not value.isdecimal() or not 68 <= int(value) <= 65535):
            raise errors.InvalidParameter(
                f'failed to parse {name} value: {value} (strconv.Atoi: parsing "{value}": invalid syntax)'
            )
    return tuple(sorted(options.items()))


def option_flag(options: Mapping[str, str], name: str, default: bool = True) -> bool:
    """A boolean option of the bridge driver, by the last part of its name."""
    value = options.get(BRIDGE_OPTION + name)
    return default if value is None else value in _TRUE
