"""Progress of transfers as the Engine API tells it: JSON objects, one a line. Takes and returns values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gantry.contracts.containerd.types.transfer import progress_pb2
from gantry.oci.image import LAYER_COMPRESSION

__all__ = ["PullProgress", "PushProgress", "error_line", "short_id"]

Json = dict[str, Any]

_BAR = 50


def short_id(digest: str) -> str:
    """The first 12 hexadecimal digits, as layers and images are named in tables."""
    return digest.rpartition(":")[2][:12]


def error_line(message: str, code: int = 0) -> Json:
    """An error after the response has begun."""
    detail: Json = {"message": message}
    if code:
        detail["code"] = code
    return {"errorDetail": detail, "error": message}


def status_line(status: str, identity: str, current: int = -1, total: int = 0) -> Json:
    """One state of one layer; with ``current`` (bytes) a bar too."""
    if current < 0:
        return {"status": status, "progressDetail": {}, "id": identity}
    return {
        "status": status,
        "progressDetail": {"current": current, "total": total},
        "progress": _bar(current, total),
        "id": identity,
    }


def _bar(current: int, total: int) -> str:
    if total <= 0:
        return f"{_human(current):>8}"
    filled = min(current * _BAR // total, _BAR)
    numbers = f"{_human(current):>8}" + ("" if current > total else f"/{_human(total)}")
    return "[" + "=" * filled + ">" + " " * (_BAR - filled) + f"] {numbers}"


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.4g}{unit}"
        size /= 1000
    raise AssertionError("unreachable")


def _layer(progress: progress_pb2.Progress) -> str:
    """The digest of the layer that this is about; empty when it is about something else."""
    return progress.desc.digest if progress.desc.media_type in LAYER_COMPRESSION else ""


@dataclass
class _Layer:
    """Where a layer is on its way: states only ever go up."""

    state: int = 0
    current: int = -1
    existed: bool = False


_WAITING, _DOWNLOADING, _DOWNLOADED, _EXTRACTING, _DONE = range(1, 6)


class PullProgress:
    """Turns the progress of a pull into lines.

    As long as everything is there already nothing is said: an image that is up to date has no lines for its layers.
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._held: list[Json] = []
        self._live = False

    def feed(self, progress: progress_pb2.Progress) -> list[Json]:
        """Lines for what ``progress`` tells."""
        digest = _layer(progress)
        if not digest:
            return []
        layer = self._layers.setdefault(digest, _Layer())
        identity = short_id(digest)
        lines = self._begin(layer, identity)
        event = progress.event
        if event == "already exists" and layer.state < _DOWNLOADING:
            layer.state, layer.existed = _DOWNLOADED, True
            if not self._live:
                self._held[:] = [line for line in self._held if line["id"] != identity]
                self._held.append(status_line("Already exists", identity))
                return []
            return [*lines, status_line("Already exists", identity)]
        if event in ("downloading", "fetching"):
            lines += self._move(layer, _DOWNLOADING, "Downloading", identity, progress)
        elif event == "complete":
            lines += self._downloaded(layer, identity)
        elif event == "extracting":
            lines += self._downloaded(layer, identity)
            lines += self._move(layer, _EXTRACTING, "Extracting", identity, progress)
        elif event == "extracted":
            lines += self._downloaded(layer, identity)
            lines += self._done(layer, identity)
        return lines if not lines or self._live else self._release(lines)

    def finish(self, *, up_to_date: bool) -> list[Json]:
        """Lines that are missing when the pull has succeeded."""
        lines: list[Json] = [] if up_to_date else self._release([])
        if self._live:
            for digest, layer in self._layers.items():
                lines += self._downloaded(layer, short_id(digest)) if layer.state != _DOWNLOADED else []
                lines += self._done(layer, short_id(digest))
        return lines

    def _begin(self, layer: _Layer, identity: str) -> list[Json]:
        if layer.state:
            return []
        layer.state = _WAITING
        line = status_line("Pulling fs layer", identity)
        if self._live:
            return [line]
        self._held.append(line)
        return []

    def _release(self, lines: list[Json]) -> list[Json]:
        """From now on everything is said; what was held back comes first."""
        self._live = True
        held, self._held = self._held, []
        return held + lines

    def _move(
        self, layer: _Layer, state: int, status: str, identity: str, progress: progress_pb2.Progress
    ) -> list[Json]:
        if layer.state > state or (layer.state == state and progress.progress <= layer.current):
            return []
        layer.state, layer.current = state, progress.progress
        return [status_line(status, identity, progress.progress, progress.total or progress.desc.size)]

    def _downloaded(self, layer: _Layer, identity: str) -> list[Json]:
        if layer.state >= _DOWNLOADED:
            return []
        layer.state, layer.current = _DOWNLOADED, -1
        return [status_line("Verifying Checksum", identity), status_line("Download complete", identity)]

    def _done(self, layer: _Layer, identity: str) -> list[Json]:
        if layer.state >= _DONE or (layer.existed and layer.state < _EXTRACTING):
            return []
        layer.state = _DONE
        return [status_line("Pull complete", identity)]


class PushProgress:
    """Turns the progress of a push into lines. ``diff_ids`` gives the name of each layer's blob, as users know it."""

    def __init__(self, diff_ids: Mapping[str, str]) -> None:
        self._diff_ids = diff_ids
        self._states: dict[str, int] = {}
        self._current: dict[str, int] = {}

    def begin(self) -> list[Json]:
        """Lines for all layers before anything is sent."""
        lines = []
        for digest in self._diff_ids:
            self._states[digest] = _WAITING
            lines.append(status_line("Preparing", self._name(digest)))
        return lines

    def feed(self, progress: progress_pb2.Progress) -> list[Json]:
        """Lines for what ``progress`` tells."""
        digest = _layer(progress)
        if not digest or self._states.get(digest, 0) >= _DONE:
            return []
        if progress.event in ("uploading", "pushing"):
            if progress.progress <= self._current.get(digest, 0):
                return []
            self._current[digest] = progress.progress
            total = progress.total or progress.desc.size
            return [status_line("Pushing", self._name(digest), progress.progress, total)]
        if progress.event in ("complete", "pushed", "already exists"):
            self._states[digest] = _DONE
            # A blob of which no byte was sent was there before.
            sent = progress.event != "already exists"
            return [status_line("Pushed" if sent else "Layer already exists", self._name(digest))]
        return []

    def finish(self) -> list[Json]:
        """Lines that are missing when the push has succeeded."""
        missing = [digest for digest in self._diff_ids if self._states.get(digest, 0) < _DONE]
        return [status_line("Pushed", self._name(digest)) for digest in missing]

    def _name(self, digest: str) -> str:
        return short_id(self._diff_ids.get(digest, digest))
