from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from containerd.metadata.containers import Container, ContainerStore
from containerd.metadata.leases import LeaseResource, LeaseStore, add_to_lease
from containerd.metadata.namespaces import NamespaceStore
from containerd.metadata.schema import MIGRATIONS, OCCUPANTS
from gantry.database import Database

SPEC = AnyValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.2.0"}')
WEB = Container(id="web", runtime="io.containerd.runc.v2", spec=SPEC, labels={"tier": "front"}, image="busybox")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "metadata.db", MIGRATIONS)


@pytest.fixture
def namespaces(database: Database) -> NamespaceStore:
    return NamespaceStore(database, OCCUPANTS)


@pytest.fixture
def containers(database: Database) -> ContainerStore:
    return ContainerStore(database)


@pytest.fixture
def leases(database: Database) -> LeaseStore:
    return LeaseStore(database)


def test_a_namespace_is_made_once(namespaces: NamespaceStore) -> None:
    """The second creation is refused with the words that clients match on."""
    namespaces.create("prod", {"a": "1"})
    with pytest.raises(AlreadyExists, match=r'^namespace "prod": already exists$'):
        namespaces.create("prod", {})
    assert [(n.name, n.labels) for n in namespaces.list()] == [("prod", {"a": "1"})]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "..", "a..b", "x" * 77, "a\n"])
def test_impossible_names_are_refused(namespaces: NamespaceStore, name: str) -> None:
    """Names become directories: nothing that could leave one gets in."""
    with pytest.raises(InvalidArgument, match=r"identifier"):
        namespaces.create(name, {})


def test_labels_of_a_namespace(namespaces: NamespaceStore) -> None:
    """Labels are merged or replaced, an empty value takes one away, and a huge one is refused."""
    namespaces.create("prod", {"a": "1", "b": "2"})
    assert namespaces.set_labels("prod", {"b": "", "c": "3"}, replace=False).labels == {"a": "1", "c": "3"}
    assert namespaces.set_labels("prod", {"d": "4"}, replace=True).labels == {"d": "4"}
    with pytest.raises(InvalidArgument, match=r"greater than maximum size"):
        namespaces.set_labels("prod", {"k": "v" * 4096}, replace=False)
    with pytest.raises(NotFound):
        namespaces.set_labels("nowhere", {"a": "1"}, replace=False)
    assert namespaces.get("nowhere").labels == {}


def test_a_namespace_in_use_stays(namespaces: NamespaceStore, containers: ContainerStore) -> None:
    """An object makes its namespace, and keeps it from being deleted."""
    containers.create("prod", WEB)
    with pytest.raises(FailedPrecondition, match=r'"prod" must be empty, but it still has containers'):
        namespaces.delete("prod")
    containers.delete("prod", "web")
    namespaces.delete("prod")
    with pytest.raises(NotFound, match=r'^namespace "prod": not found$'):
        namespaces.delete("prod")


def test_a_container_comes_back_as_it_was(containers: ContainerStore) -> None:
    """Every field survives the database, in its own namespace only."""
    whole = replace(
        WEB,
        runtime_options=AnyValue("containerd.runc.v1.Options", b"\x01\x00\xff"),
        snapshotter="overlayfs",
        snapshot_key="web",
        sandbox="pod",
        extensions={"x": AnyValue("type", b"\x00\xfe")},
    )
    created = containers.create("a", whole)
    assert containers.get("a", "web") == created
    assert replace(created, created_at=0, updated_at=0) == whole
    assert created.created_at == created.updated_at > 1_600_000_000_000_000_000
    with pytest.raises(NotFound, match=r'^container "web" in namespace "b": not found$'):
        containers.get("b", "web")
    with pytest.raises(AlreadyExists, match=r'^container "web": already exists$'):
        containers.create("a", whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "container.ID: identifier must not be empty"),
        ({"id": "../x"}, "container.ID: identifier"),
        ({"runtime": ""}, "container.Runtime.Name must be set"),
        ({"spec": None}, "container.Spec must be set"),
        ({"snapshot_key": "k"}, "container.Snapshotter must be set"),
        ({"extensions": {"": SPEC}}, "keys must not be zero-length"),
        ({"labels": {"k": "v" * 5000}}, "containers.Labels: label key and value length"),
    ],
)
def test_bad_containers_are_refused(containers: ContainerStore, change: dict[str, object], message: str) -> None:
    """The message names the field."""
    with pytest.raises(InvalidArgument, match=message):
        containers.create("a", replace(WEB, **change))  # type: ignore[arg-type]
    assert containers.list("a") == []


