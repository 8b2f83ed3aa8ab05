"""Which containers a listing or a prune is about: the ``filters`` of the Engine API."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dockerd import errors
from dockerd.containers.model import Container, Status

__all__ = ["LIST_FILTERS", "PRUNE_FILTERS", "Selection", "prune_predicate", "select"]

Filters = Mapping[str, Sequence[str]]

LIST_FILTERS = frozenset(
    {
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    }
)
PRUNE_FILTERS = frozenset({"label", "label!", "until"})

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Selection:
    """The lookups that some filters need: an image's id by its name, a container by reference, a network's settings."""

    def __init__(
        self,
        image_id: Callable[[str], str],
        container: Callable[[str], Container],
        settings: Callable[[Container], Mapping[str, Any]],
    ) -> None:
        self.image_id = image_id
        self.container = container
        self.settings = settings


def select(
    containers: Iterable[Container], filters: Filters, lookups: Selection, *, everything: bool, limit: int = 0
) -> list[Container]:
    """The containers to list, in the order given. ``everything``: also those that do not run.

    Raises InvalidParameter for values that cannot be, NotFound for a container of ``before`` or ``since``.
    """
    statuses, exited = _statuses(filters), _exit_codes(filters)
    show_all = everything or limit > 0 or bool(statuses) or bool(exited)
    before = [lookups.container(reference).created for reference in filters.get("before", ())]
    since = [lookups.container(reference).created for reference in filters.get("since", ())]
    names = _patterns(filters.get("name", ()))
    ancestors = {lookups.image_id(reference) for reference in filters.get("ancestor", ())}
    chosen: list[Container] = []
    for container in containers:
        state = container.state
        if not show_all and not (state.running or state.status is Status.RESTARTING):
            continue
        if statuses and state.status.value not in statuses:
            continue
        if exited and (state.status is not Status.EXITED or state.exit_code not in exited):
            continue
        if before and not any(container.created < moment for moment in before):
            continue
        if since and not any(container.created > moment for moment in since):
            continue
        if filters.get("ancestor") and container.image_id not in ancestors:
            continue
        if _matches(container, filters, names, lookups):
            chosen.append(container)
            if limit and len(chosen) == limit:
                break
    return chosen


def _matches(container: Container, filters: Filters, names: list[re.Pattern[str]], lookups: Selection) -> bool:
    if filters.get("id") and not any(container.id.startswith(prefix) for prefix in filters["id"]):
        return False
    if names and not any(pattern.search(container.name) or pattern.search(f"/{container.name}") for pattern in names):
        return False
    if not all(has_label(container.labels, wanted) for wanted in filters.get("label", ())):
        return False
    if filters.get("volume") and not any(
        wanted in (point.name, point.destination, point.source)
        for wanted in filters["volume"]
        for point in container.mounts
    ):
        return False
    health = container.state.health.status if container.state.health is not None else "none"
    if filters.get("health") and health not in filters["health"]:
        return False
    if filters.get("is-task") and not any(value in ("0", "false") for value in filters["is-task"]):
        return False
    if not any(name in filters for name in ("network", "publish", "expose")):
        return True
    settings = lookups.settings(container)
    return (
        _on_network(settings, filters.get("network", ()))
        and _has_port(settings, filters.get("publish", ()), published=True)
        and _has_port(settings, filters.get("expose", ()), published=False)
    )


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether ``KEY`` is among the labels, or ``KEY=VALUE``."""
    key, separator, value = wanted.partition("=")
    return key in labels and (not separator or labels[key] == value)


def _on_network(settings: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    networks = settings.get("Networks") or {}
    known = set(networks) | {entry.get("NetworkID") for entry in networks.values()}
    return not wanted or any(name in known for name in wanted)


def _has_port(settings: Mapping[str, Any], wanted: Sequence[str], *, published: bool) -> bool:
    if not wanted:
        return True
    ports = settings.get("Ports") or {}
    found: set[str] = set()
    for text, bindings in ports.items():
        if published:
            protocol = text.partition("/")[2]
            found.update(f"{binding['HostPort']}/{protocol}" for binding in bindings or ())
        else:
            found.add(text)
    return any(_in_range(port, found) for port in wanted)


def _in_range(wanted: str, found: set[str]) -> bool:
    numbers, _, protocol = wanted.partition("/")
    first, _, last = numbers.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise errors.InvalidParameter(f"invalid port in filter: {wanted}")
    return any(
        int(first) <= int(port.partition("/")[0]) <= int(last or first)
        and port.partition("/")[2] == (protocol or "tcp")
        for port in found
    )


def _statuses(filters: Filters) -> set[str]:
    known = [status.value for status in Status]
    for value in filters.get("status", ()):
        if value not in known:
            raise errors.InvalidParameter(
                f"invalid filter 'status={value}': invalid value for state ({value}): must be one of "
                "created, running, paused, restarting, removing, exited, dead"
            )
    return set(filters.get("status", ()))


def _exit_codes(filters: Filters) -> set[int]:
    try:
        return {int(value) for value in filters.get("exited", ())}
    except ValueError as error:
        raise errors.InvalidParameter(f"invalid filter 'exited': {error}") from None


def _patterns(texts: Iterable[str]) -> list[re.Pattern[str]]:
    patterns = []
    for text in texts:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise errors.InvalidParameter(f"invalid filter 'name={text}': {error}") from None
    return patterns


def prune_predicate(filters: Filters) -> Callable[[Container], bool]:
    """Whether a prune takes a container. Raises InvalidParameter for a moment that cannot be read."""
    until = [_moment(text) for text in filters.get("until", ())]
    if len(until) > 1:
        raise errors.InvalidParameter("more than one until filter specified")

    def matches(container: Container) -> bool:
        if until and container.created >= until[0]:
            return False
        if not all(has_label(container.labels, wanted) for wanted in filters.get("label", ())):
            return False
        return not any(has_label(container.labels, unwanted) for unwanted in filters.get("label!", ()))

    return matches


def _moment(text: str) -> int:
    """``10m``, seconds since 1970, or RFC 3339, in nanoseconds since 1970."""
    match = _DURATION.fullmatch(text)
    if match and text:
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return time.time_ns() - int((hours * 3600 + minutes * 60 + seconds) * 1e9)
    try:
        return int(float(text) * 1e9)
    except ValueError:
        pass
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        raise errors.InvalidParameter(f"invalid filter 'until={text}'") from None
