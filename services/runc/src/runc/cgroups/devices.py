"""The device rules of a container: emulated first, then said in v1 lines or as a v2 program.

Rules are applied in order; the result is a default (all devices allowed, or none) and exceptions to it
(config-linux.md "Device allowlist").
"""

from __future__ import annotations

from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gantry.oci.runtime import DeviceRule

WILDCARD = -1

Key = tuple[str, int, int]
"""Type (`c` or `b`), major and minor; WILDCARD for any number."""

DEFAULT_RULES: tuple[DeviceRule, ...] = (
    {"allow": True, "type": "c", "major": WILDCARD, "minor": WILDCARD, "access": "m"},
    {"allow": True, "type": "b", "major": WILDCARD, "minor": WILDCARD, "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},  # null
    {"allow": True, "type": "c", "major": 1, "minor": 8, "access": "rwm"},  # random
    {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rwm"},  # full
    {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},  # tty
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},  # zero
    {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "rwm"},  # urandom
    {"allow": True, "type": "c", "major": 136, "minor": WILDCARD, "access": "rwm"},  # pts/*
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},  # ptmx
)
"""What every container may do: make nodes, and use the default devices and terminals."""


class DevicePolicy:
    """What a list of rules comes to: a default, and the accesses of `r`, `w`, `m` that differ from it."""

    __slots__ = ("default_allow", "exceptions")

    def __init__(self) -> None:
        self.default_allow = True
        self.exceptions: dict[Key, str] = {}

    def apply(self, rule: DeviceRule) -> None:
        """Take the next rule. Raises RuntimeFailure for one that is malformed."""
        kind, allow = rule.get("type") or "a", rule["allow"]
        # Configurations in the wild have an `a` among the accesses, which has no meaning there.
        access = (rule.get("access") or "rwm").replace("a", "")
        if kind not in ("a", "b", "c", "u") or not set(access) <= set("rwm"):
            raise RuntimeFailure(f"invalid device cgroup rule: type {kind!r}, access {access!r}")
        kind = "c" if kind == "u" else kind
        major, minor = rule.get("major", WILDCARD), rule.get("minor", WILDCARD)
        if kind == "a":
            self.default_allow = allow
            self.exceptions.clear()
            return
        key = (kind, major, minor)
        held = set(self.exceptions.get(key, ""))
        held = held - set(access) if allow == self.default_allow else held | set(access)
        if held:
            self.exceptions[key] = "".join(c for c in "rwm" if c in held)
        else:
            self.exceptions.pop(key, None)


def policy(rules: Iterable[DeviceRule]) -> DevicePolicy:
    """The policy of the rules given, and of the default rules behind them."""
    result = DevicePolicy()
    for rule in (*rules, *DEFAULT_RULES):
        result.apply(rule)
    return result


def v1_lines(devices: DevicePolicy) -> list[tuple[str, str]]:
    """(file, line) in the order of writing: the default, then its exceptions (kernel: cgroup-v1/devices.rst)."""
    lines = [("devices.allow" if devices.default_allow else "devices.deny", "a")]
    file = "devices.deny" if devices.default_allow else "devices.allow"
    for (kind, major, minor), access in devices.exceptions.items():
        numbers = ":".join("*" if number == WILDCARD else str(number) for number in (major, minor))
        lines.append((file, f"{kind} {numbers} {access}"))
    return lines
