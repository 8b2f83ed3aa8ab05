"""What holds for every input: the filter language, the tar reader, and the garbage collector against a model."""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerd import filters
from containerd.archive.members import InvalidArchive, Member
from containerd.archive.reader import TarReader
from containerd.archive.writer import END, header, padding
from containerd.descriptors import DOCKER_MANIFEST, Descriptor
from containerd.errors import InvalidArgument
from containerd.images import Image
from containerd.scope import Scope

# --- the filter language

FIELDS = ("id", "image", "name")
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SELECTORS = st.lists(
    st.tuples(st.sampled_from(FIELDS), st.sampled_from(("==", "!=", "")), VALUES), min_size=1, max_size=4
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3)


def _quoted(value: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return '"' + "".join(escapes.get(character, character) for character in value) + '"'


def _text(selectors: list[tuple[str, str, str]]) -> str:
    return ",".join(field + (operator and operator + _quoted(value)) for field, operator, value in selectors)


def _matches(selectors: list[tuple[str, str, str]], item: dict[str, str]) -> bool:
    for field, operator, value in selectors:
        found = item.get(field)
        if operator == "" and found is None:
            return False
        if operator == "==" and found != value:
            return False
        if operator == "!=" and (found or "") == value:
            return False
    return True


@given(st.lists(SELECTORS, min_size=1, max_size=3), OBJECTS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_filter_says_what_it_was_written_for(alternatives: list[Any], item: dict[str, str]) -> None:
    """Whatever the values: any alternative, all of its selectors."""
    matcher = filters.parse([_text(selectors) for selectors in alternatives])
    expected = any(_matches(selectors, item) for selectors in alternatives)
    assert matcher.match(lambda path: item.get(path[0])) is expected
    pinned = matcher.equal_values("id")
    if expected and pinned is not None:
        assert item["id"] in pinned  # what a store looks up must hold all that match


@given(st.text(alphabet='abc."/|\\=!~, \n\u00e9', max_size=20))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    """Never another error, and what was parsed can be asked."""
    try:
        matcher = filters.parse([text])
    except InvalidArgument:
        return
    assert matcher.match(lambda _: "a") in (True, False)


# --- the tar reader

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and name.strip(b"/") != b"")
MEMBERS = st.lists(
    st.tuples(
        NAMES,
        st.binary(max_size=1500),
        st.integers(0, 0o7777),
        st.integers(0, 2**40),
        st.integers(-(2**33), 2**35),
        st.dictionaries(st.from_regex(r"user\.[a-z]{1,8}", fullmatch=True), st.binary(max_size=40), max_size=2),
    ),
    max_size=4,
)


def _read(data: bytes, step: int) -> list[tuple[Member, bytes]]:
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


@given(MEMBERS, st.integers(1, 3000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_written_is_read(members: list[Any], step: int) -> None:
    """Any names, modes, numbers, times and attributes, in pieces of any size; and tarfile reads the same."""
    archive, expected = bytearray(), []
    for name, content, mode, owner, seconds, xattrs in members:
        member = Member(name, mode=mode, uid=owner, gid=owner, mtime=seconds * 10**9, size=len(content), xattrs=xattrs)
        archive += header(member) + content + padding(len(content))
        expected.append((name, content, mode, owner, seconds * 10**9, xattrs))
    archive += END
    found = [
        (member.name, content, member.mode, member.uid, member.mtime, dict(member.xattrs))
        for member, content in _read(bytes(archive), step)
    ]
    assert found == expected
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as other:
        assert [item.size for item in other] == [len(content) for _, content, *_ in members]


@given(MEMBERS, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_damaged_archive_is_refused_or_read(members: list[Any], damage: list[tuple[int, int]]) -> None:
    """Never another error, and never more content than the archive has bytes."""
    archive = bytearray()
    for name, content, mode, *_ in members:
        archive += header(Member(name, mode=mode, size=len(content))) + content + padding(len(content))
    archive += END
    for position, value in damage:
        archive[position % len(archive)] = value
    try:
        found = _read(bytes(archive), 512)
    except InvalidArchive:
        return
    assert sum(len(content) for _, content in found) <= len(archive)


# --- the garbage collector

BLOBS = 6


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[list[set[int]], set[int], set[int], list[int]]:
    """References between blobs, and which of them are roots by label, leased, or named by images."""
    numbers = st.integers(0, BLOBS - 1)
    references = [draw(st.sets(numbers, max_size=3)) for _ in range(BLOBS)]
    return (
        references,
        draw(st.sets(numbers, max_size=1)),
        draw(st.sets(numbers, max_size=2)),
        draw(st.lists(numbers, max_size=2)),
    )


_counter = itertools.count()


@given(graph=_graphs())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_collection_leaves_what_can_be_reached(world: Any, graph: Any) -> None:
    """And nothing else, whatever refers to whatever, in circles too; a second collection finds nothing."""
    references, roots, leased, images = graph
    namespace = f"n{next(_counter)}"
    scope = Scope(namespace)
    blobs = [f"{namespace} {number}".encode() for number in range(BLOBS)]
    digests = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
    world.leases.create(namespace, "l", {})
    for number, blob in enumerate(blobs):
        labels = {f"containerd.io/gc.ref.content.{to}": digests[to] for to in references[number]}
        labels |= {"containerd.io/gc.root": "now"} if number in roots else {}
        world.put(blob, scope=Scope(namespace, "l") if number in leased else scope, labels=labels)
    for place, number in enumerate(images):
        world.images.create(scope, Image(f"i{place}", Descriptor(DOCKER_MANIFEST, digests[number], 1)))

    def left() -> set[str]:
        return {info.digest for info in world.content.list(scope)}

    world.collector.collect()
    assert left() == _reached(references, roots | leased | set(images), digests)
    assert world.collector.collect().nodes == []
    world.leases.delete(namespace, "l")
    world.collector.collect()
    assert left() == _reached(references, roots | set(images), digests)
    assert left() <= set(world.files())


def _reached(references: list[set[int]], begin: set[int], digests: list[str]) -> set[str]:
    seen, todo = set(begin), list(begin)
    while todo:
        for following in references[todo.pop()] - seen:
            seen.add(following)
            todo.append(following)
    return {digests[number] for number in seen}
