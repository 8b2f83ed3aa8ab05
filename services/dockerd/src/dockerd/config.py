"""The daemon's settings: command line and ``daemon.json``, merged into one frozen value.

Keys and flags are those of the real daemon. A key that the engine does not know, a key that it knows and does not
offer, and a value given both on the command line and in the file are errors that name the key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["DEFAULT_CONFIG_FILE", "DEFAULT_HOST", "Config", "ConfigError", "load"]

DEFAULT_HOST = "unix:///run/gantry/docker.sock"
DEFAULT_CONFIG_FILE = "/etc/gantry/daemon.json"
DEFAULT_DATA_ROOT = "/var/lib/gantry/docker"
DEFAULT_EXEC_ROOT = "/run/gantry/docker"
DEFAULT_PIDFILE = "/run/gantry/docker.pid"


class ConfigError(Exception):
    """The settings cannot be used; the message is for the person who wrote them."""


@dataclass(frozen=True)
class AddressPool:
    """One of ``default-address-pools``: networks of ``size`` bits are cut from ``base`` (CIDR)."""

    base: str
    size: int


@dataclass(frozen=True)
class Config:
    """Everything that can be set, with the defaults of an engine that is started without flags.

    ``containerd`` empty means that the engine starts (or finds again) a containerd of its own.
    ``bip`` is the default bridge's address in CIDR form, empty for the first free pool. ``bridge`` is the name of the
    default bridge: empty for ``docker0``'s equivalent, ``none`` for no default network.
    Times are in seconds.
    """

    hosts: tuple[str, ...] = (DEFAULT_HOST,)
    data_root: str = DEFAULT_DATA_ROOT
    exec_root: str = DEFAULT_EXEC_ROOT
    containerd: str = ""
    pidfile: str = DEFAULT_PIDFILE
    config_file: str = DEFAULT_CONFIG_FILE
    bip: str = ""
    bridge: str = ""
    mtu: int = 1500
    default_address_pools: tuple[AddressPool, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    debug: bool = False
    log_level: str = "info"
    log_driver: str = "json-file"
    log_opts: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    group: str = "docker"
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    storage_driver: str = "overlayfs"
    live_restore: bool = True
    shutdown_timeout: int = 15
    max_concurrent_downloads: int = 3
    init: bool = False

    def container_state(self, container_id: str) -> str:
        """The container's directory below the exec root, for what lives as long as its processes."""
        return os.path.join(self.exec_root, "containers", container_id)

    def container_root(self, container_id: str) -> str:
        """The container's directory below the data root, for what lives as long as the container."""
        return os.path.join(self.data_root, "containers", container_id)
