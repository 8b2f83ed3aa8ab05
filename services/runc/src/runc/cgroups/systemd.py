"""Control groups by systemd (`--systemd-cgroup`): a container is a transient scope, whose groups systemd makes.

`cgroupsPath` is `SLICE:PREFIX:NAME`, the unit `PREFIX-NAME.scope` below the slice, or a slice itself when NAME ends so.
systemd is asked for the unit with the container's first process in it; it delegates what is below to us, so that
limits and controllers that it does not know are set in the files as with the other driver.
Sources: org.freedesktop.systemd1(5), systemd.resource-control(5), the naming of systemd.slice(5).
"""

from __future__ import annotations

import os

from runc.cgroups import dbus
from runc.cgroups import resources as plan
from runc.cgroups.hierarchy import V2, Hierarchies, Paths
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gantry.oci.runtime import Resources

    Property = tuple[str, tuple[str, Any]]

RUNNING = "/run/systemd/system"  # sd_booted(3)
PRIVATE_SOCKET = "/run/systemd/private"
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
DESTINATION = "org.freedesktop.systemd1"
OBJECT = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
PATIENCE = 30.0
"""Seconds that systemd gets for a job."""
INFINITY = (1 << 64) - 1
_DEFAULT_PERIOD = 100_000
_QUOTA_STEP = 10_000  # systemd counts whole percents
ANNOTATION = "org.systemd.property."


class Unit:
    """A container's unit: its name, the slice it is in, and the text that describes it."""

    __slots__ = ("description", "name", "slice")

    def __init__(self, name: str, parent: str, description: str) -> None:
        self.name = name
        self.slice = parent
        self.description = description


def plan_unit(cgroups_path: str, container_id: str, *, rootless: bool = False) -> Unit:
    """The unit for a `cgroupsPath`. Raises RuntimeFailure."""
    parent, prefix, name = "", "runc", container_id
    if cgroups_path:
        parts = cgroups_path.split(":")
        if len(parts) != 3:
            raise RuntimeFailure(
                'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
                f'got "{cgroups_path}" instead'
            )
        parent, prefix, name = parts
    parent = parent or ("user.slice" if rootless else "system.slice")
    expand_slice(parent)
    if "/" in name or "/" in prefix or not name:
        raise RuntimeFailure(f"invalid unit name: {prefix}-{name}")
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    return Unit(unit, parent, f"libcontainer container {name}")


def expand_slice(name: str) -> str:
    """Where a slice is: each `-` is a level (`a-b.slice` is `/a.slice/a-b.slice`). Raises RuntimeFailure."""
    base = name.removesuffix(".slice")
    if base == name or not base or "/" in name:
        raise RuntimeFailure(f"invalid slice name: {name}")
    if base == "-":
        return "/"
    parts = base.split("-")
    if "" in parts:
        raise RuntimeFailure(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(parts[: index + 1])}.slice" for index in range(len(parts)))


def container_paths(hierarchies: Hierarchies, unit: Unit, base: str = "") -> Paths:
    """The groups of the unit; `base` is the group of a user's own systemd, below which all its units are."""
    inner = (expand_slice(unit.slice) + "/" + unit.name).replace("//", "/")
    if unit.name.endswith(".slice"):
        inner = expand_slice(unit.name)
    inner = base.rstrip("/") + inner
    controllers = {name: mount + inner for name, (mount, _) in hierarchies.controllers.items()}
    return Paths(hierarchies.mode, controllers, hierarchies.unified[0] + inner if hierarchies.unified else "")


def unit_properties(unit: Unit, pid: int, *, unified: bool, annotations: dict[str, str]) -> list[Property]:
    """The properties that a unit is made with."""
    made: list[Property] = [("Description", ("s", unit.description))]
    if unit.name.endswith(".slice"):
        made.append(("Wants", ("as", [unit.slice])))
    else:
        made += [("Slice", ("s", unit.slice)), ("Delegate", ("b", True))]
    made.append(("PIDs", ("au", [pid])))
    for name in ("MemoryAccounting", "CPUAccounting", "IOAccounting" if unified else "BlockIOAccounting"):
        made.append((name, ("b", True)))
    made += [("TasksAccounting", ("b", True)), ("DefaultDependencies", ("b", False))]
    return made + annotated_properties(annotations)


