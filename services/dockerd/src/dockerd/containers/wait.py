"""Waiting for containers: the conditions of ``POST /containers/{id}/wait``, without a thread for each who waits."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dockerd import errors

__all__ = ["Condition", "Outcome", "Waiters"]


class Condition(enum.StrEnum):
    """What is waited for."""

    NOT_RUNNING = "not-running"
    NEXT_EXIT = "next-exit"
    REMOVED = "removed"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition of this name, ``not-running`` for an empty one. Raises InvalidParameter."""
        try:
            return cls(text or cls.NOT_RUNNING)
        except ValueError:
            raise errors.InvalidParameter(f'invalid condition: "{text}"') from None


@dataclass(frozen=True)
class Outcome:
    """How it ended. ``error`` is empty, or why the engine could not bring about the end (a failed removal)."""

    exit_code: int
    error: str = ""


Callback = Callable[[Outcome], None]


class Waiters:
    """Who waits for one container. Callbacks run in the thread that brings the news, and must be quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[Condition, list[Callback]] = {condition: [] for condition in Condition}

    def add(self, condition: Condition, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` once when the condition comes true; returns how to stop waiting."""
        with self._lock:
            self._callbacks[condition].append(callback)

        def forget() -> None:
            with self._lock:
                if callback in self._callbacks[condition]:
                    self._callbacks[condition].remove(callback)

        return forget

    def exited(self, outcome: Outcome) -> None:
        """The container's process has ended."""
        self._tell((Condition.NOT_RUNNING, Condition.NEXT_EXIT), outcome)

    def removed(self, outcome: Outcome) -> None:
        """The container is gone: nothing else can come."""
        self._tell(tuple(Condition), outcome)

    def removal_failed(self, outcome: Outcome) -> None:
        """The container stays, although it was to go."""
        self._tell((Condition.REMOVED,), outcome)

    def _tell(self, conditions: tuple[Condition, ...], outcome: Outcome) -> None:
        with self._lock:
            callbacks = [callback for condition in conditions for callback in self._callbacks[condition]]
            for condition in conditions:
                self._callbacks[condition].clear()
        for callback in callbacks:
            callback(outcome)
