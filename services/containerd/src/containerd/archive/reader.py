"""A tar reader without I/O: bytes go in, members and pieces of their content come out.

Understood are POSIX ustar and pax (POSIX.1-2001, "pax Interchange Format"), with GNU's long names, base-256 numbers and
sparse files in all four forms (old GNU and pax 0.0, 0.1, 1.0), and star's extended attributes (``SCHILY.xattr.``).
Everything that an archive can make the reader keep in memory has a bound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from containerd.archive.members import REGULAR, InvalidArchive, Member

__all__ = ["TarReader"]

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Bytes of one extended header or long name."""
MAX_EXTENTS = 1 << 16
MAX_SIZE = 1 << 62

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_NO_CONTENT = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))


class TarReader:
    """Feed it an archive in pieces of any size; what :meth:`feed` yields must be used before the next piece.

    A :class:`Member` begins an entry and each ``memoryview`` after it is the next part of its content. What comes
    behind the end of the archive is ignored. :meth:`close` tells whether the archive was whole.
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self._remaining = 0  # of content that is handed out
        self._padding = 0
        self._extended: bytearray | None = None  # an extended header's payload, while it is collected
        self._extended_left = 0
        self._extended_type = b""
        self._pax: dict[bytes, bytes] = {}
        self._pax_sparse: list[bytes] = []
        self._long_name = b""
        self._long_link = b""
        self._sparse: _SparseMap | None = None
        self._zero_blocks = 0
        self._started = False
        self.ended = False

    def feed(self, data: bytes | memoryview) -> Iterator[Member | memoryview]:
        """Take the next bytes of the archive. Raises :class:`InvalidArchive`."""
        view = memoryview(data)
        position, end = 0, len(view)
        while position < end and not self.ended:
            if self._remaining:
                piece = view[position : position + self._remaining]
                self._remaining -= len(piece)
                position += len(piece)
                yield piece
            elif self._padding:
                skipped = min(self._padding, end - position)
                self._padding -= skipped
                position += skipped
            elif self._extended is not None:
                taken = min(self._extended_left, end - position)
                self._extended += view[position : position + taken]
                self._extended_left -= taken
                position += taken
                if not self._extended_left:
                    self._extended_complete()
            else:
                wanted = BLOCK - len(self._partial)
                piece = view[position : position + wanted]
                position += len(piece)
                if len(piece) == BLOCK:
                    block = bytes(piece)
                else:
                    self._partial += piece
                    if len(self._partial) < BLOCK:
                        return
                    block = bytes(self._partial)
                    self._partial.clear()
                member = self._block(block)
                if member is not None:
                    yield member

    def close(self) -> None:
        """Raise :class:`InvalidArchive` when the archive ends inside an entry. A missing end mark is forgiven."""
        if self._remaining or self._extended is not None or self._partial or self._sparse or self._padding:
            raise InvalidArchive("unexpected end of archive")

    def _block(self, block: bytes) -> Member | None:
        if self._sparse is not None:
            return self._sparse_block(block)
        if block == _ZEROS:
            self._zero_blocks += 1
            self.ended = self._zero_blocks == 2
            return None
        if self._zero_blocks:
            raise InvalidArchive("invalid tar header: data behind the end mark")
        return self._header(block)

    def _header(self, block: bytes) -> Member | None:
        fields = _HEADER.unpack(block)
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix) = fields
        if not _checksum_is_right(block, _number(checksum)):
            raise InvalidArchive("invalid tar header: wrong checksum")
        stored = _number(size)
        if not 0 <= stored <= MAX_SIZE:
            raise InvalidArchive("invalid tar header: size out of range")
        if kind in b"xgLK":
            self._begin_extended(kind, stored)
            return None
        name = _text(name)
        if magic == b"ustar\0" and prefix[0]:
            name = _text(prefix) + b"/" + name
        member = Member(
            name=self._long_name or name,
            type=kind,
            mode=_number(mode) & 0o7777,
            uid=_number(uid),
            gid=_number(gid),
            mtime=_number(mtime) * 10**9,
            size=stored,
            link=self._long_link or _text(link),
            stored=stored,
        )
        if kind in (b"3", b"4"):
            member.device = (_number(major), _number(minor))
        return self._finish_header(member, block)

    def _finish_header(self, member: Member, block: bytes) -> Member | None:
        if self._pax:
            self._apply_pax(member)
        if member.type == b"\0" or member.type == b"7":
            member.type = REGULAR
        if member.type == REGULAR and member.name.endswith(b"/"):
            member.type = b"5"  # how archives before POSIX mark a directory
        if member.type in _NO_CONTENT:
            # A hard link may carry the size of the file, but never its content (as in pax files by some writers).
            member.size = member.stored = 0
        self._long_name = self._long_link = b""
        pax, self._pax = self._pax, {}
        pairs, self._pax_sparse = self._pax_sparse, []
        sparse = _sparse_map(member, block, pax, pairs)
        if sparse is not None and not sparse.complete:
            self._sparse = sparse
            return None
        return self._begin_content(member, sparse)

    def _begin_content(self, member: Member, sparse: _SparseMap | None) -> Member:
        if sparse is not None:
            sparse.finish()
        self._remaining = member.stored
        self._padding = -(member.stored + (sparse.consumed if sparse else 0)) % BLOCK
        return member

    def _sparse_block(self, block: bytes) -> Member | None:
        assert self._sparse is not None
        sparse = self._sparse
        sparse.feed(block)
        if not sparse.complete:
            return None
        self._sparse = None
        return self._begin_content(sparse.member, sparse)

    def _begin_extended(self, kind: bytes, size: int) -> None:
        if size > MAX_EXTENDED:
            raise InvalidArchive(f"extended header of {size} bytes is larger than {MAX_EXTENDED}")
        self._extended = bytearray()
        self._extended_left = size
        self._extended_type = kind
        self._padding = 0
        if not size:
            self._extended_complete()

    def _extended_complete(self) -> None:
        assert self._extended is not None
        payload, self._extended = bytes(self._extended), None
        self._padding = -len(payload) % BLOCK
        if self._extended_type == b"x":
            self._parse_pax(payload)
        elif self._extended_type == b"L":
            self._long_name = _text(payload)
        elif self._extended_type == b"K":
            self._long_link = _text(payload)
        # "g" is for the whole archive: comments of version control systems. Go's reader does not apply it either.

    def _parse_pax(self, payload: bytes) -> None:
        position = 0
        while position < len(payload):
            space = payload.find(b" ", position, position + 20)
            if space < 0 or not payload[position:space].isdigit():
                raise InvalidArchive("invalid pax record: no length")
            length = int(payload[position:space])
            end = position + length
            record = payload[space + 1 : end]
            key, separator, value = record[:-1].partition(b"=")
            if end > len(payload) or not record.endswith(b"\n") or not separator or not key:
                raise InvalidArchive("invalid pax record")
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                self._pax_sparse.append(value)  # version 0.0 repeats the keys
            elif b"\0" in value and not key.startswith(_XATTR):
                raise InvalidArchive("invalid pax record: NUL in a value")
            self._pax[key] = value
            position = end

    def _apply_pax(self, member: Member) -> None:
        xattrs: dict[str, bytes] = {}
        for key, value in self._pax.items():
            if key == b"path":
                member.name = value or member.name
            elif key == b"linkpath":
                member.link = value or member.link
            elif key == b"size":
                member.size = member.stored = _decimal(value)
            elif key == b"uid":
                member.uid = _decimal(value)
            elif key == b"gid":
                member.gid = _decimal(value)
            elif key == b"mtime":
                member.mtime = _seconds(value)
            elif key.startswith(_XATTR):
                xattrs[key[len(_XATTR) :].decode("utf-8", "surrogateescape")] = value
        if xattrs:
            member.xattrs = xattrs


class _SparseMap:
    """The map of a sparse file, as far as it has been read."""

    def __init__(self, member: Member, size: int) -> None:
        self.member = member
        self.size = size
        self.complete = True
        self.consumed = 0  # bytes of the entry's content that were the map itself
        self.numbers: list[int] = []

    def feed(self, block: bytes) -> None:
        """Read one more block of a map that was not complete."""
        raise NotImplementedError

    def finish(self) -> None:
        """Check the map and put it into the member. Raises :class:`InvalidArchive`."""
        if len(self.numbers) % 2 or len(self.numbers) > 2 * MAX_EXTENTS:
            raise InvalidArchive("invalid sparse map: number of entries")
        position = total = 0
        extents = []
        for offset, length in zip(self.numbers[::2], self.numbers[1::2], strict=True):
            if offset < position or length < 0 or offset + length > self.size:
                raise InvalidArchive("invalid sparse map: entries out of order or out of bounds")
            position = offset + length
            total += length
            if length:
                extents.append((offset, length))
        if total != self.member.stored:
            raise InvalidArchive("invalid sparse map: it describes another amount of data than there is")
        self.member.size = self.size
        self.member.extents = tuple(extents)


class _GnuMap(_SparseMap):
    """The old GNU form: four entries in the header, 21 in each block that follows."""

    def __init__(self, member: Member, header: bytes) -> None:
        super().__init__(member, _number(header[483:495]))
        member.type = REGULAR
        self._entries(header, 386, 4, 482)

    def feed(self, block: bytes) -> None:
        self._entries(block, 0, 21, 504)

    def _entries(self, block: bytes, start: int, count: int, more: int) -> None:
        for position in range(start, start + 24 * count, 24):
            entry = block[position : position + 24]
            if entry[0]:
                self.numbers += (_number(entry[:12]), _number(entry[12:]))
        self.complete = not block[more]
        if len(self.numbers) > 2 * MAX_EXTENTS:
            raise InvalidArchive("invalid sparse map: number of entries")


class _PaxMap(_SparseMap):
    """Version 1.0: decimal numbers, one a line, in front of the content, filled up to a whole block."""

    def __init__(self, member: Member, size: int) -> None:
        super().__init__(member, size)
        self.complete = False
        self._text = b""

    def feed(self, block: bytes) -> None:
        if self.consumed + len(block) > self.member.stored:
            raise InvalidArchive("invalid sparse map: longer than the entry")
        self.consumed += len(block)
        self._text += block
        *lines, self._text = self._text.split(b"\n")
        self.numbers += map(_decimal, lines)
        count = self.numbers[0] if self.numbers else 0
        if count > MAX_EXTENTS or len(self._text) > 64 + BLOCK:
            raise InvalidArchive("invalid sparse map: number of entries")
        if self.numbers and len(self.numbers) > 2 * count:
            del self.numbers[2 * count + 1 :]
            del self.numbers[0]
            self.member.stored -= self.consumed
            self.complete = True


def _sparse_map(member: Member, block: bytes, pax: dict[bytes, bytes], pairs: list[bytes]) -> _SparseMap | None:
    if member.type == b"S":
        return _GnuMap(member, block)
    if member.type != REGULAR or not pax:
        return None
    member.name = pax.get(b"GNU.sparse.name", member.name)
    if pax.get(b"GNU.sparse.major") == b"1":
        return _PaxMap(member, _decimal(pax.get(b"GNU.sparse.realsize", b"")))
    if b"GNU.sparse.size" in pax:
        sparse = _SparseMap(member, _decimal(pax[b"GNU.sparse.size"]))
        numbers = pax[b"GNU.sparse.map"].split(b",") if pax.get(b"GNU.sparse.map") else pairs
        sparse.numbers = [_decimal(number) for number in numbers]
        return sparse
    return None


def _checksum_is_right(block: bytes, given: int) -> bool:
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if unsigned == given:
        return True
    # Some old writers summed up signed characters.
    return unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:]) == given


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    first = field[0]
    if first & 0x80:  # base 256, two's complement, the top bit is the mark
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if first & 0x40 else value
    digits = field.partition(b"\0")[0].strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise InvalidArchive("invalid tar header: not a number") from None


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise InvalidArchive("invalid pax record: not a number")
    number = int(value)
    if number > MAX_SIZE:
        raise InvalidArchive("invalid pax record: number out of range")
    return number


def _seconds(value: bytes) -> int:
    """Return nanoseconds for a decimal number of seconds, which may be negative."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 15 or (fraction and not fraction.isdigit()):
        raise InvalidArchive("invalid pax record: not a time")
    nanoseconds = int(digits) * 10**9 + int((fraction + b"000000000")[:9])
    return -nanoseconds if whole.startswith(b"-") else nanoseconds
