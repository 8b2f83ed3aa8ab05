"""The little of rtnetlink that container networking needs: requests as values, sent in batches over one socket.

A request names what it is about, so an error of the kernel can be told to a person. Constants and layouts are those
of ``linux/rtnetlink.h``, ``linux/if_link.h``, ``linux/if_addr.h`` and ``linux/neighbour.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

__all__ = [
    "Link",
    "Request",
    "RouteSocket",
    "add_address",
    "add_bridge",
    "add_default_route",
    "add_forwarding_entry",
    "add_neighbour",
    "add_veth",
    "attach",
    "delete_default_route",
    "delete_link",
    "detach",
    "set_alias",
    "set_hairpin",
    "set_up",
]

_NETLINK_ROUTE = 0
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP = 0x300
_NLM_F_REPLACE = 0x100
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH = 28
_SOL_NETLINK = 270
_NETLINK_GET_STRICT_CHK = 12

_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_IFALIAS = 20
_IFLA_BRPORT_MODE, _IFLA_BRPORT_ISOLATED = 4, 33
_VETH_INFO_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST = 254, 3, 1
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_STALE, _NUD_NOARP, _NTF_MASTER = 0x04, 0x40, 0x04

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")


@dataclass(frozen=True)
class Request:
    """One message. ``what`` completes the sentence "cannot ..."."""

    type: int
    flags: int
    body: bytes
    what: str


@dataclass(frozen=True)
class Link:
    """A network device: index, name, kind (``bridge``, ``veth``; empty for hardware), whether administratively up.

    ``alias`` is a text that whoever made it may have left on it, ``master`` the index of its bridge, or 0.
    """

    index: int
    name: str
    kind: str
    up: bool
    alias: str = ""
    master: int = 0


class RouteSocket:
    """A socket to the network namespace of the thread that opens it. Any thread may then use it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0
        self._lock = threading.Lock()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, requests: Sequence[Request]) -> None:
        """Send all requests in one go; the kernel works them off in order.

        Raises the OSError of the first that failed. The kernel does not stop there: undo belongs to the caller.
        """
        with self._lock:
            first = self._sequence + 1
            message = b""
            for request in requests:
                self._sequence += 1
                flags = request.flags | _NLM_F_REQUEST | _NLM_F_ACK
                size = _HEADER.size + len(request.body)
                message += _HEADER.pack(size, request.type, flags, self._sequence, 0) + request.body
            self._socket.send(message)
            failed: OSError | None = None
            pending = set(range(first, self._sequence + 1))
            while pending:
                for kind, sequence, body in _messages(self._socket.recv(1 << 16)):
                    if sequence not in pending or kind != _NLMSG_ERROR:
                        continue
                    pending.discard(sequence)
                    code = -struct.unpack_from("=i", body)[0]
                    if code and failed is None:
                        failed = OSError(code, f"cannot {requests[sequence - first].what}: {os.strerror(code)}")
            if failed is not None:
                raise failed

    def links(self) -> list[Link]:
        """Every device of the namespace."""
        return [_parse_link(body) for _, body in self._dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The device called ``name``."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _name(name)
        with self._lock:
            self._sequence += 1
            header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, self._sequence, 0)
            self._socket.send(header + body)
            for kind, sequence, reply in _messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", reply)[0]
                    if code == errno.ENODEV:
                        return None
                    raise OSError(code, f"cannot look up {name}: {os.strerror(code)}")
                return _parse_link(reply)
        return None

    def addresses(self, index: int) -> list[IPv4Interface]:
        """IPv4 addresses of one device."""
        body = struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, index)
        found = []
        for _, reply in self._dump(_RTM_GETADDR, body):
            prefix = reply[1]
            local = _attributes(reply, 8).get(_IFA_LOCAL)
            if local is not None and struct.unpack_from("=I", reply, 4)[0] == index:
                found.append(IPv4Interface((int.from_bytes(local, "big"), prefix)))
        return found

    def routes(self) -> list[tuple[IPv4Network, int]]:
        """Destinations of the main table without the default route, each with its device's index (0: none)."""
        found = []
        for _, reply in self._dump(_RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)):
            prefix, table, kind = reply[1], reply[4], reply[7]
            attributes = _attributes(reply, 12)
            if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or prefix == 0:
                continue
            destination = IPv4Network((int.from_bytes(attributes[_RTA_DST], "big"), prefix), strict=False)
            (device,) = struct.unpack("=I", attributes.get(_RTA_OIF, b"\0\0\0\0"))
            found.append((destination, device))
        return found

    def _dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        with self._lock:
            self._sequence += 1
            flags = _NLM_F_REQUEST | _NLM_F_DUMP
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
            while True:
                for reply_kind, sequence, reply in _messages(self._socket.recv(1 << 16)):
                    if sequence != self._sequence:
                        continue
                    if reply_kind == _NLMSG_DONE:
                        return found
                    if reply_kind == _NLMSG_ERROR:
                        code = -struct.unpack_from("=i", reply)[0]
                        raise OSError(code, f"cannot list network state: {os.strerror(code)}")
                    found.append((reply_kind, reply))


def add_bridge(name: str, mtu: int, address: bytes) -> Request:
    """Make a bridge with a hardware address of its own (else it changes with the devices that come and go)."""
    linkinfo = _nested(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"bridge\0"))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _name(name) + _u32(_IFLA_MTU, mtu) + _attribute(_IFLA_ADDRESS, address)
    return Request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body + linkinfo, f"create bridge {name}")


