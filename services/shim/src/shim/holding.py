"""Connections whose reply comes later: `docker wait` and `docker run` wait here for a container's end.

The daemon that took the request may be killed or replaced meanwhile. Nothing is read from a held connection, and
nothing but the answer is written to it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Final

from gantry.ttrpc.errors import Code
from shim.errors import InvalidArgument, ShimError
from shim.loop import Loop

MOST_HELD: Final = 4096
CONDITIONS: Final = frozenset({"not-running", "next-exit", "removed"})
_Key = tuple[str, str]


class ResourceExhausted(ShimError):
    """Too many connections are kept."""

    code = Code.RESOURCE_EXHAUSTED


@dataclass(slots=True)
class Holding:
    """Waiting connections by namespace, id and condition."""

    loop: Loop
    waiting: dict[tuple[_Key, str], list[int]] = field(default_factory=dict)

    def count(self) -> int:
        """How many wait."""
        return sum(map(len, self.waiting.values()))

    def hold(self, key: _Key, condition: str, descriptor: int) -> None:
        """Keeps a connection, which is ours from then on; one whose client hangs up is let go.

        Raises InvalidArgument for an unknown condition and ResourceExhausted when too many are held.
        """
        if condition not in CONDITIONS:
            raise InvalidArgument(f"no such condition: {condition!r}")
        if self.count() >= MOST_HELD:
            raise ResourceExhausted(f"{MOST_HELD} connections are held already")
        place = (key, condition)
        self.waiting.setdefault(place, []).append(descriptor)
        self.loop.on_hangup(descriptor, lambda: self._hung_up(place, descriptor))

    def answer(self, key: _Key, conditions: list[str], data: bytes) -> None:
        """Writes `data` to who waits for one of the conditions, and closes those connections."""
        for condition in conditions:
            for descriptor in self.waiting.pop((key, condition), []):
                self._end(descriptor, data)

    def abandon(self) -> None:
        """In a forked child: closes its copies; the connections go on."""
        for descriptors in self.waiting.values():
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Lets go of every connection without an answer."""
        for descriptors in self.waiting.values():
            for descriptor in descriptors:
                self._end(descriptor, b"")
        self.waiting.clear()

    def _end(self, descriptor: int, data: bytes) -> None:
        self.loop.on_hangup(descriptor, None)
        with socket.socket(fileno=descriptor) as client:
            client.setblocking(False)
            try:
                # An answer is shorter than any socket's buffer, and nothing else was written to it.
                client.send(data, socket.MSG_NOSIGNAL)
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the client has gone

    def _hung_up(self, place: tuple[_Key, str], descriptor: int) -> None:
        waiting = self.waiting.get(place, [])
        if descriptor in waiting:
            waiting.remove(descriptor)
            os.close(descriptor)
        if not waiting:
            self.waiting.pop(place, None)
