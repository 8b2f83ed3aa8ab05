"""config.toml, versions 2 and 3, as far as this daemon has something to configure.

A key that is not known is named in a warning, never an error: the same file may serve a real containerd too.
"""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from containerd.durations import duration

__all__ = ["Config", "ConfigError", "dump", "load"]

DEFAULT_PATH = "/etc/gantry/containerd/config.toml"
DEFAULT_ROOT = "/var/lib/gantry/containerd"
DEFAULT_STATE = "/run/gantry/containerd"
DEFAULT_MESSAGE_SIZE = 16 << 20
NEWEST_VERSION = 3

_IGNORED = {
    # Known to containerd, without meaning here; set to what they are by default nobody has to hear of them.
    "temp": ("",),
    "plugin_dir": ("",),
    "required_plugins": ([],),
    "stream_processors": ({},),
    "proxy_plugins": ({},),
    "cgroup": ({"path": ""}, {}),
}
_SECTIONS: dict[str, dict[str, str]] = {
    # section: key in the file -> field of Config ("" for those without meaning here)
    "grpc": {
        "address": "address",
        "uid": "uid",
        "gid": "gid",
        "max_recv_message_size": "max_receive",
        "max_send_message_size": "max_send",
        "tcp_address": "",
        "tcp_tls_ca": "",
        "tcp_tls_cert": "",
        "tcp_tls_key": "",
        "tcp_tls_common_name": "",
    },
    "ttrpc": {"address": "ttrpc_address", "uid": "ttrpc_uid", "gid": "ttrpc_gid"},
    "debug": {
        "level": "log_level",
        "format": "log_format",
        "address": "debug_address",
        "uid": "debug_uid",
        "gid": "debug_gid",
    },
    "metrics": {"address": "metrics_address", "grpc_histogram": "grpc_histogram"},
}
_TOP = {
    "version": "",
    "root": "root",
    "state": "state",
    "oom_score": "oom_score",
    "disabled_plugins": "",
    "imports": "",
}

TIMEOUTS = {
    # Seconds. The names are containerd's; the last two are for calls that containerd bounds by the client's alone.
    "io.containerd.timeout.shim.load": 5.0,
    "io.containerd.timeout.shim.cleanup": 15.0,
    "io.containerd.timeout.shim.shutdown": 3.0,
    "io.containerd.timeout.task.state": 2.0,
    "io.containerd.timeout.metrics.shimstats": 2.0,
    "io.gantry.timeout.shim.start": 60.0,
    "io.gantry.timeout.shim.call": 300.0,
}


RENAMED = {"io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart"}
"""Plugins whose id in a file of version 2 is another one."""

PLUGIN_DEFAULTS: dict[str, dict[str, Any]] = {
    "io.containerd.monitor.container.v1.restart": {"interval": "10s"},
    "io.containerd.runtime.v2.task": {"runtimes": {}},
    "io.containerd.transfer.v1.local": {"config_path": ""},
}
"""The plugins that have something to configure."""


class ConfigError(Exception):
    """The file cannot be read or a value has the wrong type; the message names the key."""


@dataclass(frozen=True)
class Config:
    """What the daemon runs with. Sizes in bytes; ``timeouts`` in seconds.

    ``plugins`` holds the ``[plugins."TYPE.ID"]`` tables as they are in the file, for whoever owns them.
    """

    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    address: str = ""
    uid: int = 0
    gid: int = 0
    max_receive: int = DEFAULT_MESSAGE_SIZE
    max_send: int = DEFAULT_MESSAGE_SIZE
    ttrpc_address: str = ""
    ttrpc_uid: int = 0
    ttrpc_gid: int = 0
    log_level: str = "info"
    log_format: str = "text"
    debug_address: str = ""
    debug_uid: int = 0
    debug_gid: int = 0
    metrics_address: str = ""
    grpc_histogram: bool = False
    oom_score: int = 0
    disabled_plugins: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    timeouts: Mapping[str, float] = field(default_factory=lambda: dict(TIMEOUTS))
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def resolved(self) -> Config:
        """Return the configuration with its addresses filled in and its paths made absolute."""
        root, state = os.path.abspath(self.root), os.path.abspath(self.state)
        address = os.path.abspath((self.address or f"{state}/containerd.sock").removeprefix("unix://"))
        ttrpc = os.path.abspath((self.ttrpc_address or f"{address}.ttrpc").removeprefix("unix://"))
        return replace(self, root=root, state=state, address=address, ttrpc_address=ttrpc)

    @property
    def shim_sockets(self) -> str:
        """The directory of the sockets of the shims that are forked from a template."""
        return f"{self.state}/s"

    def plugin(self, plugin_id: str) -> Mapping[str, Any]:
        """Return the table of ``TYPE.ID``; empty when the file has none."""
        return self.plugins.get(plugin_id, {})

    def duration(self, plugin_id: str, key: str, default: float) -> float:
        """Return a plugin's setting that is a Go duration, in seconds. Raises :class:`ConfigError`."""
        text = self.plugin(plugin_id).get(key)
        return default if text is None else _seconds(text, f"plugins.{plugin_id}.{key}")

    def disabled(self, plugin_id: str) -> bool:
        """Tell whether ``disabled_plugins`` names a plugin."""
        return plugin_id in self.disabled_plugins

    def timeout(self, name: str) -> float:
        """Return a named timeout in seconds."""
        return self.timeouts[name]


