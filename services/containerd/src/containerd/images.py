"""The image store: names that refer to content. An image keeps its content, and what that refers to, alive."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from containerd import filters as filter_language
from containerd.descriptors import Descriptor
from containerd.errors import AlreadyExists, InvalidArgument, NotFound
from containerd.identifiers import validate_labels
from containerd.labels import merge_labels
from containerd.metadata.leases import LeaseResource, add_to_lease, remove_from_lease
from containerd.metadata.namespaces import ensure_namespace
from containerd.observers import Dirty, Publish, nobody
from containerd.scope import Scope
from gantry.database import Database
from gantry.oci.digest import Digest, InvalidDigest

__all__ = ["Image", "ImageStore"]


@dataclass(frozen=True, slots=True)
class Image:
    """A name for content. Times are nanoseconds since 1970; 0 is filled in by the store."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore:
    """The images of one database. Safe for threads.

    ``publish(scope, topic, fields)`` is told of each change; ``dirty()`` that there may be garbage.
    """

    def __init__(
        self,
        database: Database,
        publish: Publish = nobody,
        dirty: Dirty = nobody,
    ) -> None:
        self._database = database
        self._publish = publish
        self._dirty = dirty

    def get(self, scope: Scope, name: str) -> Image:
        """Return one image. Raises :class:`NotFound`."""
        with self._database.read() as connection:
            return _read(connection, scope, name)

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]:
        """Return the images that match any filter, by name.

        Fields: ``name``, ``target.digest``, ``target.mediatype``, ``labels.KEY``, ``annotations.KEY``.
        """
        matcher = filter_language.parse(filters)
        names = matcher.equal_values("name")
        with self._database.read() as connection:
            if names is not None:
                marks = ", ".join("?" * len(names))
                query = f"SELECT * FROM image WHERE namespace = ? AND name IN ({marks}) ORDER BY name"  # noqa: S608
                rows = connection.execute(query, (scope.namespace, *names)).fetchall()
            else:
                query = "SELECT * FROM image WHERE namespace = ? ORDER BY name"
                rows = connection.execute(query, (scope.namespace,)).fetchall()
        images = [_from_row(row) for row in rows]
        return [image for image in images if matcher.match(lambda path, image=image: _field(image, path))]  # type: ignore[misc]

    def create(self, scope: Scope, image: Image) -> Image:
        """Add an image. Raises :class:`AlreadyExists`, :class:`InvalidArgument`."""
        _validate(image)
        now = time.time_ns()
        with self._database.write() as connection:
            ensure_namespace(connection, scope.namespace)
            inserted = connection.execute(
                "INSERT OR IGNORE INTO image (namespace, name, media_type, digest, size, annotations, labels, "
                "created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    scope.namespace,
                    image.name,
                    image.target.media_type,
                    image.target.digest,
                    image.target.size,
                    json.dumps(dict(image.target.annotations)),
                    json.dumps(dict(image.labels)),
                    image.created_at or now,
                    image.updated_at or now,
                ),
            )
            if not inserted.rowcount:
                raise AlreadyExists(f'image "{image.name}": already exists')
            add_to_lease(connection, scope.namespace, scope.lease, LeaseResource("images", image.name))
            created = _read(connection, scope, image.name)
        self._publish(scope, "/images/create", {"name": created.name, "labels": dict(created.labels)})
        return created

    def update(self, scope: Scope, image: Image, paths: Sequence[str] = ()) -> Image:
        """Change ``target``, ``target.annotations``, ``annotations``, ``labels`` or ``labels.KEY``; without paths all.

        Raises :class:`NotFound`, :class:`InvalidArgument`.
        """
        if not image.name:
            raise InvalidArgument("image name is required for update: invalid argument")
        with self._database.write() as connection:
            before = _read(connection, scope, image.name)
            after = _merge(before, image, paths)
            _validate(after)
            connection.execute(
                "UPDATE image SET media_type = ?, digest = ?, size = ?, annotations = ?, labels = ?, updated_at = ? "
                "WHERE namespace = ? AND name = ?",
                (
                    after.target.media_type,
                    after.target.digest,
                    after.target.size,
                    json.dumps(dict(after.target.annotations)),
                    json.dumps(dict(after.labels)),
                    image.updated_at or time.time_ns(),
                    scope.namespace,
                    image.name,
                ),
            )
            updated = _read(connection, scope, image.name)
        if before.target.digest != updated.target.digest:
            self._dirty()
        self._publish(scope, "/images/update", {"name": updated.name, "labels": dict(updated.labels)})
        return updated

    def delete(self, scope: Scope, name: str, target: str = "") -> None:
        """Remove a name; ``target``, when given, is the digest that it must refer to. Raises :class:`NotFound`."""
        with self._database.write() as connection:
            image = _read(connection, scope, name)
            if target and image.target.digest != target:
                raise NotFound(f'image "{name}" has target {image.target.digest}, not {target}: not found')
            connection.execute("DELETE FROM image WHERE namespace = ? AND name = ?", (scope.namespace, name))
            remove_from_lease(connection, scope.namespace, scope.lease, LeaseResource("images", name))
        self._dirty()
        self._publish(scope, "/images/delete", {"name": name})

    def store(self, scope: Scope, image: Image) -> Image:
        """Create an image, or make an existing one refer to the new target with the new labels."""
        while True:
            try:
                return self.create(scope, image)
            except AlreadyExists:
                try:
                    return self.update(scope, image)
                except NotFound:
                    continue  # deleted between the two: try again


