"""Tables of the snapshot store."""

from __future__ import annotations

SCHEMA: dict[int, str] = {}
OCCUPANTS: tuple[str, ...] = ()
