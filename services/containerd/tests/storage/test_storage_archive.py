"""The tar reader and writer, against Python's tarfile and GNU tar on the other side, and against damaged archives."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from containerd.archive.members import DIRECTORY, InvalidArchive, Member
from containerd.archive.reader import MAX_EXTENDED, TarReader
from containerd.archive.writer import END, header, padding


def parse(data: bytes, step: int = 1 << 20) -> list[tuple[Member, bytes]]:
    """Read an archive in pieces of ``step`` bytes; returns members with their content."""
    reader = TarReader()
    found: list[tuple[Member, bytearray]] = []
    for start in range(0, len(data), step):
        for event in reader.feed(data[start : start + step]):
            if isinstance(event, Member):
                found.append((event, bytearray()))
            else:
                found[-1][1].extend(event)
    reader.close()
    return [(member, bytes(content)) for member, content in found]


def archive(form: int, *infos: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Return an archive that Python's tarfile has written."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as written:
        for info, content in infos:
            info.size = len(content)
            written.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def info(name: str, **fields: Any) -> tarfile.TarInfo:
    """Return a TarInfo."""
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


LONG = "d" * 90 + "/" + "e" * 90 + "/" + "f" * 150


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 100_000])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pieces_of_any_size_give_the_same_members(form: int, step: int) -> None:
    """Where the input is cut does not matter."""
    data = archive(
        form,
        (info("a", mode=0o4755, uid=1, gid=2, mtime=1234), b"x" * 1000),
        (info("b", type=tarfile.SYMTYPE, linkname="a"), b""),
        (info("c", type=tarfile.CHRTYPE, devmajor=5, devminor=1), b""),
        (info("empty"), b""),
    )
    members = parse(data, step)
    assert [(member.name, content) for member, content in members] == [
        (b"a", b"x" * 1000), (b"b", b""), (b"c", b""), (b"empty", b"")
    ]  # fmt: skip
    first = members[0][0]
    assert (first.mode, first.uid, first.gid, first.mtime, first.size) == (0o4755, 1, 2, 1234 * 10**9, 1000)
    assert (members[1][0].type, members[1][0].link) == (b"2", b"a")
    assert members[2][0].device == (5, 1)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_large_numbers_and_other_alphabets(form: int) -> None:
    """What does not fit into the old header is found in the extensions of both families."""
    data = archive(
        form,
        (info(LONG, uid=3_000_000, gid=4_000_000_000, mtime=2**33), b"1"),
        (info("ümläut", type=tarfile.SYMTYPE, linkname=LONG), b""),
    )
    (first, content), (second, _) = parse(data, 333)
    assert (first.name, content) == (LONG.encode(), b"1")
    assert (first.uid, first.gid, first.mtime) == (3_000_000, 4_000_000_000, 2**33 * 10**9)
    assert (second.name, second.link) == ("ümläut".encode(), LONG.encode())


def test_pax_attributes_and_times() -> None:
    """Extended attributes are bytes, times have nanoseconds; a global header says nothing about files."""
    pax = {"SCHILY.xattr.user.a": "value=1", "mtime": "12.000000345", "comment": "ignored"}
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}
    ) as written:
        written.addfile(info("a", pax_headers=pax))
    ((member, _),) = parse(buffer.getvalue())
    assert member.xattrs == {"user.a": b"value=1"}
    assert member.mtime == 12_000_000_345


def test_what_gnu_tar_writes(tmp_path: Path) -> None:
    """Long names, hard links and all three pax forms of sparse files, as the real program makes them."""
    tree = tmp_path / "tree"
    (tree / ("n" * 120)).mkdir(parents=True)
    (tree / ("n" * 120) / ("m" * 120)).write_bytes(b"long")
    os.link(tree / ("n" * 120) / ("m" * 120), tree / "hard")
    with (tree / "sparse").open("wb") as file:
        file.truncate(10 << 20)
        for offset in range(0, 10 << 20, 1 << 20):
            file.seek(offset + 4096 * 3)
            file.write(b"data" * 1024)
    for flags in (
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ):
        done = subprocess.run(["tar", "-C", str(tree), "-cSf", "-", *flags, "."], capture_output=True, check=True)
        members = {member.name: (member, content) for member, content in parse(done.stdout, 700)}
        sparse, content = members[b"./sparse"]
        assert sparse.size == 10 << 20, flags
        assert sparse.extents is not None
        assert len(content) == sparse.stored == sum(length for _, length in sparse.extents) < 1 << 20
        file_bytes = bytearray(sparse.size)
        position = 0
        for offset, length in sparse.extents:
            file_bytes[offset : offset + length] = content[position : position + length]
            position += length
        assert bytes(file_bytes) == (tree / "sparse").read_bytes(), flags
        links = [member for member, _ in members.values() if member.type == b"1"]
        assert len(links) == 1


def test_the_writer_is_read_by_gnu_tar_and_by_us(tmp_path: Path) -> None:
    """Every kind of member, with all that needs a pax header, comes out again on both sides."""
    members = [
        (Member(b"dir", DIRECTORY, mode=0o755, mtime=10**9), b""),
        (Member(b"dir/file", mode=0o4711, uid=3_000_000, gid=5, mtime=1_500_000_001, size=5), b"hello"),
        (Member(LONG.encode(), size=1, mtime=-5 * 10**9), b"x"),
        (Member("dir/ü".encode(), b"2", link=b"t" * 200), b""),
        (Member(b"dir/hard", b"1", link=b"dir/file"), b""),
        (Member(b"dir/null", b"3", device=(1, 3)), b""),
        (Member(b"a/" * 60 + b"b", size=0), b""),
        (Member(b"attributes", xattrs={"user.bin": b"\x00\xff=\n", "security.capability": b"\x01"}), b""),
    ]
    data = b"".join(header(member) + content + padding(len(content)) for member, content in members) + END
    again = parse(data, 1000)
    for (wrote, sent), (read, got) in zip(members, again, strict=True):
        assert read.name.rstrip(b"/") == wrote.name
        assert got == sent
        for field in ("type", "mode", "uid", "gid", "mtime", "size", "link", "device", "xattrs"):
            assert getattr(read, field) == getattr(wrote, field), (wrote.name, field)
    listed = subprocess.run(["tar", "-tf", "-"], input=data, capture_output=True, check=True).stdout
    assert len(listed.splitlines()) == len(members)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert opened.getmember("dir/file").uid == 3_000_000


def test_the_same_member_gives_the_same_bytes() -> None:
    """Layers can be reproduced."""
    member = Member(b"x" * 300, xattrs={"user.b": b"2", "user.a": b"1"})
    assert header(member) == header(Member(b"x" * 300, xattrs={"user.a": b"1", "user.b": b"2"}))


def _pax(*records: bytes) -> bytes:
    payload = b"".join(records)
    return header(Member(b"pax", b"x", size=len(payload))) + payload + padding(len(payload))


def _record(text: bytes) -> bytes:
    length = len(text) + 2
    while len(b"%d %s\n" % (length, text)) != length:
        length += 1
    return b"%d %s\n" % (length, text)


def _sparse(*numbers: int, size: int = 100, content: bytes = b"") -> bytes:
    text = b",".join(b"%d" % number for number in numbers)
    records = _pax(_record(b"GNU.sparse.size=%d" % size), _record(b"GNU.sparse.map=" + text))
    return records + header(Member(b"s", size=len(content))) + content + padding(len(content)) + END


HOSTILE = {
    "not an archive": b"x" * 1024,
    "cut inside the content": header(Member(b"a", size=1000)) + b"x" * 10,
    "cut inside a header": header(Member(b"a"))[:300],
    "cut inside a pax header": _pax(_record(b"path=x"))[:600],
    "data behind the first zero block": bytes(512) + header(Member(b"a")),
    "wrong checksum": header(Member(b"a")).replace(b"a", b"b", 1),
    "size is no number": header(Member(b"a"))[:124] + b"zzzzzzzzzzz\0" + header(Member(b"a"))[136:],
    "huge extended header": header(Member(b"p", b"x", size=MAX_EXTENDED + 1)),
    "huge GNU name": header(Member(b"p", b"L", size=1 << 32)),
    "pax length too long": _pax(b"999 path=x\n") + header(Member(b"a")) + END,
    "pax without length": _pax(b"path=x\n") + header(Member(b"a")) + END,
    "pax without equals": _pax(b"7 path\n") + header(Member(b"a")) + END,
    "pax size negative": _pax(_record(b"size=-1")) + header(Member(b"a")) + END,
    "pax size huge": _pax(_record(b"size=99999999999999999999999")) + header(Member(b"a")) + END,
    "pax NUL in path": _pax(_record(b"path=a\0b")) + header(Member(b"a")) + END,
    "pax time is no time": _pax(_record(b"mtime=NaN")) + header(Member(b"a")) + END,
    "sparse overlaps": _sparse(0, 10, 5, 5, content=b"x" * 15),
    "sparse beyond the end": _sparse(95, 10, content=b"x" * 10),
    "sparse with another amount": _sparse(0, 10, content=b"x" * 5),
    "sparse odd": _sparse(0, 10, 20, content=b"x" * 10),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("step", [64, 1 << 20])
def test_damaged_archives_are_refused(name: str, step: int) -> None:
    """Nothing is guessed, and nothing large is kept."""
    with pytest.raises(InvalidArchive):
        parse(HOSTILE[name], step)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K"])
def test_a_huge_extension_is_refused_before_it_is_read(kind: bytes) -> None:
    """Its header is enough: nothing of the payload is kept in memory."""
    reader = TarReader()
    with pytest.raises(InvalidArchive, match="extended header of"):
        list(reader.feed(header(Member(b"p", kind, size=MAX_EXTENDED + 1))))


def test_trailing_data_is_ignored() -> None:
    """What follows the end mark is none of the reader's business."""
    assert len(parse(header(Member(b"a")) + END + b"junk" * 1000)) == 1


def test_an_archive_without_end_mark_is_forgiven() -> None:
    """Some writers leave it out, and real programs read theirs."""
    assert len(parse(header(Member(b"a")))) == 1
