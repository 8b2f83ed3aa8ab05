"""Network devices of the host that a container gets (config-linux.md "Network Devices"), over rtnetlink(7).

A device is moved and renamed in one request, so that it never is in the container's namespace by a name that was not
meant for it there. Moving takes its addresses: the permanent ones of global scope are read before and given back.
Messages are values (`link_move`, `address_addition`...), a `Connection` carries them.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys

from gantry.linux import namespaces as linux_namespaces
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gantry.oci.runtime import Spec

IFNAMSIZ = 16

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
_NETLINK_ROUTE = 0
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x200
_ERROR, _DONE = 2, 3
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 16, 18, 20, 22
_IFLA_IFNAME, _IFLA_NET_NS_FD, _IFLA_NEW_IFINDEX = 3, 28, 49
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_PERMANENT = 0x80
_IFA_F_KEPT = 0x02 | 0x10 | 0x200 | 0x400  # no duplicate detection, home, no prefix route, join groups
_SCOPE_UNIVERSE = 0
_IFF_UP = 1
_HEADER, _LINK_HEADER, _ADDRESS_HEADER, _ATTRIBUTE_HEADER = 16, 16, 8, 4


def check(spec: Spec, *, rootless: bool = False) -> dict[str, str]:
    """The devices to move: the name here to the name in the container. Raises RuntimeFailure."""
    devices = spec["linux"].get("netDevices", {})
    if not devices:
        return {}
    if all(namespace["type"] != "network" for namespace in spec["linux"].get("namespaces", [])):
        raise RuntimeFailure("unable to move network devices without a NET namespace")
    if rootless:
        raise RuntimeFailure("network devices are not supported for rootless containers")
    wanted = {}
    for name, device in devices.items():
        wanted[name] = device.get("name") or name
        for each in (name, wanted[name]):
            if not is_name(each):
                raise RuntimeFailure(f'invalid network device name "{each}"')
    return wanted


def is_name(text: str) -> bool:
    """Can a network device be called so (kernel: dev_valid_name)?"""
    size = len(os.fsencode(text))
    return 0 < size < IFNAMSIZ and text not in (".", "..") and not any(c in "/:" or c.isspace() for c in text)


# Messages


def _number(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, sys.byteorder)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to its alignment."""
    size = _ATTRIBUTE_HEADER + len(value)
    return (_number(size, 2) + _number(kind, 2) + value).ljust(_aligned(size), b"\0")


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A request with its header (netlink(7))."""
    size = _HEADER + len(body)
    return _number(size) + _number(kind, 2) + _number(flags | _REQUEST, 2) + _number(sequence) + _number(0) + body


def _link(index: int, flags: int = 0, change: int = 0) -> bytes:
    return bytes(4) + _number(index) + _number(flags) + _number(change)


def link_move(index: int, name: str, namespace_fd: int, new_index: int) -> bytes:
    """The body that moves a device into a namespace, by another name and number."""
    return (
        _link(index)
        + attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
        + attribute(_IFLA_NET_NS_FD, _number(namespace_fd))
        + attribute(_IFLA_NEW_IFINDEX, _number(new_index))
    )


class Address:
    """An address of a device: its family, prefix length and flags, and the attributes that make it up."""

    __slots__ = ("attributes", "family", "flags", "index", "prefix", "scope")

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, self.flags, self.scope = body[:4]
        self.index = int.from_bytes(body[4:_ADDRESS_HEADER], sys.byteorder)
        self.attributes = dict(attributes(body[_ADDRESS_HEADER:]))
        if _IFA_FLAGS in self.attributes:  # the header has room for eight of them only
            self.flags = int.from_bytes(self.attributes[_IFA_FLAGS], sys.byteorder)

    @property
    def is_kept(self) -> bool:
        """Does it go with the device: set by somebody for good, and meant for others than this link and host?"""
        return bool(self.flags & _IFA_F_PERMANENT) and self.scope == _SCOPE_UNIVERSE


def address_addition(address: Address, index: int) -> bytes:
    """The body that gives the address to a device."""
    body = bytes((address.family, address.prefix, 0, address.scope)) + _number(index)
    for kind in (_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST):
        if kind in address.attributes:
            body += attribute(kind, address.attributes[kind])
    return body + attribute(_IFA_FLAGS, _number(address.flags & _IFA_F_KEPT))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute."""
    while len(data) >= _ATTRIBUTE_HEADER:
        size = int.from_bytes(data[:2], sys.byteorder)
        if size < _ATTRIBUTE_HEADER:
            return
        yield int.from_bytes(data[2:4], sys.byteorder) & 0x3FFF, data[_ATTRIBUTE_HEADER:size]
        data = data[_aligned(size) :]


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, sequence number and body of each message in a datagram."""
    while len(data) >= _HEADER:
        size = int.from_bytes(data[:4], sys.byteorder)
        if size < _HEADER:
            return
        kind, sequence = int.from_bytes(data[4:6], sys.byteorder), int.from_bytes(data[8:12], sys.byteorder)
        yield kind, sequence, data[_HEADER:size]
        data = data[_aligned(size) :]


class Connection:
    """A netlink socket: it belongs to the network namespace that it was opened in."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        """Ask, and give what came before the acknowledgement. Raises OSError with the kernel's error."""
        self._sequence += 1
        self._socket.send(message(kind, flags if flags == _DUMP else flags | _ACK, self._sequence, body))
        found: list[tuple[int, bytes]] = []
        while True:
            for answer, sequence, text in messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if answer in (_ERROR, _DONE):
                    number = -int.from_bytes(text[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return found
                found.append((answer, text))

    def links(self) -> dict[int, str]:
        """Number and name of every device."""
        found = {}
        for kind, body in self.request(_GETLINK, _link(0), _DUMP):
            if kind == _NEWLINK:
                name = dict(attributes(body[_LINK_HEADER:])).get(_IFLA_IFNAME, b"")
                found[int.from_bytes(body[4:8], sys.byteorder)] = os.fsdecode(name.rstrip(b"\0"))
        return found

    def addresses(self, index: int) -> list[Address]:
        """The addresses of a device that go with it."""
        listed = [Address(body) for kind, body in self.request(_GETADDR, bytes(8), _DUMP) if kind == _NEWADDR]
        return [address for address in listed if address.index == index and address.is_kept]

    def move(self, index: int, name: str, namespace_fd: int, new_index: int) -> None:
        """Move a device to another namespace."""
        self.request(_NEWLINK, link_move(index, name, namespace_fd, new_index))

    def add_address(self, address: Address, index: int) -> None:
        """Give an address to a device."""
        self.request(_NEWADDR, address_addition(address, index), _CREATE | _EXCLUSIVE)

    def set_up(self, index: int) -> None:
        """Have the device carry traffic."""
        self.request(_NEWLINK, _link(index, _IFF_UP, _IFF_UP))


# Moving


def move_all(devices: dict[str, str], pid: int) -> None:
    """Move the devices into the network namespace of the process. Raises RuntimeFailure naming the device."""
    path = linux_namespaces.namespace_path(pid, "net")
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        here, there = Connection(), _connection_in(namespace)
        try:
            for name, new_name in devices.items():
                _move(here, there, name, new_name, namespace)
        finally:
            here.close()
            there.close()
    finally:
        os.close(namespace)


def _connection_in(namespace: int) -> Connection:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux_namespaces.setns(namespace, linux_namespaces.CLONE_NEWNET)
        try:
            return Connection()
        finally:
            linux_namespaces.setns(own, linux_namespaces.CLONE_NEWNET)
    finally:
        os.close(own)


def _move(here: Connection, there: Connection, name: str, new_name: str, namespace: int) -> None:
    try:
        index = _socket.if_nametoindex(name)
    except OSError:
        raise RuntimeFailure(f"link not found for interface {name} on runtime namespace: Link not found") from None
    try:
        addresses = here.addresses(index)
        taken = there.links()
        if new_name in taken.values():
            # The kernel would move the device by its old name, and only then find that it can not rename it.
            raise FileExistsError(errno.EEXIST, f"{new_name}: {os.strerror(errno.EEXIST)}")
        new_index = free_index(index, taken)
        here.move(index, new_name, namespace, new_index)
    except OSError as error:
        raise RuntimeFailure(f"fail to move network device {name}: {system_text(error)}") from error
    try:
        for address in addresses:
            there.add_address(address, new_index)
        there.set_up(new_index)
    except OSError as error:
        raise RuntimeFailure(
            f"fail to set up interface {name} in the container's network namespace: {system_text(error)}"
        ) from error


def free_index(index: int, taken: dict[int, str]) -> int:
    """The device's number where it goes: its own if nobody has that, else the next beyond all."""
    return index if index not in taken else max(taken) + 1
