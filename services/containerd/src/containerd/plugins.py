"""What the daemon is made of, as clients see it through the Introspection service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PluginInfo"]


@dataclass(frozen=True)
class PluginInfo:
    """One plugin. ``platforms`` are ``os/architecture`` pairs; ``error`` is set when it cannot be used here."""

    type: str
    id: str
    requires: tuple[str, ...] = ()
    platforms: tuple[tuple[str, str], ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    error: str = ""