def load(path: str, *, required: bool) -> Config:
    """Read ``path`` and the files it imports. A missing file is an error only when ``required``.

    Raises :class:`ConfigError`.
    """
    config = Config()
    if not required and not os.path.exists(path):
        return config
    seen: set[str] = set()
    for name, table in _files(path, seen):
        config = _merge(config, table, name)
    return config


def _files(path: str, seen: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a file and then its imports, which win over it."""
    real = os.path.realpath(path)
    if real in seen:
        return
    seen.add(real)
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    yield path, table
    for pattern in _value(table, "imports", list, path, []):
        absolute = os.path.join(os.path.dirname(path), str(pattern))
        for name in sorted(glob.glob(absolute)):
            yield from _files(name, seen)


def _merge(config: Config, table: dict[str, Any], path: str) -> Config:
    version = _value(table, "version", int, path, 1)
    if version not in (2, NEWEST_VERSION):
        raise ConfigError(f"{path}: config version {version} is not supported (2 or {NEWEST_VERSION})")
    types = {item.name: type(getattr(config, item.name)) for item in fields(config)}
    changes: dict[str, Any] = {}
    warnings = list(config.warnings)
    for key, value in table.items():
        if key in _SECTIONS:
            section = _value(table, key, dict, path, {})
            for name, item in section.items():
                target = _SECTIONS[key].get(name)
                if target:
                    changes[target] = _value(section, name, types[target], f"{path}: {key}", None)
                elif target is None or item not in ("", 0, False):
                    warnings.append(f"{path}: {key}.{name} is not supported and has no effect")
        elif key in ("timeouts", "plugins", "disabled_plugins", "imports"):
            continue
        elif _TOP.get(key):
            changes[_TOP[key]] = _value(table, key, types[_TOP[key]], path, None)
        elif key not in _TOP and value not in _IGNORED.get(key, ()):
            warnings.append(f"{path}: {key} is not supported and has no effect")
    timeouts = dict(config.timeouts)
    for name, text in _value(table, "timeouts", dict, path, {}).items():
        if name in TIMEOUTS:
            timeouts[name] = _seconds(text, f"{path}: timeouts.{name}")
        else:
            warnings.append(f"{path}: timeouts.{name} is not supported and has no effect")
    disabled = tuple(RENAMED.get(str(name), str(name)) for name in _value(table, "disabled_plugins", list, path, []))
    imports = tuple(map(str, _value(table, "imports", list, path, [])))
    plugins = {**config.plugins}
    for name, settings in _value(table, "plugins", dict, path, {}).items():
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: plugins.{name} is not a table")
        name = RENAMED.get(name, name)
        plugins[name] = {**plugins.get(name, {}), **settings}
    changes = {key: value for key, value in changes.items() if value != "" or key not in ("log_level", "log_format")}
    return replace(
        config,
        **changes,
        timeouts=timeouts,
        plugins=plugins,
        disabled_plugins=config.disabled_plugins + disabled,
        imports=config.imports + imports,
        warnings=tuple(warnings),
    )


def _value(table: Mapping[str, Any], key: str, kind: type, where: str, default: Any) -> Any:
    if key not in table:
        return default
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: {key} has type {type(value).__name__}, not {kind.__name__}")
    return value


def _seconds(text: Any, where: str) -> float:
    try:
        return duration(text if isinstance(text, str) else repr(text))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def dump(config: Config) -> str:
    """Return the configuration as a config.toml of the newest version."""
    config = config.resolved()
    lines = [
        f"version = {NEWEST_VERSION}",
        f"root = {_toml(config.root)}",
        f"state = {_toml(config.state)}",
        f"oom_score = {config.oom_score}",
        f"disabled_plugins = {_toml(list(config.disabled_plugins))}",
        f"imports = {_toml(list(config.imports))}",
    ]
    for section, keys in _SECTIONS.items():
        known = [(name, target) for name, target in keys.items() if target]
        if known:
            lines += ["", f"[{section}]"]
            lines += [f"  {name} = {_toml(getattr(config, target))}" for name, target in known]
    lines += ["", "[timeouts]"]
    lines += [f"  {_toml(name)} = {_toml(f'{seconds:g}s')}" for name, seconds in sorted(config.timeouts.items())]
    lines += ["", "[plugins]"]
    for name, settings in sorted({**PLUGIN_DEFAULTS, **config.plugins}.items()):
        settings = {**PLUGIN_DEFAULTS.get(name, {}), **settings}
        lines += _toml_table(f"plugins.{_key(name)}", settings)
    return "\n".join(lines) + "\n"


def _toml_table(name: str, table: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"  {_key(key)} = {_toml(value)}" for key, value in plain.items())]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml_table(f"{name}.{_key(key)}", value)
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    text = "".join(
        character if character.isprintable() and character not in '"\\' else f"\\U{ord(character):08x}"
        for character in str(value)
    )
    return f'"{text}"'
