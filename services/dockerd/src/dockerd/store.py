"""The engine's one SQLite file, ``<data-root>/engine.db``, and the order of its migrations.

Each module that keeps something there owns its tables and gives its scripts as constants of its package:
``SCHEMA`` for the first version, and for every later change one more (``SCHEMA_2``, ``SCHEMA_3`` ...). A script's
place in :func:`migrations` is its number in the file, so scripts are only ever appended, never moved, edited or
removed.
"""

from __future__ import annotations

import os
from importlib import import_module

from gantry.database import Database

__all__ = ["migrations", "open_database"]

# (module, constant): position is the migration number.
_SCRIPTS = (
    ("dockerd.events", "SCHEMA"),
    ("dockerd.volumes", "SCHEMA"),
    ("dockerd.networks", "SCHEMA"),
    ("dockerd.images", "SCHEMA"),
    ("dockerd.containers", "SCHEMA"),
    ("dockerd.networks", "SCHEMA_2"),
)


def migrations() -> list[str]:
    """Return every migration script, in the order of their numbers."""
    return [getattr(import_module(module), constant) for module, constant in _SCRIPTS]


def open_database(data_root: str) -> Database:
    """Open (and bring up to date) the engine's database below ``data_root``.

    Raises :class:`gantry.database.SchemaTooNew` when a newer engine wrote it.
    """
    return Database(os.path.join(data_root, "engine.db"), migrations())
