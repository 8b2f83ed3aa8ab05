"""Published ports: what a request asks for, which host ports that becomes, and keeping those from others.

A host port is kept by a socket that is bound to it and, for TCP, listens: nobody else can take the port then. No
connection ever arrives at it, because the translation comes first, so nobody needs to accept.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from dockerd import errors

__all__ = ["BindError", "Binding", "PortKeeper", "PortRequest", "bind_first_free", "parse_port", "parse_requests"]

_PROTOCOLS = ("tcp", "udp", "sctp")
_PORT = re.compile(r"([0-9]{1,5})(?:/([a-z]+))?")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_IPPROTO_SCTP = 132
_ANY = IPv4Address(0)

# Docker's words for what can go wrong; the C library's begin with a capital letter.
_WORDS = {
    errno.EADDRINUSE: "address already in use",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
    errno.EACCES: "permission denied",
}


class Binding(Protocol):
    """One entry of ``HostConfig.PortBindings``; empty means any."""

    @property
    def host_ip(self) -> str: ...
    @property
    def host_port(self) -> str: ...


class BindError(Exception):
    """No host port of a request could be had. ``reason`` is for the user; ``code`` an errno."""

    def __init__(self, port: int, code: int) -> None:
        self.port = port
        self.code = code
        self.reason = _WORDS.get(code, os.strerror(code).lower())
        super().__init__(self.reason)


@dataclass(frozen=True)
class PortRequest:
    """A container port and where it is wanted on the host. ``first`` 0: any ephemeral port."""

    port: int
    protocol: str
    host_address: IPv4Address
    first: int
    last: int


def parse_port(text: str) -> tuple[int, str]:
    """Split ``80/tcp``. Raises InvalidParameter."""
    match = _PORT.fullmatch(text.lower())
    if match is None or not 0 < int(match[1]) < 1 << 16:
        raise errors.InvalidParameter(f'invalid port specification: "{text}"')
    protocol = match[2] or "tcp"
    if protocol not in _PROTOCOLS:
        raise errors.InvalidParameter(f'invalid port specification: "{text}": unknown protocol "{protocol}"')
    return int(match[1]), protocol


def parse_requests(
    bindings: Mapping[str, Sequence[Binding] | None],
    exposed: Iterable[str],
    publish_all: bool,
    default: IPv4Address = _ANY,
) -> list[PortRequest]:
    """What ``HostConfig.PortBindings`` and ``PublishAllPorts`` ask for, sorted by container port.

    ``default`` is the host's address where none is named.

    Raises InvalidParameter for what is no port or address, NotSupported for an IPv6 address.
    """
    requests: list[PortRequest] = []
    for text, wanted in bindings.items():
        port, protocol = parse_port(text)
        if not wanted:
            requests.append(PortRequest(port, protocol, default, 0, 0))
        for binding in wanted or ():
            first, last = _host_range(binding.host_port)
            requests.append(PortRequest(port, protocol, _host_address(binding.host_ip or str(default)), first, last))
    if publish_all:
        asked = {(request.port, request.protocol) for request in requests}
        for text in exposed:
            port, protocol = parse_port(text)
            if (port, protocol) not in asked:
                requests.append(PortRequest(port, protocol, default, 0, 0))
    return sorted(requests, key=lambda one: (one.port, one.protocol, one.first, one.host_address))


def _host_address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text or "0.0.0.0")
    except ValueError:
        if ":" in text:
            raise errors.NotSupported(
                f"publishing a port on the IPv6 address {text} is not supported by this engine: give an IPv4 address"
            ) from None
        raise errors.InvalidParameter(f"invalid IP address: {text}") from None


def _host_range(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    match = _RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 0 <= first <= last < 1 << 16 or (first == 0 and last != 0):
        raise errors.InvalidParameter(f"invalid port specification: {text!r}")
    return first, last


def bind_first_free(request: PortRequest) -> tuple[int, socket.socket]:
    """Keep the first host port that the request allows and nobody has; returns it with what keeps it.

    Raises :class:`BindError` with the last port's reason.
    """
    if request.first == 0:
        # The kernel knows best which of the ephemeral ports are free.
        keeper = _bind(request.protocol, request.host_address, 0)
        return int(keeper.getsockname()[1]), keeper
    for port in range(request.first, request.last + 1):
        try:
            return port, _bind(request.protocol, request.host_address, port)
        except BindError:
            if port == request.last:
                raise
    raise AssertionError("a range has at least one port")


def _bind(protocol: str, address: IPv4Address, port: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    number = _IPPROTO_SCTP if protocol == "sctp" else 0
    try:
        keeper = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        raise BindError(port, error.errno or errno.EPROTONOSUPPORT) from error
    try:
        if kind == socket.SOCK_STREAM:
            # Connections of an earlier owner that linger must not stand in the way; a listener still does.
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((str(address), port))
        if kind == socket.SOCK_STREAM:
            keeper.listen(0)
    except OSError as error:
        keeper.close()
        raise BindError(port, error.errno or errno.EIO) from error
    return keeper


class _KeptPort(NamedTuple):
    protocol: str
    address: IPv4Address
    port: int
    keeper: socket.socket


class PortKeeper:
    """The host ports that containers have. Threads may use it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, list[_KeptPort]] = {}  # by container

    def keep(self, container_id: str, request: PortRequest) -> int:
        """Reserve a host port for a container, and return it. Raises :class:`BindError`."""
        with self._lock:
            port, keeper = bind_first_free(request)
            kept = _KeptPort(request.protocol, request.host_address, port, keeper)
            self._kept.setdefault(container_id, []).append(kept)
        return port

    def has(self, protocol: str, address: IPv4Address, port: int) -> bool:
        """Whether a container has the port, on this address or on any."""
        anywhere = IPv4Address(0)
        with self._lock:
            return any(
                (one.protocol, one.port) == (protocol, port)
                and (address == one.address or anywhere in (address, one.address))
                for kept in self._kept.values()
                for one in kept
            )

    def release(self, container_id: str) -> None:
        """Make a container's ports free again."""
        with self._lock:
            for kept in self._kept.pop(container_id, ()):
                kept.keeper.close()

    def close(self) -> None:
        """Make all ports free."""
        with self._lock:
            for kept in self._kept.values():
                for one in kept:
                    one.keeper.close()
            self._kept.clear()
