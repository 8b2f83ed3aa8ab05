"""The options of runtimes that the configuration gives, for tasks whose client says nothing itself::

[plugins."io.containerd.runtime.v2.task".runtimes."io.containerd.runc.v2".options]
  BinaryName = "crun"
  SystemdCgroup = true
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from containerd.anyvalue import AnyValue
from containerd.config import ConfigError
from gantry.contracts.containerd.runc.v1.oci_pb2 import Options

__all__ = ["PLUGIN", "configured_options"]

PLUGIN = "io.containerd.runtime.v2.task"
_FIELDS = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "SystemdCgroup": "systemd_cgroup",
}
"""The keys of the file, as containerd spells them, and the fields of containerd.runc.v1.Options."""


def configured_options(settings: Mapping[str, Any]) -> dict[str, AnyValue]:
    """Return the options by the runtime's name from the plugin's table.

    Raises :class:`ConfigError` for a key that does not exist or a value of another type.
    """
    found = {}
    for runtime, table in _table(settings, "runtimes", f"plugins.{PLUGIN}").items():
        where = f"plugins.{PLUGIN}.runtimes.{runtime}"
        if not isinstance(table, dict):
            raise ConfigError(f"{where} is not a table")
        options = Options()
        for key, value in _table(table, "options", where).items():
            if key not in _FIELDS:
                raise ConfigError(f"{where}.options.{key} is not supported ({', '.join(_FIELDS)})")
            try:
                setattr(options, _FIELDS[key], value)
            except (TypeError, ValueError):
                raise ConfigError(f"{where}.options.{key} has type {type(value).__name__}") from None
        if options.ByteSize():
            found[runtime] = AnyValue(Options.DESCRIPTOR.full_name, options.SerializeToString(deterministic=True))
    return found


def _table(settings: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = settings.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{where}.{key} is not a table")
    return value
