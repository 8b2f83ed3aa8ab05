"""DNS messages (RFC 1035, 6891), as far as a resolver for names and addresses needs them. No input or output here.

Whoever sends may be hostile: everything is bounded, and what cannot be read raises :class:`Malformed`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

__all__ = [
    "AAAA",
    "FORMERR",
    "MAX_UDP",
    "NOERROR",
    "NOTIMP",
    "PTR",
    "SERVFAIL",
    "A",
    "Malformed",
    "Query",
    "address_record",
    "is_reply_to",
    "name_record",
    "parse_query",
    "refusal",
    "response",
    "reverse_address",
    "with_id",
]

A, PTR, AAAA = 1, 12, 28
NOERROR, FORMERR, SERVFAIL, NOTIMP = 0, 1, 2, 4

MAX_UDP = 4096
"""The longest datagram that is read or sent, in bytes."""

TTL = 600
"""How long a name of a container may be remembered, in seconds: as with the real engine."""

_HEADER = struct.Struct(">HHHHHH")
_QR, _OPCODE, _TC, _RD, _RA = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080
_IN, _ANY_CLASS, _OPT = 1, 255, 41
_PLAIN_UDP = 512
_MAX_NAME = 255


class Malformed(Exception):
    """Not a query that can be answered. ``rcode`` is what to say to it, None to say nothing."""

    def __init__(self, why: str, rcode: int | None = None) -> None:
        self.rcode = rcode
        super().__init__(why)


@dataclass(frozen=True)
class Query:
    """One question. ``name`` is in lower case without the last dot; ``udp_size`` what the asker takes by datagram."""

    id: int
    flags: int
    name: str
    type: int
    question: bytes
    udp_size: int = _PLAIN_UDP


def parse_query(data: bytes) -> Query:
    """Read a query. Raises :class:`Malformed`."""
    if len(data) < _HEADER.size:
        raise Malformed("shorter than a header")
    identifier, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _QR:
        raise Malformed("a response")
    if flags & _OPCODE:
        raise Malformed("not a standard query", NOTIMP)
    if questions != 1 or answers or authorities:
        raise Malformed("not one question", FORMERR)
    name, end = _read_name(data, _HEADER.size)
    if end + 4 > len(data):
        raise Malformed("the question is cut off", FORMERR)
    kind, kind_class = struct.unpack_from(">HH", data, end)
    if kind_class not in (_IN, _ANY_CLASS):
        raise Malformed("not of the Internet", NOTIMP)
    end += 4
    size = _PLAIN_UDP
    # An OPT record comes first wherever there is one: a root name, its type, and the size in place of the class.
    if additional and data[end : end + 3] == struct.pack(">BH", 0, _OPT) and end + 5 <= len(data):
        size = min(max(int.from_bytes(data[end + 3 : end + 5], "big"), _PLAIN_UDP), MAX_UDP)
    return Query(identifier, flags, name, kind, data[_HEADER.size : end], size)


def _read_name(data: bytes, offset: int) -> tuple[str, int]:
    """A name that is not compressed: in a question there is nothing that it could point to."""
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise Malformed("a name is cut off", FORMERR)
        size = data[offset]
        offset += 1
        if size == 0:
            return ".".join(labels), offset
        if size > 63:
            raise Malformed("a label is too long, or a pointer", FORMERR)
        label = data[offset : offset + size]
        if len(label) < size or offset + size - start > _MAX_NAME:
            raise Malformed("a name is cut off or too long", FORMERR)
        # A dot within a label would look like two labels.
        labels.append(label.decode("latin-1").lower().replace(".", "\\."))
        offset += size


def response(query: Query, rcode: int, records: Sequence[bytes] = (), limit: int = 65535) -> bytes:
    """An answer of at most ``limit`` bytes: what does not fit is left out, and that is said."""
    room = limit - _HEADER.size - len(query.question)
    kept: list[bytes] = []
    for record in records:
        if len(record) > room:
            break
        room -= len(record)
        kept.append(record)
    flags = _QR | (query.flags & _RD) | _RA | rcode
    if len(kept) < len(records):
        flags |= _TC
    return _HEADER.pack(query.id, flags, 1, len(kept), 0, 0) + query.question + b"".join(kept)


def refusal(data: bytes, rcode: int) -> bytes:
    """An answer to a message of which only the header can be read."""
    identifier, flags = struct.unpack_from(">HH", data)
    return _HEADER.pack(identifier, _QR | (flags & (_OPCODE | _RD)) | rcode, 0, 0, 0, 0)


def address_record(address: str) -> bytes:
    """The question's name has this IPv4 address."""
    return struct.pack(">HHHIH", 0xC00C, A, _IN, TTL, 4) + IPv4Address(address).packed


def name_record(name: str) -> bytes:
    """The question's (reversed) address has this name. A name that cannot be one gives nothing."""
    labels = [label.encode("latin-1", "replace") for label in name.split(".") if label]
    if any(len(label) > 63 for label in labels):
        return b""
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(encoded) > _MAX_NAME:
        return b""
    return struct.pack(">HHHIH", 0xC00C, PTR, _IN, TTL, len(encoded)) + encoded


def reverse_address(name: str) -> str:
    """The IPv4 address that a name below ``in-addr.arpa`` stands for, or nothing."""
    digits = name.removesuffix(".in-addr.arpa")
    if digits == name:
        return ""
    try:
        return str(IPv4Address(".".join(reversed(digits.split(".")))))
    except ValueError:
        return ""


def with_id(data: bytes, identifier: int) -> bytes:
    """The same message under another number."""
    return struct.pack(">H", identifier) + data[2:]


def is_reply_to(data: bytes, identifier: int, query: Query) -> bool:
    """Whether it answers the query that was sent under this number, and nobody else's."""
    if len(data) < _HEADER.size:
        return False
    number, flags, questions = struct.unpack_from(">HHH", data)
    if number != identifier or not flags & _QR:
        return False
    end = _HEADER.size + len(query.question)
    # A server that cannot even read the question does not repeat it.
    return questions == 0 or data[_HEADER.size : end].lower() == query.question.lower()
