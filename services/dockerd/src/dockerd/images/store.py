"""What the engine notes about images besides containerd: under which digests registries have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from gantry.database import Database

__all__ = ["SCHEMA", "RepositoryDigests"]

SCHEMA = """
CREATE TABLE image_repository_digests (
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX image_repository_digests_by_digest ON image_repository_digests (digest);
"""


class RepositoryDigests:
    """For each target digest the repositories (full names) that it was pulled from or pushed to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, repository: str, digest: str) -> None:
        """Note that a registry has this."""
        with self._database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO image_repository_digests VALUES (?, ?)", (repository, digest))

    def remove(self, repository: str, digest: str) -> None:
        """Forget it."""
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM image_repository_digests WHERE repository = ? AND digest = ?", (repository, digest)
            )

    def all(self) -> Mapping[str, list[str]]:
        """Digest -> repositories."""
        found: dict[str, list[str]] = defaultdict(list)
        with self._database.read() as connection:
            rows = connection.execute("SELECT repository, digest FROM image_repository_digests ORDER BY repository")
            for row in rows:
                found[row["digest"]].append(row["repository"])
        return found

    def of(self, digest: str) -> list[str]:
        """The repositories of one digest."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT repository FROM image_repository_digests WHERE digest = ? ORDER BY repository", (digest,)
            )
            return [row["repository"] for row in rows]
