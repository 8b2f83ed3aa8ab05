"""The volumes of one engine: their records, who uses them, and their directories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dockerd import errors
from dockerd.config import Config
from dockerd.events import EventLog
from dockerd.volumes import filters as volume_filters
from dockerd.volumes.copy_up import copy_up
from dockerd.volumes.names import ANONYMOUS_LABEL, anonymous_name, validate_name
from gantry.database import Database

__all__ = ["SCHEMA", "Pruned", "Volume", "VolumeService"]

SCHEMA = """
CREATE TABLE volumes (
    name TEXT PRIMARY KEY,
    labels TEXT NOT NULL,
    created_at TEXT NOT NULL
);
CREATE TABLE volume_uses (
    name TEXT NOT NULL REFERENCES volumes (name),
    container_id TEXT NOT NULL,
    PRIMARY KEY (name, container_id)
);
CREATE INDEX volume_uses_by_container ON volume_uses (container_id);
"""

DRIVER = "local"

_LIST_FILTERS = frozenset({"name", "driver", "label", "label!", "dangling"})
_PRUNE_FILTERS = frozenset({"label", "label!", "all"})
# The options that the local driver of the real engine takes: all of them make a volume a mount of something else.
_MOUNT_OPTIONS = frozenset({"type", "device", "o", "size"})


@dataclass(frozen=True)
class Volume:
    """One volume. ``labels`` and ``options`` are None when none were given; ``created_at`` is RFC 3339, UTC."""

    name: str
    mountpoint: str
    driver: str
    labels: Mapping[str, str] | None
    options: Mapping[str, str] | None
    created_at: str


@dataclass(frozen=True)
class Pruned:
    """What a prune removed: names, and bytes that became free."""

    names: tuple[str, ...]
    space_reclaimed: int


class VolumeService:
    """Named and anonymous volumes. Threads may call it at the same time."""

    def __init__(self, config: Config, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events
        self._root = os.path.join(config.data_root, "volumes")
        # Between the look at a directory and the change of it, nobody else may come.
        self._lock = threading.RLock()

    def start(self) -> None:
        """Make the directory of all volumes, and finish removals that a crash interrupted."""
        os.makedirs(self._root, mode=0o701, exist_ok=True)
        with self._database.read() as connection:
            known = {row["name"] for row in connection.execute("SELECT name FROM volumes")}
        for entry in os.scandir(self._root):
            # A removal renames first and forgets the record before it deletes: what has this ending is on its way out.
            if entry.name.endswith("~removed") and entry.name not in known:
                shutil.rmtree(entry.path)

    def close(self) -> None:
        """Volumes hold nothing open."""

    def ensure(
        self,
        name: str | None,
        driver: str = "",
        driver_opts: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Return the volume called ``name``, made now if there is none; without a name, a new anonymous one.

        Raises InvalidParameter for a name or an option that cannot be, NotFound for a driver that is not there.
        """
        given = name or anonymous_name()
        self._check_driver(given, driver)
        try:
            validate_name(given)
        except errors.InvalidParameter as error:
            raise errors.InvalidParameter(f"create {given}: {error}") from error
        self._check_options(given, driver_opts or {})
        if not name:
            labels = {**(labels or {}), ANONYMOUS_LABEL: ""}
        with self._lock:
            existing = self._find(given)
            if existing is not None:
                self._make_directory(given)
                return existing
            self._make_directory(given)
            created_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO volumes (name, labels, created_at) VALUES (?, ?, ?)",
                    (given, json.dumps(None if labels is None else dict(labels)), created_at),
                )
        self._events.publish("volume", "create", given, {"driver": DRIVER})
        return Volume(given, self.mountpoint(given), DRIVER, labels, None, created_at)

    def get(self, name: str) -> Volume:
        """The volume called ``name``. Raises NotFound."""
        volume = self._find(name)
        if volume is None:
            raise errors.NotFound(f"get {name}: no such volume")
        return volume

    def list(self, filters: volume_filters.Filters | None = None) -> Sequence[Volume]:
        """All volumes that pass ``filters`` (name, driver, label, dangling), by name.

        Raises InvalidParameter for an unknown filter.
        """
        filters = filters or {}
        volume_filters.require_known(filters, _LIST_FILTERS)
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM volumes ORDER BY name").fetchall()
            used = {row[0] for row in connection.execute("SELECT DISTINCT name FROM volume_uses")}
        volumes = [self._volume(row) for row in rows]
        if filters.get("dangling"):
            dangling = volume_filters.boolean_filter(filters, "dangling", False)
            volumes = [volume for volume in volumes if (volume.name not in used) is dangling]
        return [volume for volume in volumes if volume_filters.matches(volume, filters)]

    def remove(self, name: str, force: bool = False) -> None:
        """Remove a volume and what is in it.

        Raises Conflict while a container (even a stopped one) uses it, NotFound unless ``force``.
        """
        with self._lock:
            if self._find(name) is None:
                if force:
                    return
                raise errors.NotFound(f"get {name}: no such volume")
            self._remove(name)
        self._events.publish("volume", "destroy", name, {"driver": DRIVER})

    def prune(self, filters: volume_filters.Filters | None = None, anonymous_only: bool = True) -> Pruned:
        """Remove what no container uses and ``filters`` (label, label!, all) let through.

        ``anonymous_only`` is the rule since API 1.42; the filter ``all`` lifts it.
        """
        filters = dict(filters or {})
        volume_filters.require_known(filters, _PRUNE_FILTERS)
        if volume_filters.boolean_filter(filters, "all", default=not anonymous_only):
            anonymous_only = False
        filters.pop("all", None)
        names: list[str] = []
        reclaimed = 0
        for volume in self.list({**filters, "dangling": ["true"]}):
            if anonymous_only and ANONYMOUS_LABEL not in (volume.labels or {}):
                continue
            size = _disk_usage(volume.mountpoint)
            try:
                self.remove(volume.name)
            except (errors.Conflict, errors.NotFound):  # taken into use, or removed by another, in between
                continue
            names.append(volume.name)
            reclaimed += size
        self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(tuple(names), reclaimed)

    def acquire(self, name: str, container_id: str) -> Volume:
        """Note that a container uses the volume, until :meth:`release`. Raises NotFound."""
        with self._database.write() as connection:
            volume = self._find(name, connection)
            if volume is None:
                raise errors.NotFound(f"get {name}: no such volume")
            connection.execute("INSERT OR IGNORE INTO volume_uses VALUES (?, ?)", (name, container_id))
        self._make_directory(name)
        return volume

    def release(self, container_id: str) -> Sequence[str]:
        """Note that a removed container uses no volume any more; returns the names of those that it used."""
        with self._database.write() as connection:
            rows = connection.execute("SELECT name FROM volume_uses WHERE container_id = ?", (container_id,)).fetchall()
            connection.execute("DELETE FROM volume_uses WHERE container_id = ?", (container_id,))
        return [row["name"] for row in rows]

    def users(self, name: str) -> Sequence[str]:
        """Ids of the containers that use the volume."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT container_id FROM volume_uses WHERE name = ? ORDER BY rowid", (name,))
            return [row["container_id"] for row in rows]

    def populate(self, name: str, rootfs_directory: str, destination: str) -> None:
        """Copy what the image has at ``destination`` into the volume, if that is still empty.

        ``rootfs_directory`` is the root of the container's file system; ``destination`` is resolved inside it.
        Owners, modes, times and extended attributes come along, those of the directory itself too. A destination that
        the image does not have, or that is not a directory, leaves the volume as it is. Raises SystemFailure.
        """
        mountpoint = self.mountpoint(name)
        try:
            with self._lock:
                if self.is_empty(name):
                    copy_up(rootfs_directory, destination, mountpoint)
        except OSError as error:
            raise errors.SystemFailure(
                f"failed to copy the image's content at {destination} into volume {name}: {error.strerror}"
            ) from error

    def is_empty(self, name: str) -> bool:
        """Whether :meth:`populate` would copy something; when not, the caller need not mount a root file system."""
        with os.scandir(self.mountpoint(name)) as entries:
            return next(entries, None) is None

    def mountpoint(self, name: str) -> str:
        """The directory with the volume's content."""
        return os.path.join(self._root, name, "_data")

    def _find(self, name: str, connection: sqlite3.Connection | None = None) -> Volume | None:
        if connection is None:
            with self._database.read() as own:
                return self._find(name, own)
        row = connection.execute("SELECT * FROM volumes WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._volume(row)

    def _volume(self, row: sqlite3.Row) -> Volume:
        name = row["name"]
        return Volume(name, self.mountpoint(name), DRIVER, json.loads(row["labels"]), None, row["created_at"])

    def _make_directory(self, name: str) -> None:
        parent = os.path.join(self._root, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(parent, 0o701)
        data = os.path.join(parent, "_data")
        try:
            os.mkdir(data)
        except FileExistsError:
            return
        os.chmod(data, 0o755)  # noqa: S103  (as the real engine's, whatever the umask is)

    def _remove(self, name: str) -> None:
        directory = os.path.join(self._root, name)
        doomed = f"{directory}~removed"
        with self._database.write() as connection:
            rows = connection.execute("SELECT container_id FROM volume_uses WHERE name = ?", (name,))
            users = [row["container_id"] for row in rows]
            if users:
                raise errors.Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            connection.execute("DELETE FROM volumes WHERE name = ?", (name,))
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory, doomed)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(doomed)

    def _check_driver(self, name: str, driver: str) -> None:
        if driver not in ("", DRIVER, "default"):
            raise errors.NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found'
            )

    def _check_options(self, name: str, options: Mapping[str, str]) -> None:
        for option in options:
            if option not in _MOUNT_OPTIONS:
                raise errors.InvalidParameter(f'create {name}: invalid option: "{option}"')
        if options:
            listed = ", ".join(sorted(options))
            raise errors.NotSupported(
                f"create {name}: the local driver's mount options ({listed}) are not supported by this engine; "
                "mount it on the host and use a bind mount"
            )


def _disk_usage(directory: str) -> int:
    """Bytes that the files below ``directory`` occupy; a hard-linked file counts once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for path, directories, files in os.walk(directory):
        for name in (*directories, *files):
            try:
                status = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            if status.st_nlink > 1 and (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
    return total