def test_containers_are_listed_by_filter(containers: ContainerStore) -> None:
    """Filters see id, image, runtime and labels; the list is in the order of ids."""
    containers.create("a", WEB)
    containers.create("a", replace(WEB, id="db", labels={"tier": "back"}, image="postgres"))

    def ids(*filters: str) -> list[str]:
        return [container.id for container in containers.list("a", filters)]

    assert ids() == ["db", "web"]
    assert ids("labels.tier==back") == ["db"]
    assert ids("id==web", "id==nope") == ["web"]
    assert ids("id==web,labels.tier==back") == []
    assert ids("runtime.name~=runc", "image==x") == ["db", "web"]
    assert ids("image==postgres") == ["db"]


def test_an_update_follows_its_mask(containers: ContainerStore) -> None:
    """What the mask does not name stays; a label set to nothing is gone."""
    before = containers.create("a", replace(WEB, labels={"tier": "front", "old": "1"}))
    wanted = replace(WEB, labels={"new": "2"}, image="other", spec=AnyValue("t", b"{}"))
    after = containers.update("a", wanted, ["labels.new", "labels.old", "image"])
    assert (after.labels, after.image, after.spec) == ({"tier": "front", "new": "2"}, "other", SPEC)
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at
    assert containers.update("a", wanted, []).labels == {"new": "2"}
    with pytest.raises(InvalidArgument, match=r'cannot update "id" field on "web"'):
        containers.update("a", wanted, ["id"])
    with pytest.raises(InvalidArgument, match=r"container.Snapshotter field is immutable"):
        containers.update("a", replace(wanted, snapshotter="native"), [])
    with pytest.raises(NotFound):
        containers.update("a", replace(wanted, id="nope"), [])


def test_a_lease_holds_its_resources_until_it_ends(leases: LeaseStore, database: Database) -> None:
    """Resources come back sorted; with the lease they are gone."""
    leases.create("a", "l1", {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"})
    leases.add_resource("a", "l1", LeaseResource("snapshots/overlayfs", "key"))
    leases.add_resource("a", "l1", LeaseResource("content", "sha256:" + "a" * 64))
    leases.add_resource("a", "l1", LeaseResource("content", "sha256:" + "a" * 64))
    with database.write() as connection:
        add_to_lease(connection, "a", "l1", LeaseResource("ingests", "ref"))
    assert [r.type for r in leases.resources("a", "l1")] == ["content", "ingests", "snapshots/overlayfs"]
    leases.delete_resource("a", "l1", LeaseResource("ingests", "ref"))
    leases.delete_resource("a", "l1", LeaseResource("ingests", "never"))
    assert len(leases.resources("a", "l1")) == 2
    with pytest.raises(AlreadyExists, match=r'^lease "l1": already exists$'):
        leases.create("a", "l1", {})
    leases.delete("a", "l1")
    with pytest.raises(NotFound, match=r'^lease "l1": not found$'):
        leases.resources("a", "l1")
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM lease_resource").fetchone()[0] == 0


def test_what_a_lease_can_hold(leases: LeaseStore) -> None:
    """Unknown types and ids that cannot be digests are refused by name."""
    leases.create("a", "l1", {})
    with pytest.raises(Unimplemented, match=r"resource type volumes not supported"):
        leases.add_resource("a", "l1", LeaseResource("volumes", "x"))
    with pytest.raises(InvalidArgument, match=r"invalid snapshot resource type snapshots"):
        leases.add_resource("a", "l1", LeaseResource("snapshots", "x"))
    with pytest.raises(InvalidArgument, match=r"invalid content resource id x"):
        leases.add_resource("a", "l1", LeaseResource("content", "x"))


def test_a_request_with_a_lease_that_is_gone_fails(database: Database) -> None:
    """Nothing is made that nothing would protect."""
    with pytest.raises(NotFound, match=r"lease does not exist"), database.write() as connection:
        add_to_lease(connection, "a", "gone", LeaseResource("ingests", "ref"))
    with database.write() as connection:
        add_to_lease(connection, "a", None, LeaseResource("ingests", "ref"))


def test_leases_are_listed_by_filter(leases: LeaseStore) -> None:
    """Filters see the id and the labels."""
    leases.create("a", "l1", {"x": "1"})
    leases.create("a", "l2", {"x": "2"})
    leases.create("b", "l3", {"x": "1"})
    assert [lease.id for lease in leases.list("a", ["labels.x==1"])] == ["l1"]
    assert [lease.id for lease in leases.list("a", ["id==l2"])] == ["l2"]