def annotated_properties(annotations: dict[str, str]) -> list[Property]:
    """Properties of `org.systemd.property.NAME` annotations; times are given in seconds. Raises RuntimeFailure."""
    made: list[Property] = []
    for key, text in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        name = key.removeprefix(ANNOTATION)
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise RuntimeFailure(f"annotation {key} name incorrect: it is no name of a property")
        try:
            signature, value = parse_variant(text)
        except ValueError as error:
            raise RuntimeFailure(f"annotation {key}={text} value parse error: {error}") from None
        if name.endswith("Sec") and signature in "nqiuxt":
            name, signature, value = name.removesuffix("Sec") + "USec", "t", value * 1_000_000
        made.append((name, (signature, value)))
    return made


_WORDS = {"byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t"}


def parse_variant(text: str) -> tuple[str, Any]:
    """A value in GVariant's text format: truth values, numbers with or without their type, strings, lists of strings.

    Raises ValueError.
    """
    text = text.strip()
    if text in ("true", "false"):
        return "b", text == "true"
    word, _, number = text.partition(" ")
    if word in _WORDS:
        return _WORDS[word], int(number, 0)
    if text[:1] == "[" and text[-1:] == "]":
        items = [parse_variant(item) for item in text[1:-1].split(",") if item.strip()]
        if any(signature != "s" for signature, _ in items):
            raise ValueError("only lists of strings can be given")
        return "as", [item for _, item in items]
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        return "s", text[1:-1]
    return "i", int(text, 0)


def resource_properties(resources: Resources, *, unified: bool) -> list[Property]:
    """The limits that systemd has properties for; the files are written as well, for those it has not."""
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    made: list[Property] = []

    def add(name: str, value: int | None) -> None:
        if value:
            made.append((name, ("t", INFINITY if value < 0 else value)))

    if unified:
        add("MemoryMax", memory.get("limit"))
        add("MemoryLow", memory.get("reservation"))
        swap, limit = memory.get("swap"), memory.get("limit", 0)
        if swap and (swap < 0 or swap > limit):
            add("MemorySwapMax", swap if swap < 0 else swap - max(limit, 0))
        shares = cpu.get("shares")
        add("CPUWeight", plan.cpu_weight(shares) if shares else None)
    else:
        add("MemoryLimit", memory.get("limit"))
        add("CPUShares", cpu.get("shares"))
        add("BlockIOWeight", resources.get("blockIO", {}).get("weight"))
    made += _quota(cpu.get("quota", 0), cpu.get("period", 0))
    if "limit" in resources.get("pids", {}):
        made.append(("TasksMax", ("t", _tasks(resources["pids"]["limit"]))))
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        text = cpu.get(key)
        if isinstance(text, str) and text:
            made.append((name, ("ay", list(bits(text)))))
    return made


def _tasks(limit: int) -> int:
    return INFINITY if limit < 0 else max(limit, 1)  # none at all is not to be had


def _quota(quota: int, period: int) -> list[Property]:
    made: list[Property] = [("CPUQuotaPeriodUSec", ("t", period))] if period else []
    if not quota and not period:
        return made
    second = INFINITY
    if quota > 0:
        second = quota * 1_000_000 // (period or _DEFAULT_PERIOD)
        second += -second % _QUOTA_STEP
    return [*made, ("CPUQuotaPerSecUSec", ("t", second))]


def bits(text: str) -> bytes:
    """A list such as `0-3,7` as systemd's bit mask. Raises RuntimeFailure."""
    from runc.scheduling import parse_list

    try:
        mask = sum(1 << number for number in parse_list(text))
    except ValueError as error:
        raise RuntimeFailure(f"{text!r} conversion error: {error}") from None
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")


# Asking systemd


def require_running() -> None:
    """Raises RuntimeFailure where systemd does not run."""
    if not os.path.isdir(RUNNING):
        raise RuntimeFailure("systemd not running on this host, cannot use systemd cgroups manager")


