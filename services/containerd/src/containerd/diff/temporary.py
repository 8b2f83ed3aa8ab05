"""Mounts at a temporary place, for as long as a block runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from containerd.errors import InvalidArgument
from containerd.mounts import Mount
from gantry.linux.mount import MNT_DETACH, MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, mount, parse_options, umount2

__all__ = ["mounted"]


class mounted:  # noqa: N801 (read as a verb: with mounted(mounts) as directory)
    """Mount ``mounts``, one on another, at a new temporary directory, which the ``with`` statement gives.

    Nothing mounted there stays behind, whatever happens. Raises OSError naming the mount, :class:`InvalidArgument`
    for a list that is empty.
    """

    def __init__(self, mounts: Sequence[Mount], *, read_only: bool = False) -> None:
        if not mounts:
            raise InvalidArgument("no mounts were given: invalid argument")
        self._mounts = mounts
        self._read_only = read_only
        self._directory = ""
        self._count = 0

    def __enter__(self) -> str:
        self._directory = tempfile.mkdtemp(prefix="containerd-mount")
        try:
            for item in self._mounts:
                self._mount(item)
        except BaseException:
            self.__exit__()
            raise
        return self._directory

    def __exit__(self, *exception: object) -> None:
        for _ in range(self._count):
            umount2(self._directory, MNT_DETACH)
        self._count = 0
        os.rmdir(self._directory)

    def _mount(self, item: Mount) -> None:
        options = [option for option in item.options if not (self._read_only and option == "rw")]
        if self._read_only and "ro" not in options:
            options.append("ro")
        if self._read_only:  # without an upper layer an overlay needs no work directory, and is not changed by looking
            options = _without_upper(options) if item.type == "overlay" else options
        parsed = parse_options(options)
        target = os.path.join(self._directory, item.target) if item.target else self._directory
        mount(item.source, target, item.type if not parsed.flags & MS_BIND else None, parsed.flags, parsed.data_string)
        self._count += 1
        if parsed.flags & MS_BIND and parsed.flags & MS_RDONLY:  # the first call of a bind ignores the flag
            mount("none", target, None, (parsed.flags & ~MS_REC) | MS_REMOUNT)


def _without_upper(options: Sequence[str]) -> list[str]:
    upper = next((option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")), "")
    if not upper:
        return list(options)
    kept = []
    for option in options:
        if option.startswith("lowerdir="):
            kept.append(f"lowerdir={upper}:{option.removeprefix('lowerdir=')}")
        elif not option.startswith(("upperdir=", "workdir=")):
            kept.append(option)
    return kept
