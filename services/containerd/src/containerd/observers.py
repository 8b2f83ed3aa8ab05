"""Those who want to know what the stores do; without one, nobody is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from containerd.scope import Scope

__all__ = ["Dirty", "Publish", "nobody"]

Publish = Callable[[Scope, str, Mapping[str, object]], None]
"""Is told of a change: in which scope, the event's topic, and the fields of its message."""

Dirty = Callable[[], None]
"""Is told that there may be garbage."""


def nobody(*_: object) -> None:
    """Listen to nothing: takes whatever it is told."""
