"""Work of one transfer in the threads that all transfers share, only so much of it at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any

__all__ = ["WorkGroup"]


class WorkGroup:
    """Runs up to ``limit`` pieces of work at once on ``executor``, in the order that they were submitted.

    The threads are shared and stay, because each has its own connection to the database.
    Use it in a ``with`` statement: at its end nothing of the group runs any more.
    """

    def __init__(self, executor: Executor, limit: int) -> None:
        self._executor = executor
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[None], Callable[..., None], tuple[Any, ...]]] = deque()
        self._running: set[Future[None]] = set()

    def __enter__(self) -> WorkGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            waiting, running = list(self._waiting), set(self._running)
            self._waiting.clear()
        for future, _, _ in waiting:
            future.cancel()
        wait(running)

    def submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Run ``work(*arguments)`` when it is its turn; the future ends with it."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((future, work, arguments))
        self._next()
        return future

    def _next(self) -> None:
        with self._lock:
            if not self._waiting or len(self._running) >= self._limit:
                return
            future, work, arguments = self._waiting.popleft()
            self._running.add(future)
        self._executor.submit(self._run, future, work, arguments)

    def _run(self, future: Future[None], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                work(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
        with self._lock:
            self._running.discard(future)
        self._next()
