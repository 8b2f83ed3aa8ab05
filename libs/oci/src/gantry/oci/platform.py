"""Platforms: `os/architecture[/variant]` (image-spec image-index.md), as Docker and containerd normalise them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_PART = re.compile(r"[A-Za-z0-9_.-]+")

_ARCHITECTURES = {
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "ppc64el": ("ppc64le", ""),
}
_KNOWN_ARCHITECTURES = frozenset(
    [
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mipsle",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    ]
)
_KNOWN_SYSTEMS = frozenset(
    [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "ios",
        "js",
        "linux",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "wasip1",
        "windows",
        "zos",
    ]
)


class InvalidPlatform(ValueError):
    """A text is no platform."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and its variant, in Go's words (`linux`, `amd64`, `v8`)."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def normalized(self) -> Platform:
        """The same in canonical words: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`."""
        system = self.os.lower()
        system = "darwin" if system == "macos" else system
        architecture = self.architecture.lower()
        variant = self.variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = implied or variant
        if architecture == "arm64":
            variant = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}.get(variant, variant)
        elif architecture == "arm":
            variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
        elif architecture == "amd64" and variant == "v1":
            variant = ""
        return Platform(system, architecture, variant, self.os_version, self.os_features)

    def matches(self, wanted: Platform) -> bool:
        """Is this exactly the wanted platform, after normalising both?"""
        mine, other = self.normalized(), wanted.normalized()
        return (mine.os, mine.architecture, mine.variant) == (other.os, other.architecture, other.variant)

    def compatible(self) -> tuple[Platform, ...]:
        """Every platform whose programs run on this one, the best first."""
        me = self.normalized()
        chain: list[tuple[str, str]] = [(me.architecture, me.variant)]
        if me.architecture == "amd64":
            level = int(me.variant[1:]) if me.variant[1:].isdigit() else 1
            chain += [("amd64", f"v{n}") for n in range(level - 1, 1, -1)]
            chain += [("amd64", "")] if me.variant else []
            chain.append(("386", ""))
        elif me.architecture == "arm":
            chain += _older_arm(me.variant)
        elif me.architecture == "arm64":
            if me.variant:
                chain.append(("arm64", ""))
            chain += [("arm", "v8"), *_older_arm("v8")]
        return tuple(Platform(me.os, architecture, variant) for architecture, variant in chain)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _older_arm(variant: str) -> list[tuple[str, str]]:
    level = int(variant[1:]) if variant[1:].isdigit() else 7
    return [("arm", f"v{n}") for n in range(level - 1, 4, -1)]


def parse(text: str) -> Platform:
    """Parse `os`, `architecture`, `os/architecture` or `os/architecture/variant`; what is missing is the host's.

    Raises InvalidPlatform.
    """
    parts = text.split("/")
    if not 1 <= len(parts) <= 3:
        raise InvalidPlatform(f'"{text}": unknown operating system or architecture: invalid platform')
    for part in parts:
        if not _PART.fullmatch(part):
            raise InvalidPlatform(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                f'"^[A-Za-z0-9_.-]+$": invalid platform'
            )
    if len(parts) == 1:
        return _parse_one(text)
    return Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else "").normalized()


def _parse_one(text: str) -> Platform:
    host = default()
    as_system = Platform(text, host.architecture, host.variant).normalized()
    if as_system.os in _KNOWN_SYSTEMS:
        return as_system
    as_architecture = Platform(host.os, text).normalized()
    if as_architecture.architecture in _KNOWN_ARCHITECTURES:
        return as_architecture
    raise InvalidPlatform(f'"{text}": unknown operating system or architecture: invalid platform')


def default() -> Platform:
    """The platform of the running kernel."""
    return Platform("linux", os.uname().machine).normalized()


def best_match(offers: list[Platform], wanted: Platform) -> int | None:
    """The index of the offer that runs best on `wanted`, or None when none runs there."""
    for candidate in wanted.compatible():
        for index, offer in enumerate(offers):
            if offer.matches(candidate):
                return index
    return None
