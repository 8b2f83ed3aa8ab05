"""Containers: what is to run, not what runs (that is a task)."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from containerd import filters as filter_language
from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists, InvalidArgument, NotFound
from containerd.identifiers import validate_identifier, validate_labels
from containerd.metadata.namespaces import ensure_namespace
from gantry.database import Database

__all__ = ["OCCUPANTS", "SCHEMA", "Container", "ContainerStore", "container_field"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE container (
        namespace TEXT NOT NULL REFERENCES namespace (name),
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        image TEXT NOT NULL,
        runtime TEXT NOT NULL,
        runtime_options_type TEXT,
        runtime_options BLOB,
        spec_type TEXT NOT NULL,
        spec BLOB NOT NULL,
        snapshotter TEXT NOT NULL,
        snapshot_key TEXT NOT NULL,
        extensions TEXT NOT NULL,
        sandbox TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;
    """
}
OCCUPANTS: tuple[str, ...] = ("SELECT 'containers' FROM container WHERE namespace = ? LIMIT 1",)

_COLUMNS = (
    "namespace, id, labels, image, runtime, runtime_options_type, runtime_options, spec_type, spec, snapshotter, "
    "snapshot_key, extensions, sandbox, created_at, updated_at"
)


@dataclass(frozen=True)
class Container:
    """What a client says of a container; times are nanoseconds since 1970."""

    id: str
    runtime: str = ""
    runtime_options: AnyValue | None = None
    spec: AnyValue | None = None
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def container_field(container: Container, path: Sequence[str]) -> str | None:
    """Return the field that a filter names: id, image, runtime.name, labels.KEY."""
    match path[0]:
        case "id":
            return container.id
        case "image":
            return container.image or None
        case "runtime" if list(path[1:2]) == ["name"]:
            return container.runtime or None
        case "labels":
            return filter_language.label_field(container.labels, path[1:])
        case _:
            return None


class ContainerStore:
    """The containers of one database. Safe for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, container_id: str) -> Container:
        """Return one container. Raises :class:`NotFound`."""
        with self._database.read() as connection:
            return _read(connection, namespace, container_id)

    def with_label(self, label: str) -> list[tuple[str, Container]]:
        """Return the containers of all namespaces that have a label, each with its namespace."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM container WHERE instr(labels, ?) ORDER BY namespace, id",  # noqa: S608
                (json.dumps(label),),
            ).fetchall()
        found = [(row["namespace"], _from_row(row)) for row in rows]
        return [(namespace, container) for namespace, container in found if label in container.labels]

    def list(self, namespace: str, filters: Sequence[str] = ()) -> list[Container]:
        """Return the containers that match any of ``filters``, by id. Raises :class:`InvalidArgument`."""
        matcher = filter_language.parse(filters)
        ids = matcher.equal_values("id")
        with self._database.read() as connection:
            if ids is None:
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM container WHERE namespace = ? ORDER BY id",  # noqa: S608 (constant)
                    (namespace,),
                ).fetchall()
            else:
                rows = [row for key in sorted(ids) if (row := _row(connection, namespace, key))]
        return filter_language.select(matcher, map(_from_row, rows), container_field)

    def create(self, namespace: str, container: Container) -> Container:
        """Store a new container and return it with its times. Raises :class:`InvalidArgument`, `AlreadyExists`."""
        try:
            _validate(container)
        except InvalidArgument as error:
            raise InvalidArgument(f"create container failed validation: {error}") from None
        now = time.time_ns()
        container = replace(container, created_at=now, updated_at=now)
        with self._database.write() as connection:
            ensure_namespace(connection, namespace)
            if _row(connection, namespace, container.id) is not None:
                raise AlreadyExists(f'container "{container.id}": already exists')
            _write(connection, namespace, container)
        return container

    def update(self, namespace: str, container: Container, paths: Sequence[str]) -> Container:
        """Store the fields that the mask ``paths`` names; without a mask all that may change.

        Raises :class:`NotFound`, :class:`InvalidArgument` for a field that is fixed at creation.
        """
        if not container.id:
            raise InvalidArgument("must specify a container id: invalid argument")
        with self._database.write() as connection:
            row = _row(connection, namespace, container.id)
            if row is None:
                raise NotFound(f'container "{container.id}": not found')
            updated = _masked(_from_row(row), container, paths)
            try:
                _validate(updated)
            except InvalidArgument as error:
                raise InvalidArgument(f"update failed validation: {error}") from None
            updated = replace(updated, updated_at=time.time_ns())
            _write(connection, namespace, updated)
        return updated

    def delete(self, namespace: str, container_id: str) -> None:
        """Forget a container; its snapshot is left to its own. Raises :class:`NotFound`."""
        with self._database.write() as connection:
            deleted = connection.execute(
                "DELETE FROM container WHERE namespace = ? AND id = ?", (namespace, container_id)
            )
            if deleted.rowcount == 0:
                raise NotFound(f'container "{container_id}": not found')


