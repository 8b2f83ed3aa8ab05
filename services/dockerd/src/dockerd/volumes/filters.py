"""Which volumes a listing or a prune is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dockerd import errors

__all__ = ["Described", "boolean_filter", "label_matches", "matches", "require_known"]

Filters = Mapping[str, Sequence[str]]

_TRUE = frozenset({"1", "true"})
_FALSE = frozenset({"0", "false"})


class Described(Protocol):
    """What a filter looks at."""

    @property
    def name(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str] | None: ...


def require_known(filters: Filters, known: frozenset[str]) -> None:
    """Raise InvalidParameter for a filter that this listing does not have."""
    for key in filters:
        if key not in known:
            raise errors.InvalidParameter(f"invalid filter '{key}'")


def boolean_filter(filters: Filters, key: str, default: bool) -> bool:
    """The value of a filter that is true or false. Raises InvalidParameter when it is neither, or both."""
    values = filters.get(key)
    if not values:
        return default
    lowered = {value.lower() for value in values}
    if lowered <= _TRUE:
        return True
    if lowered <= _FALSE:
        return False
    raise errors.InvalidParameter(f"invalid filter '{key}=[{' '.join(values)}]'")


def label_matches(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether every ``key`` or ``key=value`` of ``wanted`` is there."""
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def matches(volume: Described, filters: Filters) -> bool:
    """Whether ``volume`` passes name (substring), driver, label and ``label!``."""
    names = filters.get("name", ())
    if names and not any(name in volume.name for name in names):
        return False
    drivers = filters.get("driver", ())
    if drivers and volume.driver not in drivers:
        return False
    labels = volume.labels or {}
    if not label_matches(labels, filters.get("label", ())):
        return False
    refused = filters.get("label!", ())
    return not (refused and label_matches(labels, refused))