def add_veth(name: str, bridge: int, mtu: int, peer_name: str, peer_address: bytes, peer_netns: int) -> Request:
    """Make a pair of devices: ``name``, up and attached to the bridge with that index, and its peer elsewhere.

    ``peer_netns`` is a descriptor of the peer's namespace. The peer is left down: a pair cannot be brought up from its
    second half.
    """
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + _name(peer_name) + _u32(_IFLA_MTU, mtu)
    peer += _attribute(_IFLA_ADDRESS, peer_address) + _u32(_IFLA_NET_NS_FD, peer_netns)
    data = _nested(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
    linkinfo = _nested(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"veth\0") + data)
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + _name(name) + _u32(_IFLA_MTU, mtu) + linkinfo
    return Request(
        _RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body + _u32(_IFLA_MASTER, bridge), f"create device pair {name}"
    )


def delete_link(name: str) -> Request:
    """Remove a device, and with one half of a pair the other."""
    return Request(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _name(name), f"remove device {name}")


def set_alias(name: str, alias: str) -> Request:
    """Leave a text on a device by which its maker finds it again."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _name(name) + _attribute(_IFLA_IFALIAS, alias.encode() + b"\0")
    return Request(_RTM_SETLINK, 0, body, f"mark device {name}")


def set_up(index: int, name: str) -> Request:
    """Bring a device up."""
    return Request(_RTM_SETLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP), f"bring {name} up")


def attach(name: str, bridge: int) -> Request:
    """Bring a device up, and onto the bridge with that index."""
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + _name(name) + _u32(_IFLA_MASTER, bridge)
    return Request(_RTM_SETLINK, 0, body, f"attach device {name}")


def detach(name: str) -> Request:
    """Take a device down and off its bridge."""
    body = _IFINFO.pack(0, 0, 0, 0, _IFF_UP) + _name(name) + _u32(_IFLA_MASTER, 0)
    return Request(_RTM_SETLINK, 0, body, f"detach device {name}")


def set_hairpin(index: int, name: str, *, isolated: bool = False) -> Request:
    """Let the bridge send back through a port what came in by it: a container that calls its own published port.

    Ports that are ``isolated`` reach the bridge itself, but not each other.
    """
    data = _attribute(_IFLA_BRPORT_MODE, b"\1")
    if isolated:
        data += _attribute(_IFLA_BRPORT_ISOLATED, b"\1")
    mode = _nested(_IFLA_INFO_SLAVE_DATA, data)
    linkinfo = _nested(_IFLA_LINKINFO, _attribute(_IFLA_INFO_SLAVE_KIND, b"bridge\0") + mode)
    return Request(_RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + linkinfo, f"set hairpin mode of {name}")


def add_forwarding_entry(index: int, name: str, address: bytes) -> Request:
    """Tell the bridge behind which of its ports a hardware address is, before that has sent anything.

    An address that another port had a moment ago would else be looked for there.
    """
    # NOARP is a static entry; PERMANENT would make the address the bridge's own.
    body = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    body += _attribute(_NDA_LLADDR, address)
    return Request(_RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body, f"add a forwarding entry for {name}")


def add_neighbour(index: int, address: IPv4Address, hardware: bytes) -> Request:
    """Tell the host an address's hardware address, to be verified when it is used, instead of what it knew before."""
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, _NUD_STALE, 0, 0)
    body += _attribute(_NDA_DST, address.packed) + _attribute(_NDA_LLADDR, hardware)
    return Request(_RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body, f"add a neighbour entry for {address}")


def add_address(index: int, name: str, address: IPv4Interface) -> Request:
    """Give a device an address."""
    body = struct.pack("=BBBBI", socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_LOCAL, address.ip.packed) + _attribute(_IFA_ADDRESS, address.ip.packed)
    body += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return Request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body, f"add address {address} to {name}")


def add_default_route(gateway: IPv4Address, *, replace: bool = False) -> Request:
    """Send through ``gateway`` what has no other way, with ``replace`` in place of another gateway."""
    flags = _NLM_F_CREATE | (_NLM_F_REPLACE if replace else _NLM_F_EXCL)
    return Request(_RTM_NEWROUTE, flags, _default_route(gateway), f"add the default route through {gateway}")


def delete_default_route() -> Request:
    """Send nothing anywhere but to neighbours."""
    return Request(_RTM_DELROUTE, 0, _default_route(None), "remove the default route")


def _default_route(gateway: IPv4Address | None) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, 0, _RTN_UNICAST, 0)
    return body + (_attribute(_RTA_GATEWAY, gateway.packed) if gateway is not None else b"")


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + b"\0" * (-size % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | 0x8000, value)  # NLA_F_NESTED


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _name(name: str) -> bytes:
    return _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, _flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + size]
        offset += (size + 3) & ~3


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def _parse_link(body: bytes) -> Link:
    _family, _kind, index, flags, _change = _IFINFO.unpack_from(body)
    attributes = _attributes(body, _IFINFO.size)
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
    kind = _attributes(attributes.get(_IFLA_LINKINFO, b""), 0).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    alias = attributes.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
    (master,) = struct.unpack("=I", attributes.get(_IFLA_MASTER, bytes(4)))
    return Link(index, name, kind, bool(flags & _IFF_UP), alias, master)
