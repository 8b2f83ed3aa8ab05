"""The content store: writing, resuming, sharing between namespaces, labels, and what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import Any

import pytest

from containerd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from containerd.scope import Scope

DATA = b"some content" * 1000


def test_a_committed_blob_can_be_read_and_is_read_only(world: Any, helpers: Any) -> None:
    """What was written comes back under its digest, from a file that nobody can write to."""
    digest = world.put(DATA, labels={"a": "1"})
    assert digest == helpers.digest_of(DATA)
    assert world.content.read(world.scope, digest, 1 << 20) == DATA
    assert b"".join(world.content.chunks(world.scope, digest, 777)) == DATA
    assert os.stat(world.content.files.blob(digest)).st_mode & 0o777 == 0o444
    info = world.content.info(world.scope, digest)
    assert (info.size, info.labels) == (len(DATA), {"a": "1"})
    assert ("test", "/content/create", {"digest": digest, "size": len(DATA)}) in world.events
    assert world.content.statuses(world.scope) == []
    assert list(world.content.files.ingest_ids()) == []


def test_an_ingest_is_resumed_where_it_was_left(world: Any, helpers: Any) -> None:
    """A writer that is closed and opened again knows offset and digest of what is there."""
    with world.content.writer(world.scope, "layer-1", total=len(DATA)) as writer:
        writer.write(DATA[:5000])
    status = world.content.status(world.scope, "layer-1")
    assert (status.offset, status.total) == (5000, len(DATA))
    with world.content.writer(world.scope, "layer-1") as writer:
        assert writer.offset == 5000
        assert writer.digest == helpers.digest_of(DATA[:5000])
        writer.write(DATA[5000:])
        assert writer.commit(size=len(DATA), expected=helpers.digest_of(DATA)) == helpers.digest_of(DATA)


def test_one_reference_has_one_writer(world: Any) -> None:
    """A second writer of a reference is turned away until the first one is closed; other namespaces do not matter."""
    with world.content.writer(world.scope, "x"):
        with pytest.raises(Unavailable, match="ref test/x locked"):
            world.content.writer(world.scope, "x")
        world.content.writer(Scope("other"), "x").close()
    world.content.writer(world.scope, "x").close()


def test_wrong_digest_and_size_are_refused_and_nothing_becomes_visible(world: Any, helpers: Any) -> None:
    """A commit that promises something else fails with both digests in its message; the ingest can start again."""
    wrong = helpers.digest_of(b"other")
    writer = world.content.writer(world.scope, "x")
    writer.write(DATA)
    with pytest.raises(
        FailedPrecondition, match=f"unexpected commit digest {helpers.digest_of(DATA)}, expected {wrong}"
    ):
        writer.commit(expected=wrong)
    with world.content.writer(world.scope, "x") as again:
        with pytest.raises(FailedPrecondition, match=f"unexpected commit size {len(DATA)}, expected 1"):
            again.commit(size=1)
    assert world.files() == []
    assert world.content.list(world.scope) == []
    with world.content.writer(world.scope, "x") as once_more:
        once_more.truncate()
        once_more.write(b"new")
        assert once_more.commit() == helpers.digest_of(b"new")


def test_sha512_is_verified_as_such(world: Any) -> None:
    """A digest of another algorithm is computed from what was written."""
    expected = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    with world.content.writer(world.scope, "x", expected=expected) as writer:
        writer.write(DATA)
        assert writer.commit(expected=expected) == expected
    assert world.content.read(world.scope, expected, 1 << 20) == DATA


def test_content_that_is_there_need_not_be_written(world: Any, helpers: Any) -> None:
    """In the same namespace a writer is refused; another namespace gets a writer that is complete at once."""
    digest = world.put(DATA)
    with pytest.raises(AlreadyExists, match=f"content {digest}: already exists"):
        world.content.writer(world.scope, "y", expected=digest)
    other = Scope("other")
    with pytest.raises(NotFound):
        world.content.info(other, digest)
    with world.content.writer(other, "y", total=len(DATA), expected=digest) as writer:
        assert writer.offset == len(DATA)
        writer.commit(size=len(DATA), expected=digest)
    assert world.content.read(other, digest, 1 << 20) == DATA
    world.content.delete(world.scope, digest)
    assert world.content.read(other, digest, 1 << 20) == DATA


def test_sharing_needs_the_right_digest(world: Any, helpers: Any) -> None:
    """A namespace cannot commit shared content under another promise."""
    digest = world.put(DATA)
    with world.content.writer(Scope("other"), "y", expected=digest) as writer:
        with pytest.raises(FailedPrecondition):
            writer.commit(expected=helpers.digest_of(b"x"))


def test_writing_the_same_twice_says_so_and_keeps_one(world: Any) -> None:
    """A second commit of equal content reports that it exists; its ingest is gone."""
    digest = world.put(DATA)
    writer = world.content.writer(world.scope, "again")
    writer.write(DATA)
    with pytest.raises(AlreadyExists, match=f"content {digest}: already exists"):
        writer.commit()
    assert world.files() == [digest]
    assert world.content.statuses(world.scope) == []


def test_abort_drops_the_bytes(world: Any) -> None:
    """After an abort the reference starts at zero; an unknown one is an error."""
    with world.content.writer(world.scope, "x") as writer:
        writer.write(DATA)
    world.content.abort(world.scope, "x")
    assert list(world.content.files.ingest_ids()) == []
    with pytest.raises(NotFound, match="reference x: not found"):
        world.content.abort(world.scope, "x")
    with pytest.raises(NotFound):
        world.content.status(world.scope, "x")


def test_labels_are_updated_by_path(world: Any) -> None:
    """A field mask changes one label; an empty value removes it; without one all are replaced."""
    digest = world.put(DATA, labels={"a": "1", "b": "2"})
    update = world.content.update
    assert update(world.scope, digest, {"b": "3"}, ["labels.b"]).labels == {"a": "1", "b": "3"}
    assert update(world.scope, digest, {"b": ""}, ["labels.b"]).labels == {"a": "1"}
    assert update(world.scope, digest, {"c": "4"}).labels == {"c": "4"}
    with pytest.raises(InvalidArgument, match='cannot update "size"'):
        update(world.scope, digest, {}, ["size"])
    with pytest.raises(InvalidArgument, match="label key and value length"):
        update(world.scope, digest, {"k": "v" * 5000}, ["labels.k"])


def test_list_filters_by_label_and_digest(world: Any) -> None:
    """Filters are alternatives of conditions."""
    first, second = world.put(b"1", labels={"kind": "a.b"}), world.put(b"2", labels={"kind": "c"})
    found = world.content.list
    assert [info.digest for info in found(world.scope, ['labels."kind"==a.b'])] == [first]
    assert {info.digest for info in found(world.scope, [f"digest=={first}", "labels.kind==c"])} == {first, second}
    assert found(Scope("other")) == []


def test_what_does_not_exist_is_named(world: Any, helpers: Any) -> None:
    """Errors name the digest in the words that clients know."""
    digest = helpers.digest_of(b"none")
    for call in (
        lambda: world.content.info(world.scope, digest),
        lambda: world.content.update(world.scope, digest, {}),
        lambda: world.content.delete(world.scope, digest),
        lambda: world.content.open(world.scope, digest),
    ):
        with pytest.raises(NotFound, match=f"content digest {digest}: not found"):
            call()


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:", "md5:abc", "x", "sha256:" + "A" * 64])
def test_a_digest_never_becomes_another_path(world: Any, digest: str) -> None:
    """Only well-formed digests reach the disk."""
    with pytest.raises(InvalidArgument):
        world.content.writer(world.scope, "x", expected=digest)
    assert list(world.content.files.ingest_ids()) == []


def test_a_full_disk_leaves_no_blob(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC is RESOURCE_EXHAUSTED and names the ingest; nothing half-made is visible."""
    writer = world.content.writer(world.scope, "big")

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhausted, match="cannot write ingest big: No space left on device"):
        writer.write(DATA)
    writer.close()
    assert world.files() == []
    assert world.content.list(world.scope) == []
