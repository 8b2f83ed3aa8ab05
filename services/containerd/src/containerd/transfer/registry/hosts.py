"""Which hosts to ask for an image, and how: ``hosts.toml``, mirrors, certificates.

The directory has one subdirectory for each registry, named ``HOST``, ``HOST:PORT``, ``HOST_PORT_`` or ``_default``,
with a ``hosts.toml`` (containerd's format) or, as in Docker's ``certs.d``, ``*.crt`` of authorities and pairs of
``*.cert`` and ``*.key``.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from containerd.durations import duration
from containerd.errors import InvalidArgument

__all__ = ["Host", "hosts_for", "is_loopback"]

CAPABILITIES = ("pull", "resolve", "push")
_DOCKER_HUB = "registry-1.docker.io"
_TRUTH = {"pull", "resolve", "push", "referrers"}
_HOST_KEYS = ("ca", "client", "skip_verify", "capabilities", "header", "dial_timeout", "override_path")


@dataclass(frozen=True, slots=True)
class Host:
    """One server. ``scheme`` is empty when it has to be found out: plain HTTP first, which only loopback may be.

    ``authorities`` are files of certificate authorities that are believed besides the system's, unless ``verify`` is
    False; ``certificates`` are our own, (certificate, key) files of which the host takes one; ``timeout`` is the
    number of seconds to connect in, 0 for the ordinary one. A header may have several values.
    """

    name: str
    scheme: str = "https"
    path: str = "/v2"
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    verify: bool = True
    authorities: tuple[str, ...] = ()
    certificates: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 0.0
    mirror: bool = False


def is_loopback(host: str) -> bool:
    """Whether a host (with or without a port) is this machine itself: localhost, 127.0.0.0/8 or ::1."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def hosts_for(registry: str, directory: str = "", default_scheme: str = "") -> list[Host]:
    """Return the hosts to ask for images of ``registry``, mirrors first, in the order of the file.

    ``directory`` may be several, with colons between them: the first that has the registry counts.
    Raises :class:`InvalidArgument` for a ``hosts.toml`` with a mistake, naming file and field.
    """
    folder = _folder(registry, directory) if directory else ""
    if not folder:
        return [_default(registry, default_scheme)]
    path = os.path.join(folder, "hosts.toml")
    try:
        with open(path, "rb") as file:
            config = tomllib.load(file)
    except FileNotFoundError:
        return [_with_docker_certificates(_default(registry, default_scheme), folder)]
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"failed to load registry hosts from {path}: {error}: invalid argument") from error
    return _from_config(config, registry, default_scheme, path)


def _default(registry: str, default_scheme: str) -> Host:
    name = _DOCKER_HUB if registry == "docker.io" else registry
    if default_scheme:
        if default_scheme not in ("http", "https"):
            raise InvalidArgument(f"default scheme {default_scheme[:20]!r} is neither http nor https: invalid argument")
        return Host(name, default_scheme, verify=not is_loopback(name))
    return Host(name, "", verify=False) if is_loopback(name) else Host(name)


def _folder(registry: str, directories: str) -> str:
    host, colon, port = registry.rpartition(":")
    names = [f"{host}_{port}_"] if colon and port.isdigit() else []
    for directory in filter(None, directories.split(":")):
        for name in [registry, *names, "_default"]:
            path = os.path.join(directory, name)
            if os.path.isdir(path):
                return path
    return ""


def _with_docker_certificates(host: Host, folder: str) -> Host:
    names = sorted(os.listdir(folder))
    authorities = [os.path.join(folder, name) for name in names if name.endswith(".crt")]
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = os.path.join(folder, name.removesuffix(".cert") + ".key")
            if not os.path.exists(key):
                raise InvalidArgument(f"missing key {key} for client certificate {name}: invalid argument")
            pairs.append((os.path.join(folder, name), key))
    if not authorities and not pairs:
        return host
    # Where certificates are at hand TLS is meant, also on this machine.
    return replace(
        host,
        scheme=host.scheme or "https",
        verify=host.verify or bool(authorities),
        authorities=tuple(authorities),
        certificates=tuple(pairs),
    )


