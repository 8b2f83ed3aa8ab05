"""Health checks as values: what is to be checked, and what follows from each result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dockerd import errors
from dockerd.containers import timestamps
from dockerd.containers.model import Container, Health, HealthConfig, HealthResult
from dockerd.containers.wire import from_wire

__all__ = [
    "HEALTHY",
    "STARTING",
    "UNHEALTHY",
    "after",
    "check",
    "command",
    "delay",
    "go_duration",
    "initial",
    "merged",
    "timeout",
]

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"

_LOG_ENTRIES = 5
_SECOND = 1_000_000_000
_INTERVAL = 30 * _SECOND
_START_INTERVAL = 5 * _SECOND
_RETRIES = 3
_SHELL = ("/bin/sh", "-c")
_SHORTEST = 1_000_000


def check(config: HealthConfig | None) -> None:
    """Raises InvalidParameter for a time below a millisecond and for negative retries, in the real engine's words."""
    if config is None:
        return
    for name, value in (
        ("Interval", config.interval),
        ("Timeout", config.timeout),
        ("StartPeriod", config.start_period),
        ("StartInterval", config.start_interval),
    ):
        if value != 0 and value < _SHORTEST:
            raise errors.InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if config.retries < 0:
        raise errors.InvalidParameter("Retries in Healthcheck cannot be negative")


def merged(asked: HealthConfig | None, image: Mapping[str, Any] | None) -> HealthConfig | None:
    """The image's check where the request says nothing, field by field."""
    if not image:
        return asked
    own = from_wire(image, HealthConfig)
    if asked is None:
        return own
    return msgspec.structs.replace(
        own, **{name: getattr(asked, name) for name in asked.__struct_fields__ if getattr(asked, name)}
    )


def command(container: Container) -> list[str] | None:
    """What a check of the container runs; None when there is no check."""
    config = container.config.healthcheck
    if config is None or not config.test:
        return None
    kind, words = config.test[0], config.test[1:]
    if kind == "CMD":
        return words
    return [*(container.config.shell or _SHELL), *words] if kind == "CMD-SHELL" else None


def initial(container: Container) -> Health | None:
    """The health of a container that has just been started; its log of earlier runs stays."""
    if command(container) is None:
        return None
    earlier = container.state.health
    return Health(status=STARTING, log=earlier.log if earlier is not None else [])


def timeout(container: Container) -> int:
    """Nanoseconds that one check may take."""
    config = container.config.healthcheck
    return (config.timeout if config is not None else 0) or _INTERVAL


def delay(container: Container, now: int) -> int:
    """Nanoseconds from now (nanoseconds since 1970) to the next check."""
    config = container.config.healthcheck or HealthConfig()
    health = container.state.health
    young = now - timestamps.to_nanoseconds(container.state.started_at) < config.start_period
    if young and health is not None and health.status == STARTING:
        return config.start_interval or _START_INTERVAL
    return config.interval or _INTERVAL


def after(container: Container, result: HealthResult) -> Health:
    """The container's health when a check had this result."""
    config = container.config.healthcheck or HealthConfig()
    health = container.state.health or Health(status=STARTING)
    log = [*health.log, result][-_LOG_ENTRIES:]
    if result.exit_code == 0:
        return Health(status=HEALTHY, log=log)
    age = timestamps.to_nanoseconds(result.start) - timestamps.to_nanoseconds(container.state.started_at)
    if health.status == STARTING and age < config.start_period:
        return msgspec.structs.replace(health, log=log)
    streak = health.failing_streak + 1
    status = UNHEALTHY if streak >= (config.retries or _RETRIES) else health.status
    return Health(status=status, failing_streak=streak, log=log)


def go_duration(nanoseconds: int) -> str:
    """A length of time as the real engine's messages have it: ``1m30s``, ``500ms``."""
    if nanoseconds < _SECOND:
        return f"{nanoseconds / 1e6:.6f}".rstrip("0").rstrip(".") + "ms"
    seconds, rest = divmod(nanoseconds, _SECOND)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    text = f"{seconds % 60}{fraction}s"
    if seconds >= 60:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
