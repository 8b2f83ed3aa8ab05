"""Containers in the Engine API's form: the bodies of inspect and of listings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dockerd.containers import timestamps
from dockerd.containers.model import ZERO_TIME, Container, Health, MountPoint, Status

__all__ = ["duration", "inspect", "listed", "status_text"]

Json = dict[str, Any]

# Left out when they say nothing, as the real engine does.
_OMITTED_CONFIG = (
    "ExposedPorts",
    "Healthcheck",
    "ArgsEscaped",
    "NetworkDisabled",
    "MacAddress",
    "StopSignal",
    "StopTimeout",
    "Shell",
)
_OMITTED_HOST_CONFIG = (
    "Annotations",
    "Init",
    "Tmpfs",
    "Mounts",
    "Sysctls",
    "StorageOpt",
    "KernelMemory",
    "KernelMemoryTCP",
)


def inspect(container: Container, network_settings: Json, exec_ids: Sequence[str]) -> Json:
    """The body of ``GET /containers/{id}/json``."""
    started = container.state.started_at != ZERO_TIME
    files = {
        name: f"{container.root}/{file}" if started else ""
        for name, file in (("ResolvConfPath", "resolv.conf"), ("HostnamePath", "hostname"), ("HostsPath", "hosts"))
    }
    return {
        "Id": container.id,
        "Created": timestamps.from_nanoseconds(container.created),
        "Path": container.path,
        "Args": container.args,
        "State": _state(container),
        "Image": container.image_id,
        **files,
        "LogPath": container.log_path if started else "",
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": container.snapshotter,
        "Platform": container.platform_os,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": _without_empty(msgspec.to_builtins(container.host_config), _OMITTED_HOST_CONFIG),
        "GraphDriver": {"Data": None, "Name": container.snapshotter},
        "Mounts": [_mount(point) for point in container.mounts],
        "Config": _without_empty(msgspec.to_builtins(container.config), _OMITTED_CONFIG),
        "NetworkSettings": network_settings,
    }


def _state(container: Container) -> Json:
    state = container.state
    restarting = state.status is Status.RESTARTING
    body: Json = {
        "Status": state.status.value,
        "Running": state.running or restarting,
        "Paused": state.status is Status.PAUSED,
        "Restarting": restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": state.finished_at,
    }
    if state.health is not None:
        body["Health"] = _health(state.health)
    return body


def _health(health: Health) -> Json:
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": one.start, "End": one.end, "ExitCode": one.exit_code, "Output": one.output} for one in health.log
        ],
    }


def _without_empty(document: Json, names: Sequence[str]) -> Json:
    return {key: value for key, value in document.items() if key not in names or value not in (None, "", 0, {}, [])}


def _mount(point: MountPoint) -> Json:
    body: Json = {"Type": point.type}
    if point.name:
        body["Name"] = point.name
    body |= {"Source": point.source, "Destination": point.destination}
    if point.type == "volume":
        body["Driver"] = point.driver
    return body | {"Mode": point.mode, "RW": point.rw, "Propagation": point.propagation}


def listed(container: Container, network_settings: Json, sizes: Mapping[str, int] | None = None) -> Json:
    """One entry of ``GET /containers/json``. ``sizes`` has SizeRw and SizeRootFs when they were asked for."""
    host_config: Json = {"NetworkMode": container.host_config.network_mode}
    if container.host_config.annotations:
        host_config["Annotations"] = container.host_config.annotations
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": _command(container),
        "Created": container.created // 1_000_000_000,
        "Ports": _ports(network_settings.get("Ports") or {}),
        **{name: size for name, size in (sizes or {}).items() if size},
        "Labels": container.config.labels or {},
        "State": container.state.status.value,
        "Status": status_text(container, time.time_ns()),
        "HostConfig": host_config,
        "NetworkSettings": {"Networks": network_settings.get("Networks") or {}},
        "Mounts": [_mount(point) for point in container.mounts],
    }


def _command(container: Container) -> str:
    words = [f"'{word}'" if " " in word else word for word in container.args]
    return " ".join([container.path, *words])


def _ports(published: Mapping[str, Sequence[Mapping[str, str]] | None]) -> list[Json]:
    ports: list[Json] = []
    for text, bindings in published.items():
        number, _, protocol = text.partition("/")
        if not bindings:
            ports.append({"PrivatePort": int(number), "Type": protocol})
        for binding in bindings or ():
            ports.append(
                {
                    "IP": binding["HostIp"],
                    "PrivatePort": int(number),
                    "PublicPort": int(binding["HostPort"]),
                    "Type": protocol,
                }
            )
    return ports


def status_text(container: Container, now: int) -> str:
    """What ``docker ps`` shows as STATUS at ``now`` (nanoseconds since 1970)."""
    state = container.state

    def since(moment: str) -> str:
        return duration((now - timestamps.to_nanoseconds(moment)) / 1e9)

    if state.status is Status.RUNNING:
        text = f"Up {since(state.started_at)}"
        if state.health is None:
            return text
        return f"{text} (health: starting)" if state.health.status == "starting" else f"{text} ({state.health.status})"
    if state.status is Status.PAUSED:
        return f"Up {since(state.started_at)} (Paused)"
    if state.status is Status.RESTARTING:
        return f"Restarting ({state.exit_code}) {since(state.finished_at)} ago"
    if state.status is Status.REMOVING:
        return "Removal In Progress"
    if state.status is Status.DEAD:
        return "Dead"
    if state.started_at == ZERO_TIME:
        return "Created"
    if state.finished_at == ZERO_TIME:
        return ""
    return f"Exited ({state.exit_code}) {since(state.finished_at)} ago"


def duration(seconds: float) -> str:
    """A length of time as people say it, in the words of the real engine."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for unit, length, limit in (("days", 24, 24 * 14), ("weeks", 24 * 7, 24 * 60), ("months", 24 * 30, 24 * 730)):
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{int(seconds / 3600) // (24 * 365)} years"
