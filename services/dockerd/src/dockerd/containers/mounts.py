"""What is mounted into a container besides the default file systems: from options to mount points, and to the spec.

``-v``, ``--mount``, ``--volumes-from`` and the image's VOLUMEs become :class:`MountPoint` values when the container is
created. Of two for one destination the more explicit wins, as in the real engine: ``-v`` and ``--mount`` before
``--volumes-from``, that before the image's.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dockerd import errors
from dockerd.containers.model import BindOptions, HostConfig, MountPoint, MountRequest, VolumeOptions

__all__ = ["inherit", "oci_mounts", "parse_bind", "parse_mount", "plan", "tmpfs_mounts"]

_PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_CONSISTENCIES = ("consistent", "cached", "delegated", "default")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")

Inherited = Mapping[str, Sequence[MountPoint]]
"""The mounts of the containers that ``--volumes-from`` names, by the name as written there."""


def plan(host_config: HostConfig, volumes: Iterable[str], inherited: Inherited) -> list[MountPoint]:
    """Every mount point that the options ask for, one for each destination, sorted by destination.

    ``volumes`` are the destinations of the image's and the user's anonymous volumes. Volumes have no source yet; an
    anonymous one has no name. Raises InvalidParameter naming the option's text.
    """
    explicit: dict[str, MountPoint] = {}
    for text in host_config.binds or ():
        _add(explicit, parse_bind(text, host_config.volume_driver))
    for request in host_config.mounts or ():
        _add(explicit, parse_mount(request))
    for destination in host_config.tmpfs or {}:
        if _clean(destination) in explicit:
            raise errors.InvalidParameter(f"Duplicate mount point: {destination}")
    points: dict[str, MountPoint] = {}
    for destination in volumes:
        path = _destination(destination, destination)
        points[path] = MountPoint(
            type="volume", destination=path, driver=host_config.volume_driver or "local", copy_up=True, anonymous=True
        )
    for text in host_config.volumes_from or ():
        points.update((point.destination, point) for point in inherit(text, inherited))
    points.update(explicit)
    for destination in host_config.tmpfs or {}:
        points.pop(_clean(destination), None)
    return sorted(points.values(), key=lambda point: point.destination)


def _add(points: dict[str, MountPoint], point: MountPoint) -> None:
    if point.destination in points:
        raise errors.InvalidParameter(f"Duplicate mount point: {point.destination}")
    points[point.destination] = point


def parse_bind(text: str, volume_driver: str = "") -> MountPoint:
    """One ``-v``: ``[SOURCE:]DESTINATION[:OPTIONS]``; a source that is no absolute path is a volume's name."""
    parts = text.split(":")
    source, destination, mode = "", "", ""
    if len(parts) == 1:
        destination = parts[0]
    elif len(parts) == 2:
        # "/data:ro" is an anonymous volume with options, "/a:/b" two paths.
        source, destination = parts
    elif len(parts) == 3:
        source, destination, mode = parts
    if not destination or len(parts) > 3 or (len(parts) > 1 and not source):
        raise errors.InvalidParameter(f"invalid volume specification: '{text}'")
    destination = _destination(destination, text)
    settings = _parse_mode(mode)
    is_bind = source.startswith("/")
    if is_bind:
        return MountPoint(
            type="bind",
            source=_clean(source),
            destination=destination,
            mode=mode,
            rw=settings["rw"],
            propagation=settings["propagation"] or "rprivate",
        )
    if source and not _VOLUME_NAME.fullmatch(source):
        raise errors.InvalidParameter(
            f'create {source}: "{source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    if settings["propagation"]:
        raise errors.InvalidParameter(f"invalid volume specification: '{text}': propagation is for binds only")
    return MountPoint(
        type="volume",
        name=source,
        destination=destination,
        driver=volume_driver or "local",
        mode=mode or ("z" if source else ""),
        rw=settings["rw"],
        copy_up=settings["copy"],
        anonymous=not source,
    )


def _parse_mode(mode: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"rw": True, "propagation": "", "copy": True}
    seen: set[str] = set()
    for option in mode.split(",") if mode else ():
        kind = _option_kind(option)
        if not kind or kind in seen:
            raise errors.InvalidParameter(f"invalid mode: {mode}")
        seen.add(kind)
        if kind == "access":
            settings["rw"] = option == "rw"
        elif kind == "propagation":
            settings["propagation"] = option
        elif kind == "copy":
            settings["copy"] = option == "copy"
    return settings


def _option_kind(option: str) -> str:
    for kind, options in (
        ("access", ("ro", "rw")),
        ("label", ("z", "Z")),
        ("copy", ("copy", "nocopy")),
        ("propagation", _PROPAGATIONS),
        ("consistency", _CONSISTENCIES),
    ):
        if option in options:
            return kind
    return ""


def parse_mount(request: MountRequest) -> MountPoint:
    """One ``--mount``. Raises InvalidParameter, NotSupported for types that this engine does not have."""
    if request.type not in ("bind", "volume", "tmpfs"):
        if request.type in ("npipe", "cluster", "image"):
            raise errors.NotSupported(f"mount type {request.type} is not supported (HostConfig.Mounts)")
        raise errors.InvalidParameter(f'invalid mount config for type "{request.type}": mount type unknown')
    for kind, options in (
        ("bind", request.bind_options),
        ("volume", request.volume_options),
        ("tmpfs", request.tmpfs_options),
    ):
        if options is not None and kind != request.type:
            raise _invalid(request, f"field {kind.capitalize()}Options must not be specified")
    if not request.target:
        raise _invalid(request, "field Target must not be empty")
    if not request.target.startswith("/"):
        raise _invalid(request, f"invalid mount path: '{request.target}' mount path must be absolute")
    if _clean(request.target) == "/":
        raise _invalid(request, "invalid specification: destination can't be '/'")
    if request.type == "bind":
        return _bind_request(request)
    if request.type == "volume":
        return _volume_request(request)
    return _tmpfs_request(request)


def _invalid(request: MountRequest, reason: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(f'invalid mount config for type "{request.type}": {reason}')


def _bind_request(request: MountRequest) -> MountPoint:
    options = request.bind_options or BindOptions()
    if not request.source:
        raise _invalid(request, "field Source must not be empty")
    if not request.source.startswith("/"):
        raise _invalid(request, f"invalid mount path: '{request.source}' mount path must be absolute")
    if options.propagation and options.propagation not in _PROPAGATIONS:
        raise _invalid(request, f"invalid propagation mode: {options.propagation}")
    if options.read_only_force_recursive and options.read_only_non_recursive:
        raise _invalid(request, "ReadOnlyNonRecursive and ReadOnlyForceRecursive cannot both be set")
    source = _clean(request.source)
    if not os.path.exists(source):
        if not options.create_mountpoint:
            raise _invalid(request, f"bind source path does not exist: {source}")
        os.makedirs(source, exist_ok=True)
    return MountPoint(
        type="bind",
        source=source,
        destination=_clean(request.target),
        mode="",
        rw=not request.read_only,
        propagation=options.propagation or "rprivate",
        recursive=not options.non_recursive,
        read_only_recursive=not options.read_only_non_recursive,
    )


def _volume_request(request: MountRequest) -> MountPoint:
    options = request.volume_options or VolumeOptions()
    if options.subpath:
        raise errors.NotSupported("VolumeOptions.Subpath is not supported (HostConfig.Mounts)")
    if request.source and not _VOLUME_NAME.fullmatch(request.source):
        raise _invalid(request, f"invalid volume name: {request.source}")
    driver = options.driver_config.name if options.driver_config else ""
    return MountPoint(
        type="volume",
        name=request.source,
        destination=_clean(request.target),
        driver=driver or "local",
        mode="z" if request.source else "",
        rw=not request.read_only,
        copy_up=not options.no_copy,
        anonymous=not request.source,
    )


def _tmpfs_request(request: MountRequest) -> MountPoint:
    if request.source:
        raise _invalid(request, "field Source must not be specified")
    settings = request.tmpfs_options
    options = list(_TMPFS_DEFAULTS)
    if settings is not None:
        if settings.size_bytes:
            options.append(f"size={settings.size_bytes}")
        if settings.mode:
            options.append(f"mode={settings.mode:o}")
        options += ["=".join(pair) for pair in settings.options or ()]
    return MountPoint(
        type="tmpfs", destination=_clean(request.target), mode="", rw=not request.read_only, options=options
    )


def inherit(text: str, inherited: Inherited) -> list[MountPoint]:
    """The mounts that one ``--volumes-from`` (``CONTAINER[:ro|rw]``) takes over."""
    name, _, mode = text.partition(":")
    settings = _parse_mode(mode)
    return [
        msgspec.structs.replace(point, rw=point.rw and settings["rw"], copy_up=False)
        for point in inherited.get(name, ())
    ]


def _destination(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise errors.InvalidParameter(
            f"invalid volume specification: '{text}': invalid mount config for type \"volume\": "
            f"invalid mount path: '{path}' mount path must be absolute"
        )
    clean = _clean(path)
    if clean == "/":
        raise errors.InvalidParameter(
            f"invalid volume specification: '{text}': invalid specification: destination can't be '/'"
        )
    return clean


def _clean(path: str) -> str:
    # normpath keeps two leading slashes, which POSIX lets mean something else.
    return posixpath.normpath("/" + path.lstrip("/")) if path.startswith("/") else posixpath.normpath(path)


def tmpfs_mounts(tmpfs: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The spec's mounts of ``--tmpfs``."""
    return [
        {
            "destination": _clean(destination),
            "type": "tmpfs",
            "source": "tmpfs",
            "options": [*_TMPFS_DEFAULTS, "rprivate", *(option for option in text.split(",") if option)],
        }
        for destination, text in (tmpfs or {}).items()
    ]


def oci_mounts(points: Iterable[MountPoint]) -> list[dict[str, Any]]:
    """The spec's mounts of mount points whose sources are known."""
    return [_oci_mount(point) for point in points]


def _oci_mount(point: MountPoint) -> dict[str, Any]:
    if point.type == "tmpfs":
        options = [*point.options, "rprivate", *([] if point.rw else ["ro"])]
        return {"destination": point.destination, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["rbind" if point.recursive else "bind"]
    if not point.rw:
        options.append("rro" if point.recursive and point.read_only_recursive else "ro")
    if point.propagation:
        options.append(point.propagation)
    return {"destination": point.destination, "type": "bind", "source": point.source, "options": options}
