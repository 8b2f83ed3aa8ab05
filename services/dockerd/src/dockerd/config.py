"""The daemon's settings: command line and ``daemon.json``, merged into one frozen value.

Keys and flags are those of the real daemon. A key that the engine does not know, a key that it knows and does not
offer, and a value given both on the command line and in the file are errors that name the key.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DEFAULT_CONFIG_FILE", "DEFAULT_HOST", "SETTINGS", "AddressPool", "Config", "ConfigError", "Setting", "load"]

DEFAULT_HOST = "unix:///run/gantry/docker.sock"
DEFAULT_CONFIG_FILE = "/etc/gantry/daemon.json"
DEFAULT_DATA_ROOT = "/var/lib/gantry/docker"
DEFAULT_EXEC_ROOT = "/run/gantry/docker"
DEFAULT_PIDFILE = "/run/gantry/docker.pid"

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
LOG_DRIVERS = ("json-file", "none")


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
    ``bip`` is the default bridge's address in CIDR form, empty for the first free pool. ``bridge`` is the name of an
    existing bridge for the default network: empty for one of the engine's own, ``none`` for no default network.
    ``shutdown_timeout`` is in seconds.
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
    storage_driver: str = "overlayfs"
    live_restore: bool = True
    shutdown_timeout: int = 15

    def container_state(self, container_id: str) -> str:
        """The container's directory below the exec root, for what lives as long as its processes."""
        return os.path.join(self.exec_root, "containers", container_id)

    def container_root(self, container_id: str) -> str:
        """The container's directory below the data root, for what lives as long as the container."""
        return os.path.join(self.data_root, "containers", container_id)

    def own_containerd(self) -> tuple[str, str]:
        """Root and state directory of the containerd that the engine starts for itself."""
        if (self.data_root, self.exec_root) == (DEFAULT_DATA_ROOT, DEFAULT_EXEC_ROOT):
            return "/var/lib/gantry/containerd", "/run/gantry/containerd"
        return os.path.join(self.data_root, "containerd"), os.path.join(self.exec_root, "containerd")


@dataclass(frozen=True)
class Setting:
    """One thing that can be set: its key in daemon.json, its flags, its field of :class:`Config`, and its type.

    ``kind`` is ``string``, ``bool``, ``int``, ``list`` (the flag may be repeated), ``map`` (``key=value``, repeated)
    or ``pools``. An empty ``key`` means that the file has no such setting.
    """

    key: str
    flags: tuple[str, ...]
    attribute: str
    kind: str
    help: str


SETTINGS = (
    Setting("hosts", ("-H", "--host"), "hosts", "list", f"Daemon socket(s) to connect to (default {DEFAULT_HOST})"),
    Setting("data-root", ("--data-root",), "data_root", "string", "Root directory of persistent state"),
    Setting("exec-root", ("--exec-root",), "exec_root", "string", "Root directory for execution state files"),
    Setting("containerd", ("--containerd",), "containerd", "string", "containerd grpc address"),
    Setting("pidfile", ("-p", "--pidfile"), "pidfile", "string", "Path to use for daemon PID file"),
    Setting("", ("--config-file",), "config_file", "string", "Daemon configuration file"),
    Setting("bip", ("--bip",), "bip", "string", "IPv4 address for the default bridge"),
    Setting("bridge", ("-b", "--bridge"), "bridge", "string", "Attach containers to a network bridge"),
    Setting("mtu", ("--mtu",), "mtu", "int", 'Set the MTU for the default "bridge" network'),
    Setting(
        "default-address-pools",
        ("--default-address-pool",),
        "default_address_pools",
        "pools",
        "Default address pools for node specific local networks",
    ),
    Setting("dns", ("--dns",), "dns", "list", "DNS server to use"),
    Setting("dns-opts", ("--dns-opt",), "dns_opts", "list", "DNS options to use"),
    Setting("dns-search", ("--dns-search",), "dns_search", "list", "DNS search domains to use"),
    Setting("debug", ("-D", "--debug"), "debug", "bool", "Enable debug mode"),
    Setting("log-level", ("-l", "--log-level"), "log_level", "string", "Set the logging level"),
    Setting("log-driver", ("--log-driver",), "log_driver", "string", "Default driver for container logs"),
    Setting("log-opts", ("--log-opt",), "log_opts", "map", "Default log driver options for containers"),
    Setting("labels", ("--label",), "labels", "list", "Set key=value labels to the daemon"),
    Setting("group", ("-G", "--group"), "group", "string", "Group for the unix socket"),
    Setting(
        "insecure-registries",
        ("--insecure-registry",),
        "insecure_registries",
        "list",
        "Enable insecure registry communication",
    ),
    Setting("storage-driver", ("-s", "--storage-driver"), "storage_driver", "string", "Storage driver to use"),
    Setting("live-restore", ("--live-restore",), "live_restore", "bool", "Keep containers alive (always on)"),
    Setting("shutdown-timeout", ("--shutdown-timeout",), "shutdown_timeout", "int", "Set the default shutdown timeout"),
)
"""What the engine offers. Flags that are not here are refused by the command line."""

