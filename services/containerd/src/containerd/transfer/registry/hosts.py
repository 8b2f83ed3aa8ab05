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
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from containerd.errors import InvalidArgument

__all__ = ["Host", "hosts_for", "is_loopback"]

CAPABILITIES = ("pull", "resolve", "push")
_DOCKER_HUB = "registry-1.docker.io"
_TRUTH = {"pull", "resolve", "push", "referrers"}


@dataclass(frozen=True, slots=True)
class Host:
    """One server. ``scheme`` is empty when it has to be found out: plain HTTP first, which only loopback may be.

    ``verify`` is False, True or the file of certificate authorities; ``certificates`` are (certificate, key) files.
    """

    name: str
    scheme: str = "https"
    path: str = "/v2"
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    verify: bool | str = True
    certificates: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
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
    """Return the hosts to ask for images of ``registry``, mirrors first.

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


def _folder(registry: str, directory: str) -> str:
    host, colon, port = registry.rpartition(":")
    names = [registry, f"{host}_{port}_" if colon and port.isdigit() else registry, "_default"]
    for name in names:
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
    return Host(
        host.name,
        host.scheme,
        verify=authorities[0] if authorities else host.verify,
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
    if server or any(key in config for key in ("ca", "client", "skip_verify", "capabilities", "header")):
        url = str(server) if server else _url(_default(registry, default_scheme))
        found.append(_host(url, config, path, mirror=False))
    elif not server:
        found.append(_default(registry, default_scheme))
    return found


def _url(host: Host) -> str:
    return f"{host.scheme or 'http'}://{host.name}"


def _host(url: str, table: Mapping[str, Any], path: str, *, mirror: bool) -> Host:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidArgument(f"{path}: invalid host {url!r}: invalid argument")
    capabilities = table.get("capabilities", list(CAPABILITIES))
    if not isinstance(capabilities, list) or not _TRUTH.issuperset(capabilities):
        raise InvalidArgument(f"{path}: unknown capability in {capabilities!r} of {url}: invalid argument")
    base = parts.path.rstrip("/")
    if not table.get("override_path", False) and not base.endswith("/v2"):
        base += "/v2"
    headers = {key: value if isinstance(value, str) else value[0] for key, value in table.get("header", {}).items()}
    return Host(
        name=_DOCKER_HUB if parts.netloc == "docker.io" else parts.netloc,
        scheme=parts.scheme,
        path=base,
        capabilities=frozenset(capabilities),
        verify=_verify(table, path),
        certificates=_client_certificates(table.get("client"), path),
        headers=headers,
        mirror=mirror,
    )


def _verify(table: Mapping[str, Any], path: str) -> bool | str:
    if table.get("skip_verify", False):
        return False
    authorities = table.get("ca")
    if isinstance(authorities, list):
        authorities = authorities[0] if authorities else None
    return os.path.join(os.path.dirname(path), authorities) if authorities else True


def _client_certificates(value: Any, path: str) -> tuple[tuple[str, str], ...]:
    if not value:
        return ()
    folder = os.path.dirname(path)
    pairs = [value] if isinstance(value, str) else value
    if isinstance(pairs, list) and len(pairs) == 2 and all(isinstance(item, str) for item in pairs):
        pairs = [pairs]
    found = []
    for pair in pairs:
        certificate, key = (pair, pair) if isinstance(pair, str) else (pair[0], pair[-1] or pair[0])
        found.append((os.path.join(folder, certificate), os.path.join(folder, key)))
    return tuple(found)
