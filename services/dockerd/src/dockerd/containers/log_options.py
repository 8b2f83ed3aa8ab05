"""``--log-driver`` and ``--log-opt``: which there are, refused in the real engine's words before anything is made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dockerd import errors

__all__ = ["DRIVERS", "check"]

DRIVERS = ("json-file", "none")

# Drivers of the real engine that this one does not have.
_KNOWN = ("awslogs", "fluentd", "gcplogs", "gelf", "journald", "local", "splunk", "syslog")
_JSON_FILE = frozenset(
    {"compress", "env", "env-regex", "labels", "labels-regex", "max-buffer-size", "max-file", "max-size", "mode", "tag"}
)
_CACHE = re.compile(r"cache-.*")


def check(driver: str, options: Mapping[str, str]) -> None:
    """Raises InvalidParameter naming the driver or the option that is not known, NotSupported for one not offered.

    Sizes and counts are looked at when the container is started, as with the real engine.
    """
    if driver in _KNOWN:
        raise errors.InvalidParameter(
            f"logger: no log driver named '{driver}' is registered (this engine has {' and '.join(DRIVERS)})"
        )
    if driver not in DRIVERS:
        raise errors.InvalidParameter(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise errors.InvalidParameter(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options and mode != "non-blocking":
        raise errors.InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
    if driver != "json-file":
        return
    for name in options:
        if name not in _JSON_FILE and not _CACHE.fullmatch(name):
            raise errors.InvalidParameter(f"unknown log opt '{name}' for json-file log driver")
    for name in ("labels-regex", "env-regex"):
        if options.get(name):
            raise errors.NotSupported(f"log opt {name} is not supported by this engine")
    if options.get("compress", "false").lower() in ("1", "t", "true") and options.get("max-size"):
        raise errors.NotSupported("log opt compress is not supported by this engine")
