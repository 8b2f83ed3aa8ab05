"""The migrations of ``metadata.db``, put together from the tables that each module of this package owns.

A module has ``SCHEMA``, which maps a schema version to the SQL script that brings the module's tables there.
Scripts of one version run in the order of ``MODULES``, so a table may refer to those of an earlier module. A version
that has been released is never changed: a new one is added.

A module has ``OCCUPANTS`` as well, queries for what keeps a namespace from being deleted: the namespace is their one
parameter, and each row they find is a word for the kind of thing ("containers").
"""

from __future__ import annotations

from typing import Protocol

from containerd.metadata import containers, content, images, leases, namespaces, restarts, snapshots

__all__ = ["MIGRATIONS", "OCCUPANTS", "VERSION"]

VERSION = 2


class _Module(Protocol):
    SCHEMA: dict[int, str]
    OCCUPANTS: tuple[str, ...]


MODULES: tuple[_Module, ...] = (namespaces, images, content, containers, snapshots, leases, restarts)

MIGRATIONS: list[str] = [
    "\n".join(module.SCHEMA.get(version, "") for module in MODULES) for version in range(1, VERSION + 1)
]

OCCUPANTS: list[str] = [occupant for module in MODULES for occupant in module.OCCUPANTS]