def _from_config(config: Mapping[str, Any], registry: str, default_scheme: str, path: str) -> list[Host]:
    found = []
    tables = config.get("host", {})
    if not isinstance(tables, dict):
        raise InvalidArgument(f"{path}: host is not a table: invalid argument")
    for url, table in tables.items():
        found.append(_host(url, table, path, mirror=True))
    server = config.get("server", "")
    own = any(key in config for key in _HOST_KEYS)
    fallback = _default(registry, default_scheme)
    if server or own:
        found.append(_host(str(server) if server else f"{fallback.scheme or 'https'}://{fallback.name}", config, path))
    else:
        found.append(fallback)
    return found


def _host(url: str, table: Any, path: str, *, mirror: bool = False) -> Host:
    if not isinstance(table, dict):
        raise InvalidArgument(f"{path}: host {url!r} is not a table: invalid argument")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidArgument(f"{path}: invalid host {url!r}: invalid argument")
    capabilities = table.get("capabilities", list(CAPABILITIES))
    if not isinstance(capabilities, list) or not _TRUTH.issuperset(map(str, capabilities)):
        raise InvalidArgument(f"{path}: unknown capability in {capabilities!r} of {url}: invalid argument")
    base = parts.path.rstrip("/")
    if not _of(table, "override_path", bool, False, path) and not base.endswith("/v2"):
        base += "/v2"
    return Host(
        name=_DOCKER_HUB if parts.netloc == "docker.io" else parts.netloc,
        scheme=parts.scheme,
        path=base,
        capabilities=frozenset(capabilities or CAPABILITIES),
        verify=not _of(table, "skip_verify", bool, False, path),
        authorities=_authorities(table.get("ca"), path),
        certificates=_client_certificates(table.get("client"), path),
        headers=_headers(_of(table, "header", dict, {}, path), path),
        timeout=_timeout(table, path),
        mirror=mirror,
    )


def _of(table: Mapping[str, Any], key: str, kind: type, default: Any, path: str) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise InvalidArgument(f"{path}: {key} has type {type(value).__name__}, not {kind.__name__}: invalid argument")
    return value


def _headers(table: Mapping[str, Any], path: str) -> dict[str, str]:
    """A list of values becomes one: for HTTP both are the same (RFC 9110, 5.3)."""
    found = {}
    for name, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise InvalidArgument(f'{path}: invalid type for header "{name}": invalid argument')
        found[name] = ", ".join(values)
    return found


def _timeout(table: Mapping[str, Any], path: str) -> float:
    text = _of(table, "dial_timeout", str, "", path)
    try:
        return duration(text) if text else 0.0
    except ValueError as error:
        raise InvalidArgument(f"{path}: dial_timeout: {error}: invalid argument") from None


def _authorities(value: Any, path: str) -> tuple[str, ...]:
    files = [value] if isinstance(value, str) else value or []
    if not isinstance(files, list) or not all(isinstance(item, str) for item in files):
        raise InvalidArgument(f'{path}: invalid type {type(value).__name__} for "ca": invalid argument')
    return tuple(os.path.join(os.path.dirname(path), item) for item in files)


def _client_certificates(value: Any, path: str) -> tuple[tuple[str, str], ...]:
    """A file with both, a list of such files, or a list of pairs of certificate and key."""
    entries = [value] if isinstance(value, str) else value or []
    if not isinstance(entries, list):
        raise InvalidArgument(f'{path}: invalid type {type(value).__name__} for "client": invalid argument')
    folder, found = os.path.dirname(path), []
    for entry in entries:
        pair = [entry, entry] if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            raise InvalidArgument(f'{path}: invalid pair {entry!r} for "client": invalid argument')
        certificate, key = pair
        found.append((os.path.join(folder, certificate), os.path.join(folder, key or certificate)))
    return tuple(found)
