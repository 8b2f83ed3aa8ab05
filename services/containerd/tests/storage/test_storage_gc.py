"""Garbage collection: what is kept, what goes, and what a killed daemon leaves."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from containerd.descriptors import DOCKER_MANIFEST, Descriptor
from containerd.images import Image
from containerd.metadata.leases import LeaseResource
from containerd.metadata.namespaces import ensure_namespace
from containerd.scope import Scope

PAST, FUTURE = "2001-01-01T00:00:00Z", "2901-01-01T00:00:00+00:00"


def contents(world: Any) -> list[str]:
    """Return the digests visible in the namespace."""
    return sorted(info.digest for info in world.content.list(world.scope))


def add_image(world: Any, name: str, digest: str, **labels: str) -> None:
    """Name content."""
    world.images.create(world.scope, Image(name, Descriptor(DOCKER_MANIFEST, digest, 1), labels))


def add_container(world: Any, name: str, snapshotter: str, key: str, labels: dict[str, str] | None = None) -> None:
    """Insert a container as the container store does."""
    with world.database.write() as connection:
        ensure_namespace(connection, "test")
        connection.execute(
            "INSERT INTO container (namespace, id, labels, image, runtime, spec_type, spec, snapshotter, snapshot_key, "
            "extensions, sandbox, created_at, updated_at) VALUES ('test', ?, ?, '', 'r', '', '', ?, ?, '{}', '', 1, 1)",
            (name, json.dumps(labels or {}), snapshotter, key),
        )


def test_what_nobody_refers_to_goes(world: Any) -> None:
    """Content alone is garbage, in the database and on the disk."""
    digest = world.put(b"garbage")
    removed = world.collector.collect()
    assert removed.nodes == [("test", "content", digest)]
    assert removed.size == len(b"garbage")
    assert (contents(world), world.files()) == ([], [])


def test_an_image_keeps_its_whole_tree(world: Any) -> None:
    """References by label are followed, with numbers and platforms behind the kind."""
    layer, config = world.put(b"layer"), world.put(b"config")
    manifest = world.put(
        b"manifest",
        labels={"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer},
    )
    index = world.put(b"index", labels={"containerd.io/gc.ref.content.m.12": manifest})
    world.put(b"other")
    add_image(world, "i", index)
    world.collector.collect()
    assert contents(world) == sorted((layer, config, manifest, index))
    world.images.delete(world.scope, "i")
    world.collector.collect()
    assert world.files() == []


def test_content_keeps_snapshots_and_they_keep_their_parents(world: Any) -> None:
    """The label on a configuration names the topmost snapshot; active ones nobody knows go."""
    snapshotter = world.snapshotters["overlayfs"]
    for key, parent in (("one", ""), ("two", "one"), ("three", "two")):
        snapshotter.prepare(world.scope, "x", parent)
        snapshotter.commit(world.scope, key, "x")
    snapshotter.prepare(world.scope, "forgotten", "two")
    add_image(world, "i", world.put(b"config", labels={"containerd.io/gc.ref.snapshot.overlayfs": "two"}))
    world.collector.collect()
    assert [info.key for info in snapshotter.list(world.scope)] == ["one", "two"]
    assert len(list(snapshotter.directory.iterdir())) == 2


def test_a_container_keeps_its_snapshot(world: Any) -> None:
    """By its field, and more of them by its labels."""
    snapshotter = world.snapshotters["native"]
    for key in ("c1", "c2", "c3"):
        snapshotter.prepare(world.scope, key)
    add_container(world, "c", "native", "c1", {"containerd.io/gc.ref.snapshot.native/extra": "c2"})
    world.collector.collect()
    assert [info.key for info in snapshotter.list(world.scope)] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        ({"containerd.io/gc.root": "2026"}, True),
        ({"containerd.io/gc.expire": FUTURE}, True),
        ({"containerd.io/gc.expire": PAST}, False),
        ({"containerd.io/gc.expire": "someday"}, True),
        ({"containerd.io/gc.rooted": "1"}, False),
        ({}, False),
    ],
)
def test_roots_by_label(world: Any, labels: dict[str, str], kept: bool) -> None:
    """Content and snapshots can say themselves that they stay, for ever or until a time."""
    digest = world.put(b"x", labels=labels)
    world.snapshotters["native"].prepare(world.scope, "s", "", labels)
    world.collector.collect()
    assert contents(world) == ([digest] if kept else [])
    assert len(world.snapshotters["native"].list(world.scope)) == int(kept)


def test_an_expired_image_goes(world: Any) -> None:
    """An image with a time is kept until then only."""
    digest = world.put(b"x")
    add_image(world, "later", digest, **{"containerd.io/gc.expire": FUTURE})
    add_image(world, "over", digest, **{"containerd.io/gc.expire": PAST})
    world.collector.collect()
    assert [image.name for image in world.images.list(world.scope)] == ["later"]


def test_back_references(world: Any) -> None:
    """An expired image that belongs to another one lives as long as that."""
    digest = world.put(b"x")
    add_image(world, "main", digest)
    add_image(world, "extra", digest, **{"containerd.io/gc.expire": PAST, "containerd.io/gc.bref.image": "main"})
    world.collector.collect()
    assert len(world.images.list(world.scope)) == 2
    world.images.delete(world.scope, "main")
    world.collector.collect()
    assert world.images.list(world.scope) == []


def test_a_lease_keeps_what_is_made_under_it(world: Any) -> None:
    """Content, ingests, images and snapshots made with a lease stay until it ends."""
    world.leases.create("test", "l", {})
    leased = Scope("test", "l")
    digest = world.put(b"x", scope=leased)
    with world.content.writer(leased, "ingest") as writer:
        writer.write(b"half")
    world.snapshotters["overlayfs"].prepare(leased, "active")
    world.collector.collect()
    assert contents(world) == [digest]
    assert [status.ref for status in world.content.statuses(world.scope)] == ["ingest"]
    assert len(world.snapshotters["overlayfs"].list(world.scope)) == 1
    world.leases.delete("test", "l")
    world.collector.collect()
    assert (contents(world), world.content.statuses(world.scope)) == ([], [])
    assert world.snapshotters["overlayfs"].list(world.scope) == []
    assert list(world.content.files.ingest_ids()) == []


def test_leases_end_by_themselves(world: Any) -> None:
    """An expired lease keeps nothing, and goes itself."""
    world.leases.create("test", "over", {"containerd.io/gc.expire": PAST})
    world.leases.create("test", "still", {"containerd.io/gc.expire": FUTURE})
    world.put(b"x", scope=Scope("test", "over"))
    kept = world.put(b"y", scope=Scope("test", "still"))
    world.collector.collect()
    assert contents(world) == [kept]
    assert [lease.id for lease in world.leases.list("test")] == ["still"]


def test_a_flat_lease_keeps_only_what_it_names(world: Any) -> None:
    """What that refers to is not its business."""
    child = world.put(b"child")
    parent = world.put(b"parent", labels={"containerd.io/gc.ref.content.0": child})
    world.leases.create("test", "l", {"containerd.io/gc.flat": "1"})
    world.leases.add_resource("test", "l", LeaseResource("content", parent))
    world.collector.collect()
    assert contents(world) == [parent]


def test_another_namespace_keeps_the_bytes(world: Any) -> None:
    """A file is deleted when the last namespace has forgotten it."""
    digest = world.put(b"x")
    other = Scope("other")
    with world.content.writer(other, "x", expected=digest) as writer:
        writer.commit(expected=digest)
    world.content.update(other, digest, {"containerd.io/gc.root": "1"})
    world.collector.collect()
    assert contents(world) == []
    assert world.content.read(other, digest, 10) == b"x"
    assert world.files() == [digest]


def test_an_ingest_without_lease_has_a_day(world: Any) -> None:
    """Then it is garbage, but never while someone is writing to it."""
    with world.content.writer(world.scope, "old") as writer:
        writer.write(b"x")
    world.collector.collect()
    assert len(world.content.statuses(world.scope)) == 1
    with world.database.write() as connection:
        connection.execute("UPDATE ingest SET expires_at = 1")
    with world.content.writer(world.scope, "old"):
        with world.database.write() as connection:
            connection.execute("UPDATE ingest SET expires_at = 1")
        world.collector.collect()
        assert len(world.content.statuses(world.scope)) == 1
    world.collector.collect()
    assert world.content.statuses(world.scope) == []


def test_killed_after_the_decision(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are gone and files are not: the next collection deletes the files."""
    digest = world.put(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(type(world.collector), "_sweep_content", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            world.collector.collect()
    assert contents(world) == []
    assert world.files() == [digest]
    world.collector.collect()
    assert world.files() == []


def test_a_failed_decision_removes_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or nothing: an error in the middle leaves every row and every file."""
    world.put(b"x")
    world.put(b"y")
    import containerd.gc as module

    def fail(connection: sqlite3.Connection, nodes: Any) -> None:
        connection.execute("DELETE FROM blob WHERE digest = ?", (next(iter(nodes))[2],))
        raise RuntimeError("in the middle")

    monkeypatch.setattr(module, "_delete", fail)
    with pytest.raises(RuntimeError):
        world.collector.collect()
    assert len(contents(world)) == 2
    assert len(world.files()) == 2


def test_files_nobody_knows_go_and_names_that_are_no_digests_stay(world: Any) -> None:
    """A blob whose row was never committed is swept; anything else in the directory is not ours to delete."""
    digest = world.put(b"x", labels={"containerd.io/gc.root": "1"})
    with world.database.write() as connection:
        connection.execute("DELETE FROM blob")
    stranger = world.directory / "content" / "blobs" / "sha256" / "notes.txt"
    stranger.write_text("mine")
    world.collector.collect()
    assert digest not in world.files()
    assert stranger.exists()
