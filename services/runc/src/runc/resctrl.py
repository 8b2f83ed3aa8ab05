"""Intel RDT (config-linux.md "IntelRdt"): what of it can be asked for on this machine.

Allocation of cache and memory bandwidth is through the resctrl file system. This runtime makes no groups in it: a
configuration that asks for one is told why it can not have it, as an engine expects to be told.
"""

from __future__ import annotations

import os

from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import IntelRdt

ROOT = "/sys/fs/resctrl"


def check(wanted: IntelRdt, root: str = ROOT) -> None:
    """Raises RuntimeFailure: for a machine without it, for a name that can not be, and else for this runtime."""
    if not os.path.exists(os.path.join(root, "info")):
        raise RuntimeFailure("intelRdt is specified in config, but Intel RDT is not enabled")
    group = wanted.get("closID", "")
    if group in (".", "..") or (len(group) > 1 and "/" in group):
        raise RuntimeFailure(f'invalid intelRdt.ClosID "{group}"')
    for key, name, directory in (("l3CacheSchema", "CAT", "L3"), ("memBwSchema", "MBA", "MB")):
        if wanted.get(key) and not os.path.isdir(os.path.join(root, "info", directory)):
            raise RuntimeFailure(f"intelRdt.{key} is specified in config, but Intel RDT/{name} is not enabled")
    raise RuntimeFailure("linux.intelRdt is not supported by this runtime")
