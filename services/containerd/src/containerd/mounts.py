"""Mounts as values: what a snapshot's file system is made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mount"]


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: ``type`` and ``source`` as mount(8) has them, ``options`` as in fstab."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""

    @property
    def read_only(self) -> bool:
        """Whether the mount cannot be written to."""
        return "ro" in self.options

    def option(self, name: str) -> str:
        """Return the value of the option ``name=value``, or an empty string."""
        for option in self.options:
            key, separator, value = option.partition("=")
            if separator and key == name:
                return value
        return ""