# What the real daemon has beyond SETTINGS: a file that sets it is refused by a message that tells it from a typing
# error.
_NOT_OFFERED = frozenset(
    [
        "allow-direct-routing",
        "api-cors-header",
        "authorization-plugins",
        "bip6",
        "bridge-accept-fwmark",
        "builder",
        "cdi-spec-dirs",
        "cgroup-parent",
        "containerd-namespace",
        "containerd-plugins-namespace",
        "containers",
        "cpu-rt-period",
        "cpu-rt-runtime",
        "default-cgroupns-mode",
        "default-gateway",
        "default-gateway-v6",
        "default-ipc-mode",
        "default-network-opts",
        "default-runtime",
        "default-shm-size",
        "default-ulimits",
        "exec-opts",
        "experimental",
        "features",
        "firewall-backend",
        "fixed-cidr",
        "fixed-cidr-v6",
        "host-gateway-ip",
        "host-gateway-ips",
        "http-proxy",
        "https-proxy",
        "icc",
        "init",
        "init-path",
        "ip",
        "ip-forward",
        "ip-forward-no-drop",
        "ip-masq",
        "ip6tables",
        "iptables",
        "ipv6",
        "log-format",
        "max-concurrent-uploads",
        "max-download-attempts",
        "metrics-addr",
        "min-api-version",
        "network-control-plane-mtu",
        "no-new-privileges",
        "no-proxy",
        "node-generic-resources",
        "proxies",
        "raw-logs",
        "registry-mirrors",
        "runtimes",
        "seccomp-profile",
        "selinux-enabled",
        "storage-opts",
        "swarm-default-advertise-addr",
        "tls",
        "tlscacert",
        "tlscert",
        "tlskey",
        "tlsverify",
        "userland-proxy",
        "userland-proxy-path",
        "userns-remap",
    ]
)


def load(flags: Mapping[str, Any]) -> Config:
    """Merge what the command line set (by :class:`Config` field) with the configuration file.

    The file at the default path may be missing; one that was named may not. Raises :class:`ConfigError`.
    """
    path = flags.get("config_file") or DEFAULT_CONFIG_FILE
    values = dict(flags)
    try:
        values.update(_from_file(path, flags, required="config_file" in flags))
    except ConfigError as error:
        raise ConfigError(f"unable to configure the Docker daemon with file {path}: {error}") from None
    config = Config(**values)
    _validate(config)
    return config


def _from_file(path: str, flags: Mapping[str, Any], required: bool) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        if required:
            raise ConfigError(f"open {path}: no such file or directory") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error)) from None
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"invalid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError("invalid JSON: the file is not one JSON object")
    return _from_keys(content, flags)


