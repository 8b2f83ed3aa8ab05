"""How often each gRPC method was called, and how it ended, with the names that go-grpc-prometheus gives them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from containerd.metrics.text import Family

__all__ = ["Call", "Calls"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets in seconds."""


@dataclass(frozen=True)
class Call:
    """A method: ``/SERVICE/METHOD``, and ``unary``, ``server_stream``, ``client_stream`` or ``bidi_stream``."""

    path: str
    type: str

    def labels(self) -> dict[str, str]:
        """Return the labels that name the method."""
        _, service, method = self.path.split("/", 2)
        return {"grpc_service": service, "grpc_method": method, "grpc_type": self.type}


class Calls:
    """Counts calls. Used in the event loop. ``histogram`` keeps how long they took as well."""

    def __init__(self, *, histogram: bool = False) -> None:
        self._histogram = histogram
        self._started: Counter[Call] = Counter()
        self._handled: Counter[tuple[Call, str]] = Counter()
        self._buckets: dict[Call, list[int]] = {}
        self._seconds: dict[Call, float] = {}

    def start(self, call: Call) -> float:
        """Count a call that comes in; returns what :meth:`handle` wants to have."""
        self._started[call] += 1
        return time.monotonic()

    def handle(self, call: Call, code: str, started: float) -> None:
        """Count the end of a call; ``code`` is a gRPC status code's name: ``NOT_FOUND``."""
        self._handled[call, code] += 1
        if not self._histogram:
            return
        seconds = time.monotonic() - started
        buckets = self._buckets.setdefault(call, [0] * len(BUCKETS))
        for index, bound in enumerate(BUCKETS):
            buckets[index] += seconds <= bound
        self._seconds[call] = self._seconds.get(call, 0.0) + seconds

    def families(self) -> list[Family]:
        """Return the numbers now."""
        started = Family("grpc_server_started_total", "RPCs that were started on the server.", "counter")
        handled = Family("grpc_server_handled_total", "RPCs that were completed on the server.", "counter")
        timing = Family("grpc_server_handling_seconds", "Seconds until an RPC was completed.", "histogram")
        for call, count in self._started.items():
            started.add(count, call.labels())
        for (call, code), count in self._handled.items():
            handled.add(count, {**call.labels(), "grpc_code": _go_name(code)})
        for call, buckets in self._buckets.items():
            labels = call.labels()
            total = sum(count for (of, _), count in self._handled.items() if of == call)
            for bound, below in zip(BUCKETS, buckets, strict=True):
                timing.add(below, {**labels, "le": f"{bound:g}"}, "_bucket")
            timing.add(total, {**labels, "le": "+Inf"}, "_bucket")
            timing.add(self._seconds[call], labels, "_sum").add(total, labels, "_count")
        return [started, handled, timing]


def _go_name(code: str) -> str:
    """Return a code as Go's library spells it: dashboards are made for that one."""
    if code == "OK":
        return code
    return "Canceled" if code == "CANCELLED" else code.title().replace("_", "")
