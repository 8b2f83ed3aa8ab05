"""A tar writer without I/O: members become header bytes, in ustar where that can say it and in pax where not."""

from __future__ import annotations

from collections.abc import Mapping

from containerd.archive.members import DIRECTORY, Member

__all__ = ["END", "header", "padding"]

BLOCK = 512
END = bytes(2 * BLOCK)
"""What ends an archive."""

_MAX_OCTAL_SIZE = 8**11 - 1
_MAX_OCTAL_ID = 8**7 - 1


def padding(size: int) -> bytes:
    """Return what has to follow ``size`` bytes of content."""
    return bytes(-size % BLOCK)


def header(member: Member) -> bytes:
    """Return the header blocks of a member. Its content has to follow, then :func:`padding`.

    The same member always gives the same bytes, so that a layer's digest can be reproduced.
    """
    name = member.name
    if member.type == DIRECTORY and not name.endswith(b"/"):
        name += b"/"
    records: dict[bytes, bytes] = {}
    prefix, short = _split(name)
    if short is None:
        records[b"path"] = name
        prefix, short = b"", name[:100]
    if len(member.link) > 100 or not member.link.isascii():
        records[b"linkpath"] = member.link
    if not name.isascii():
        records[b"path"] = name
    seconds, fraction = divmod(member.mtime, 10**9)
    if fraction or not 0 <= seconds <= _MAX_OCTAL_SIZE:
        records[b"mtime"] = _time(member.mtime)
    if member.size > _MAX_OCTAL_SIZE:
        records[b"size"] = b"%d" % member.size
    if not 0 <= member.uid <= _MAX_OCTAL_ID:
        records[b"uid"] = b"%d" % member.uid
    if not 0 <= member.gid <= _MAX_OCTAL_ID:
        records[b"gid"] = b"%d" % member.gid
    for key, value in member.xattrs.items():
        records[b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape")] = value
    block = _block(
        prefix,
        short,
        member,
        0 if b"size" in records else member.size,
        seconds if 0 <= seconds <= _MAX_OCTAL_SIZE else 0,
    )
    return _pax(name, records) + block if records else block


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Return prefix and name for ustar's two fields, or None for a name that does not fit."""
    if len(name) <= 100:
        return b"", name
    if len(name) > 256:
        return b"", None
    cut = name.rfind(b"/", 0, min(len(name) - 1, 156))
    if cut <= 0 or len(name) - cut - 1 > 100:
        return b"", None
    return name[:cut], name[cut + 1 :]


def _block(prefix: bytes, name: bytes, member: Member, size: int, seconds: int) -> bytes:
    uid = member.uid if 0 <= member.uid <= _MAX_OCTAL_ID else 0
    gid = member.gid if 0 <= member.gid <= _MAX_OCTAL_ID else 0
    major, minor = member.device
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (member.mode & 0o7777, uid, gid, size, seconds),
            b" " * 8,
            member.type,
            member.link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % (major, minor),
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax(name: bytes, records: Mapping[bytes, bytes]) -> bytes:
    payload = b"".join(_record(key, records[key]) for key in sorted(records))
    directory, _, last = name.rstrip(b"/").rpartition(b"/")
    label = (directory + b"/PaxHeaders.0/" if directory else b"PaxHeaders.0/") + last
    extended = Member(name=label[-100:], type=b"x", mode=0o644, size=len(payload))
    return _block(b"", extended.name, extended, len(payload), 0) + payload + padding(len(payload))


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``LENGTH KEY=VALUE\\n``, where LENGTH counts itself."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while True:
        digits = b"%d" % length
        if len(digits) + len(rest) == length:
            return digits + rest
        length = len(digits) + len(rest)


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    if not fraction:
        return b"%s%d" % (sign, seconds)
    return (b"%s%d.%09d" % (sign, seconds, fraction)).rstrip(b"0")