def _from_keys(content: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    settings = {setting.key: setting for setting in SETTINGS if setting.key}
    unknown = sorted(key for key in content if key not in settings and key not in _NOT_OFFERED)
    if unknown:
        raise ConfigError(f"the following directives don't match any configuration option: {', '.join(unknown)}")
    refused = sorted(key for key in content if key in _NOT_OFFERED)
    if refused:
        raise ConfigError(f"the following directives are not supported by this engine: {', '.join(refused)}")
    values: dict[str, Any] = {}
    conflicts = []
    for key, value in content.items():
        setting = settings[key]
        values[setting.attribute] = _convert(setting, value)
        if setting.attribute in flags:
            given = _show(flags[setting.attribute])
            conflicts.append(f"{key}: (from flag: {given}, from file: {_show(value)})")
    if conflicts:
        raise ConfigError(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(sorted(conflicts))
        )
    return values


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(str(one) for one in value) + "]"
    return str(value)


def _convert(setting: Setting, value: Any) -> Any:
    expected = {
        "string": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "list": isinstance(value, list) and all(isinstance(one, str) for one in value),
        "map": isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
        "pools": isinstance(value, list) and all(isinstance(one, dict) for one in value),
    }
    if not expected[setting.kind]:
        raise ConfigError(f"invalid JSON: {setting.key} must be of type {setting.kind}, not {json.dumps(value)}")
    if setting.kind == "list":
        return tuple(value)
    if setting.kind == "pools":
        return tuple(_pool(one.get("base"), one.get("size")) for one in value)
    return value


def parse_pool(text: str) -> AddressPool:
    """Read ``base=10.0.0.0/8,size=24``, the flag's form. Raises :class:`ConfigError`."""
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"base", "size"} or not parts["size"].isdigit():
        raise ConfigError(f"invalid default address pool {text!r}: the form is base=CIDR,size=BITS")
    return _pool(parts["base"], int(parts["size"]))


def _pool(base: object, size: object) -> AddressPool:
    try:
        network = ipaddress.ip_network(str(base))
    except ValueError as error:
        raise ConfigError(f"invalid default address pool: {error}") from None
    if not isinstance(size, int) or not network.prefixlen <= size <= network.max_prefixlen:
        raise ConfigError(f"invalid default address pool {base}: size {size} does not fit")
    return AddressPool(str(network), size)


def _validate(config: Config) -> None:
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"invalid logging level: {config.log_level}")
    if config.log_driver not in LOG_DRIVERS:
        raise ConfigError(f"log-driver {config.log_driver!r} is not supported: use one of {', '.join(LOG_DRIVERS)}")
    for host in config.hosts:
        _validate_host(host)
    for path in (config.data_root, config.exec_root, config.pidfile):
        if not os.path.isabs(path):
            raise ConfigError(f"{path!r} is not an absolute path")
    if config.bip:
        try:
            ipaddress.IPv4Interface(config.bip)
        except ValueError:
            raise ConfigError(f"invalid bip: {config.bip!r} is not an IPv4 address in CIDR form") from None
        if "/" not in config.bip:
            raise ConfigError(f"invalid bip: {config.bip!r} has no prefix length")
    if config.bip and config.bridge:
        raise ConfigError("You specified -b & --bip, mutually exclusive options. Please specify only one")
    for address in config.dns:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ConfigError(f"invalid IP address: {address}") from None
    for label in config.labels:
        if "=" not in label:
            raise ConfigError(f"bad attribute format: {label}")
    if config.shutdown_timeout < 0:
        raise ConfigError(f"invalid shutdown-timeout: {config.shutdown_timeout}")
    if config.mtu < 68:
        raise ConfigError(f"invalid mtu: {config.mtu} (the least that IPv4 allows is 68)")
    if not config.live_restore:
        raise ConfigError("live-restore cannot be turned off: containers never depend on this daemon")


def _validate_host(host: str) -> None:
    scheme, separator, rest = host.partition("://")
    if not separator:
        raise ConfigError(f"invalid bind address {host!r}: the form is unix:///PATH or fd://")
    if scheme == "tcp":
        raise ConfigError(
            f"cannot listen on {host}: TCP is served with TLS and client certificates only (--tlsverify), "
            "and this version has no TLS; use unix:// or fd://"
        )
    if scheme not in ("unix", "fd"):
        raise ConfigError(f"invalid bind address {host!r}: invalid protocol {scheme!r}")
    if scheme == "unix" and not rest.startswith("/"):
        raise ConfigError(f"invalid bind address {host!r}: {rest!r} is not an absolute path")
