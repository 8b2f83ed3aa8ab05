"""Tables of the image store."""

from __future__ import annotations

SCHEMA: dict[int, str] = {}
OCCUPANTS: tuple[str, ...] = ()