def _masked(current: Container, wanted: Container, paths: Sequence[str]) -> Container:
    if not paths:
        if current.snapshotter != wanted.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable: invalid argument")
        if current.runtime != wanted.runtime:
            raise InvalidArgument("container.Runtime.Name field is immutable: invalid argument")
        paths = ("labels", "spec", "extensions", "image", "snapshotkey")
    for path in paths:
        collection, _, key = path.partition(".")
        if collection == "labels" and key:
            current = replace(current, labels={**current.labels, key: wanted.labels.get(key, "")})
        elif collection == "extensions" and key:
            extensions = {name: value for name, value in current.extensions.items() if name != key}
            if key in wanted.extensions:
                extensions[key] = wanted.extensions[key]
            current = replace(current, extensions=extensions)
        elif path == "labels":
            current = replace(current, labels=wanted.labels)
        elif path == "spec":
            current = replace(current, spec=wanted.spec)
        elif path == "extensions":
            current = replace(current, extensions=wanted.extensions)
        elif path == "image":
            current = replace(current, image=wanted.image)
        elif path in ("snapshotkey", "snapshot_key"):
            current = replace(current, snapshot_key=wanted.snapshot_key)
        else:
            raise InvalidArgument(f'cannot update "{path}" field on "{current.id}": invalid argument')
    # An empty label is how clients take one away.
    return replace(current, labels={key: value for key, value in current.labels.items() if value})


def _validate(container: Container) -> None:
    validate_identifier(container.id, "container.ID")
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length: invalid argument")
    validate_labels(container.labels, "containers.Labels")
    if not container.runtime:
        raise InvalidArgument("container.Runtime.Name must be set: invalid argument")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set: invalid argument")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set: invalid argument")


def _row(connection: sqlite3.Connection, namespace: str, container_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        f"SELECT {_COLUMNS} FROM container WHERE namespace = ? AND id = ?",  # noqa: S608 (constant)
        (namespace, container_id),
    ).fetchone()
    return row


def _read(connection: sqlite3.Connection, namespace: str, container_id: str) -> Container:
    row = _row(connection, namespace, container_id)
    if row is None:
        raise NotFound(f'container "{container_id}" in namespace "{namespace}": not found')
    return _from_row(row)


def _write(connection: sqlite3.Connection, namespace: str, container: Container) -> None:
    assert container.spec is not None
    options = container.runtime_options
    extensions = {
        name: [value.type_url, base64.b64encode(value.value).decode()] for name, value in container.extensions.items()
    }
    values = (
        namespace,
        container.id,
        json.dumps(dict(container.labels)),
        container.image,
        container.runtime,
        options.type_url if options else None,
        options.value if options else None,
        container.spec.type_url,
        container.spec.value,
        container.snapshotter,
        container.snapshot_key,
        json.dumps(extensions),
        container.sandbox,
        container.created_at,
        container.updated_at,
    )
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT OR REPLACE INTO container ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608


def _from_row(row: sqlite3.Row) -> Container:
    options = None
    if row["runtime_options_type"] is not None:
        options = AnyValue(row["runtime_options_type"], row["runtime_options"])
    return Container(
        id=row["id"],
        runtime=row["runtime"],
        runtime_options=options,
        spec=AnyValue(row["spec_type"], row["spec"]),
        image=row["image"],
        snapshotter=row["snapshotter"],
        snapshot_key=row["snapshot_key"],
        sandbox=row["sandbox"],
        labels=json.loads(row["labels"]),
        extensions={
            name: AnyValue(type_url, base64.b64decode(value))
            for name, (type_url, value) in json.loads(row["extensions"]).items()
        },
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