def _merge(before: Image, given: Image, paths: Sequence[str]) -> Image:
    if not paths:
        labels = {key: value for key, value in given.labels.items() if value}
        return Image(before.name, given.target, labels, before.created_at)
    target, labels = before.target, dict(before.labels)
    for path in paths:
        if path == "target":
            target = given.target
        elif path in ("annotations", "target.annotations"):
            target = Descriptor(target.media_type, target.digest, target.size, dict(given.target.annotations))
        elif path.startswith("annotations."):
            key = path.removeprefix("annotations.")
            target = target.annotated(**{key: given.target.annotations.get(key, "")})
        else:
            labels = merge_labels(labels, given.labels, [path], f'image "{given.name}"')
    return Image(before.name, target, labels, before.created_at)


def _validate(image: Image) -> None:
    if not image.name:
        raise InvalidArgument("image name must not be empty: invalid argument")
    validate_labels(image.labels, "image.Labels")
    try:
        Digest(image.target.digest)
    except InvalidDigest as error:
        raise InvalidArgument(f'target.Digest "{image.target.digest}" invalid: {error}: invalid argument') from error
    if image.target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero: invalid argument")
    if not image.target.media_type:
        raise InvalidArgument("target.MediaType must be set: invalid argument")


def _read(connection: sqlite3.Connection, scope: Scope, name: str) -> Image:
    row = connection.execute("SELECT * FROM image WHERE namespace = ? AND name = ?", (scope.namespace, name)).fetchone()
    if row is None:
        raise NotFound(f'image "{name}": not found')
    return _from_row(row)


def _from_row(row: sqlite3.Row) -> Image:
    target = Descriptor(row["media_type"], row["digest"], row["size"], json.loads(row["annotations"]))
    return Image(row["name"], target, json.loads(row["labels"]), row["created_at"], row["updated_at"])


def _field(image: Image, path: Sequence[str]) -> str | None:
    match list(path):
        case ["name"]:
            return image.name
        case ["target", "digest"]:
            return image.target.digest
        case ["target", "mediatype"]:
            return image.target.media_type
        case ["labels", *key]:
            return filter_language.label_field(image.labels, key)
        case ["annotations", *key]:
            return filter_language.label_field(image.target.annotations, key)
        case _:
            return None