class Manager:
    """systemd, reached over the system bus, a user's over the session bus, or as root over its own socket."""

    def __init__(self) -> None:
        self._destination = DESTINATION
        self._bus = self._connect()

    def _connect(self) -> dbus.Bus:
        uid = os.geteuid()
        try:
            bus = dbus.Bus(dbus.socket_path(_address(uid)), uid, PATIENCE)
        except RuntimeFailure as failure:
            if uid or not os.path.exists(PRIVATE_SOCKET):
                raise failure.within("failed to connect to dbus") from failure
            self._destination = ""
            return dbus.Bus(PRIVATE_SOCKET, uid, PATIENCE)
        try:
            name, path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
            bus.call(name, path, name, "Hello")
            rule = f"type='signal',interface='{MANAGER}',member='JobRemoved',path='{OBJECT}'"
            bus.call(name, path, name, "AddMatch", "s", rule)
            bus.call(DESTINATION, OBJECT, MANAGER, "Subscribe")
        except BaseException:
            bus.close()
            raise
        return bus

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def _call(self, member: str, signature: str, *values: Any) -> list[Any]:
        return self._bus.call(self._destination, OBJECT, MANAGER, member, signature, *values)

    def _wait_job(self, job: str) -> str:
        result: str = self._bus.wait_signal("JobRemoved", lambda body: len(body) > 3 and body[1] == job)[3]
        return result

    def start(self, name: str, properties: list[Property]) -> None:
        """Make the unit. One of its name that has failed and is left over goes before. Raises RuntimeFailure."""
        values: tuple[Any, ...] = (name, "replace", properties, [])
        try:
            (job,) = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", *values)
        except dbus.BusError as error:
            if "UnitExists" not in error.name:
                raise error.within(f'unable to start unit "{name}"') from error
            self.reset_failed(name)
            try:
                (job,) = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", *values)
            except dbus.BusError as again:
                raise again.within(f'unable to start unit "{name}"') from again
        result = self._wait_job(job)
        if result != "done":
            self.reset_failed(name)
            raise RuntimeFailure(f"error creating systemd unit `{name}`: got `{result}`")

    def stop(self, name: str) -> None:
        """Have the unit gone; one that is gone already is fine."""
        try:
            (job,) = self._call("StopUnit", "ss", name, "replace")
            self._wait_job(job)
        except dbus.BusError as error:
            if "NoSuchUnit" not in error.name:
                raise
        self.reset_failed(name)

    def set_properties(self, name: str, properties: list[Property]) -> None:
        """Change the unit until it is gone."""
        self._call("SetUnitProperties", "sba(sv)", name, True, properties)

    def control_group(self) -> str:
        """The group that systemd itself has its units below."""
        interface, member = "org.freedesktop.DBus.Properties", "Get"
        (found,) = self._bus.call(self._destination, OBJECT, interface, member, "ss", MANAGER, "ControlGroup")
        path: str = found[1]
        return path

    def reset_failed(self, name: str) -> None:
        """Let systemd forget a unit that failed; it says so when there is none."""
        try:
            self._call("ResetFailedUnit", "s", name)
        except dbus.BusError:
            return


def _address(uid: int) -> str:
    if uid == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if not address and directory and os.path.exists(f"{directory}/bus"):
        address = f"unix:path={directory}/bus"
    if not address:
        raise RuntimeFailure(
            "could not detect DBUS_SESSION_BUS_ADDRESS from the environment; make sure that a session bus runs"
        )
    return address


def own_base() -> str:
    """For an ordinary user the group of the user's systemd, empty for root. Raises RuntimeFailure."""
    if os.geteuid() == 0:
        return ""
    with Manager() as manager:
        return manager.control_group()


def start(unit: Unit, pid: int, paths: Paths, resources: Resources, annotations: dict[str, str]) -> None:
    """Make the container's unit, with its first process in it. Raises RuntimeFailure."""
    unified = paths.mode == V2
    properties = unit_properties(unit, pid, unified=unified, annotations=annotations)
    with Manager() as manager:
        manager.start(unit.name, properties)
        limits = resource_properties(resources, unified=unified)
        if limits:
            manager.set_properties(unit.name, limits)


def update(name: str, paths: Paths, resources: Resources) -> None:
    """Change the limits of a container's unit. Raises RuntimeFailure."""
    limits = resource_properties(resources, unified=paths.mode == V2)
    if limits:
        with Manager() as manager:
            manager.set_properties(name, limits)


def stop(name: str) -> None:
    """Remove a container's unit. Raises RuntimeFailure."""
    with Manager() as manager:
        manager.stop(name)
