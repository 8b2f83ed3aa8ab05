"""`runc update`: change the limits of a container."""

from __future__ import annotations

import os

from runc import cli, jsontext, state
from runc import spec as specification
from runc.cgroups import control
from runc.errors import ContainerNotRunning, RuntimeFailure
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gantry.oci.runtime import Resources
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = (
    "Changes limits. With --resources they are read from a file (or '-', standard input) that holds the\n"
    "runtime-spec's linux.resources, and the other flags are ignored."
)

# flag: where its value goes, and whether it is text
_VALUES: dict[str, tuple[str, str, bool]] = {
    "blkio-weight": ("blockIO", "weight", False),
    "cpu-period": ("cpu", "period", False),
    "cpu-quota": ("cpu", "quota", False),
    "cpu-burst": ("cpu", "burst", False),
    "cpu-share": ("cpu", "shares", False),
    "cpu-rt-period": ("cpu", "realtimePeriod", False),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", False),
    "cpuset-cpus": ("cpu", "cpus", True),
    "cpuset-mems": ("cpu", "mems", True),
    "cpu-idle": ("cpu", "idle", False),
    "memory": ("memory", "limit", False),
    "memory-reservation": ("memory", "reservation", False),
    "memory-swap": ("memory", "swap", False),
    "pids-limit": ("pids", "limit", False),
}

FLAGS = (
    Flag(
        "resources",
        "path to the file containing the resources to update or '-' to read from the standard input",
        short="r",
        value=str,
    ),
    Flag("blkio-weight", "Specifies per cgroup weight, range is from 10 to 1000", value=int, default="0"),
    Flag(
        "cpu-period",
        "CPU CFS period to be used for hardcapping (in usecs). 0 to use system default",
        value=str,
    ),
    Flag("cpu-quota", "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period", value=str),
    Flag("cpu-burst", "CPU CFS hardcap burst limit (in usecs). Allowed accumulated cpu time additionally", value=str),
    Flag("cpu-share", "CPU shares (relative weight vs. other containers)", value=str),
    Flag(
        "cpu-rt-period",
        "CPU realtime period to be used for hardcapping (in usecs). 0 to use system default",
        value=str,
    ),
    Flag("cpu-rt-runtime", "CPU realtime hardcap limit (in usecs). Allowed cpu time in a given period", value=str),
    Flag("cpuset-cpus", "CPU(s) to use", value=str),
    Flag("cpuset-mems", "Memory node(s) to use", value=str),
    Flag("cpu-idle", "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE", value=str),
    Flag("memory", "Memory limit (in bytes)", value=str),
    Flag("memory-reservation", "Memory reservation or soft_limit (in bytes)", value=str),
    Flag("memory-swap", "Total memory usage (memory + swap); set '-1' to enable unlimited swap", value=str),
    Flag("pids-limit", "Maximum number of pids allowed in the container", value=int, default="0"),
)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    cli.expect_arguments("update", arguments, 1)
    container = state.load(context.root, arguments[0])
    if not container.is_running:
        raise ContainerNotRunning
    changes = _from_file(options.text("resources")) if options.text("resources") else _from_flags(options)
    # Device rules are set once, when the container is made.
    if container.systemd_unit:
        from runc.cgroups import systemd

        systemd.update(container.systemd_unit, control.paths_of(container), changes)
    control.apply(control.paths_of(container), changes)
    container.save_spec(_merged(container.spec, changes))
    return 0


def _from_flags(options: Options) -> Resources:
    changes: dict[str, dict[str, Any]] = {}
    for flag, (section, key, is_text) in _VALUES.items():
        text = options.text(flag)
        if text:
            changes.setdefault(section, {})[key] = text if is_text else parse_number(flag, text)
    resources: Resources = changes  # type: ignore[assignment]
    return resources


_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_number(flag: str, text: str) -> int:
    """A number, with a binary unit (`64m`, `64MB`, `64MiB`) where it is of bytes. Raises RuntimeFailure."""
    digits = text
    factor = 1
    if flag.startswith("memory"):
        digits = text.lower().removesuffix("b").removesuffix("i")
        if digits and digits[-1] in _UNITS:
            factor = _UNITS[digits[-1]]
            digits = digits[:-1]
    try:
        return int(digits) * factor
    except ValueError:
        raise RuntimeFailure(f"invalid value for {flag}: {text!r}") from None


def _from_file(path: str) -> Resources:
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    pieces = []
    try:
        while piece := os.read(fd, 65536):
            pieces.append(piece)
    finally:
        if fd:
            os.close(fd)
    try:
        value = jsontext.loads(b"".join(pieces))
    except ValueError as error:
        raise RuntimeFailure(f"resources: not valid JSON: {error}") from None
    resources = specification.validate_resources(value)
    # Zero means unchanged here: engines send every field.
    for section in ("memory", "cpu", "blockIO"):
        for key in [key for key, item in value.get(section, {}).items() if item in (0, "") and key != "idle"]:
            del value[section][key]
    return resources


def _merged(spec: Any, changes: Resources) -> Any:
    """The configuration with the changed limits, for whoever reads it next."""
    linux = dict(spec["linux"])
    resources = dict(linux.get("resources", {}))
    for section, values in changes.items():
        if section != "devices":
            before = resources.get(section)
            merged = {**before, **values} if isinstance(before, dict) and isinstance(values, dict) else values
            resources[section] = merged
    return {**spec, "linux": {**linux, "resources": resources}}
