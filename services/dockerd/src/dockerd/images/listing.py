"""Which images a listing or a prune is about."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from dockerd import errors
from dockerd.images.model import Image
from gantry.oci import reference as references
from gantry.oci.reference import InvalidReference

__all__ = ["LIST_FILTERS", "PRUNE_FILTERS", "created_seconds", "is_true", "matches", "parse_until", "seconds"]

Filters = Mapping[str, Sequence[str]]

LIST_FILTERS = frozenset({"dangling", "label", "before", "since", "reference", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})

_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(h|ms|m|s|us|ns)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def created_seconds(image: Image) -> float:
    """When the image was made, in seconds since 1970; 0 when it does not say."""
    return seconds(image.created)


def seconds(moment: str) -> float:
    """RFC 3339 as seconds since 1970; 0 for what is none."""
    return _rfc3339(moment) or 0.0


def _rfc3339(text: str) -> float | None:
    # Python reads at most six digits of the fraction.
    trimmed = re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)
    try:
        return datetime.fromisoformat(trimmed).timestamp()
    except ValueError:
        return None


def is_true(filters: Filters, key: str, default: bool) -> bool:
    """A filter that is true or false. Raises InvalidParameter for anything else."""
    values = {value.lower() for value in filters.get(key, ())}
    if not values:
        return default
    if values <= {"1", "true"}:
        return True
    if values <= {"0", "false"}:
        return False
    raise errors.InvalidParameter(f"invalid filter '{key}=[{' '.join(filters[key])}]'")


def parse_until(text: str) -> float:
    """A moment, as seconds since 1970, as RFC 3339, or as a duration before now (``24h``). Raises InvalidParameter."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    pieces = _DURATION.findall(text)
    if pieces and "".join(number + unit for number, unit in pieces) == text:
        return time.time() - sum(float(number) * _UNITS[unit] for number, unit in pieces)
    moment = _rfc3339(text)
    if moment is None:
        raise errors.InvalidParameter(f"invalid filter 'until={text}'")
    return moment


def matches(image: Image, filters: Filters, find: Callable[[str], Image]) -> bool:
    """Whether ``image`` passes ``filters``; ``find`` resolves the images that before and since name."""
    if filters.get("dangling") and image.dangling is not is_true(filters, "dangling", False):
        return False
    if not _labels(image, filters.get("label", ())):
        return False
    refused = filters.get("label!", ())
    if refused and _labels(image, refused):
        return False
    created = created_seconds(image)
    if any(created >= created_seconds(find(name)) for name in filters.get("before", ())):
        return False
    if any(created <= created_seconds(find(name)) for name in filters.get("since", ())):
        return False
    if any(created > parse_until(text) for text in filters.get("until", ())):
        return False
    patterns = filters.get("reference", ())
    return not patterns or any(_reference(name, pattern) for name in image.repo_tags for pattern in patterns)


def _labels(image: Image, wanted: Sequence[str]) -> bool:
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in image.labels or (equals and image.labels[key] != value):
            return False
    return True


def _reference(name: str, pattern: str) -> bool:
    """Whether a shell pattern fits a name, with its tag or without, as users write it. ``*`` stops at a slash."""
    try:
        parsed = references.parse(name)
    except InvalidReference:
        return _path_match(name, pattern)
    return _path_match(parsed.familiar, pattern) or _path_match(parsed.familiar_name, pattern)


def _path_match(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
