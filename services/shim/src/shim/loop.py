"""The shim's one thread: a selector, timers, and coroutines that wait for futures.

Much less than asyncio, on purpose: asyncio's modules would cost every shim more memory than all else together.
Idle means blocked in epoll_wait(2) without a timeout.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
_log = logging.getLogger(__name__)
_PENDING = object()
_EVENTS = (selectors.EVENT_READ, selectors.EVENT_WRITE)
_Pair = list["Callable[[], None] | None"]


class Future(Generic[T]):
    """A result that is still to come. Callbacks run from the loop, never from inside set_result."""

    __slots__ = ("_callbacks", "_error", "_loop", "_result")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._result: object = _PENDING
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], None]] = []

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._result is not _PENDING or self._error is not None

    def result(self) -> T:
        """The result; raises the error instead if there is one."""
        if self._error is not None:
            raise self._error
        assert self._result is not _PENDING, "not done yet"
        return cast("T", self._result)

    def set_result(self, value: T) -> None:
        """Settles the future. A second time is ignored: timers and events may race for it."""
        if not self.done:
            self._result = value
            self._notify()

    def set_error(self, error: BaseException) -> None:
        """Settles the future with an error."""
        if not self.done:
            self._error = error
            self._notify()

    def add_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Calls `callback(future)` from the loop once settled."""
        if self.done:
            self._loop.call_soon(lambda: callback(self))
        else:
            self._callbacks.append(callback)

    def _notify(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._loop.call_soon(lambda callback=callback: callback(self))  # type: ignore[misc]

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine under way; awaiting it gives what it returns."""

    __slots__ = ("_coroutine",)

    def __init__(self, loop: Loop, coroutine: Coroutine[Future[Any], None, T]) -> None:
        super().__init__(loop)
        self._coroutine = coroutine
        self._step(None)

    def _step(self, _settled: Future[Any] | None) -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self.set_result(cast("T", stop.value))
        except Exception as error:
            self.set_error(error)
        else:
            awaited.add_callback(self._step)


class Timer:
    """A call that is due at a moment; can be cancelled until then."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Drops the call."""
        self.callback = None


class Lock:
    """Lets one coroutine at a time through, in the order of arrival."""

    __slots__ = ("_held", "_loop", "_waiting")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._waiting: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            turn: Future[None] = Future(self._loop)
            self._waiting.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *_exception: object) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._held = False


class Loop:
    """Runs until stopped. What is registered with `selector` has a callable that takes the events as its data."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False
        self._watches: dict[int, _Pair] = {}
        self._hangups: select.epoll | None = None
        self._hangup_callbacks: dict[int, Callable[[], None]] = {}

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's next round."""
        self._ready.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls after some time."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def future(self) -> Future[Any]:
        """A future of this loop."""
        return Future(self)

    def spawn(self, coroutine: Coroutine[Future[Any], None, T]) -> Task[T]:
        """Runs a coroutine up to its first wait now, and the rest as what it waits for comes."""
        return Task(self, coroutine)

    def background(self, coroutine: Coroutine[Future[Any], None, object], what: str) -> None:
        """Runs a coroutine that nobody waits for; an error goes to the log with `what`."""
        self.spawn(coroutine).add_callback(lambda done: _report(done, what))

    async def within(self, future: Future[T], seconds: float) -> bool:
        """Waits for a future, but not longer than `seconds`; tells whether it was settled."""
        if not future.done:
            either = self.future()
            future.add_callback(lambda _: either.set_result(None))
            timer = self.call_later(seconds, lambda: either.set_result(None))
            await either
            timer.cancel()
        return future.done

    def on_readable(self, descriptor: int, callback: Callable[[], None] | None) -> None:
        """Calls back while the descriptor can be read (or has an error); None ends it."""
        self._watch(descriptor, 0, callback)

    def on_writable(self, descriptor: int, callback: Callable[[], None] | None) -> None:
        """Calls back while the descriptor can be written (or has an error); None ends it."""
        self._watch(descriptor, 1, callback)

    def _watch(self, descriptor: int, which: int, callback: Callable[[], None] | None) -> None:
        pair = self._watches.get(descriptor)
        if pair is None:
            if callback is None:
                return
            pair = self._watches[descriptor] = [None, None]
            pair[which] = callback
            self.selector.register(descriptor, _EVENTS[which], lambda events: _dispatch(pair, events))
            return
        before = _mask(pair)
        pair[which] = callback
        after = _mask(pair)
        if not after:
            del self._watches[descriptor]
            self.selector.unregister(descriptor)
        elif after != before:
            self.selector.modify(descriptor, after, lambda events: _dispatch(pair, events))

    def on_hangup(self, descriptor: int, callback: Callable[[], None] | None) -> None:
        """Calls back, once, when the peer of a socket is gone; None ends it.

        epoll reports a hang-up even where no event was asked for: the descriptor need not be read to learn of it.
        """
        if self._hangups is None:
            self._hangups = select.epoll()
            self.on_readable(self._hangups.fileno(), self._hung_up)
        if callback is None:
            if self._hangup_callbacks.pop(descriptor, None) is not None:
                self._hangups.unregister(descriptor)
        else:
            if descriptor not in self._hangup_callbacks:
                self._hangups.register(descriptor, 0)
            self._hangup_callbacks[descriptor] = callback

    def _hung_up(self) -> None:
        assert self._hangups is not None
        for descriptor, _ in self._hangups.poll(0):
            callback = self._hangup_callbacks.get(descriptor)
            self.on_hangup(descriptor, None)
            if callback is not None:
                _guarded(callback)

    def forget(self, descriptor: int) -> None:
        """Ends all that watches a descriptor. Must come before it is closed."""
        if descriptor in self._watches:
            del self._watches[descriptor]
            self.selector.unregister(descriptor)
        if descriptor in self._hangup_callbacks:
            self.on_hangup(descriptor, None)

    async def readable(self, descriptor: int, seconds: float) -> bool:
        """Waits until the descriptor can be read, but not longer than `seconds`; tells whether it can."""
        ready = self.future()
        self.on_readable(descriptor, lambda: ready.set_result(None))
        try:
            return await self.within(ready, seconds)
        finally:
            self.on_readable(descriptor, None)

    def stop(self) -> None:
        """Ends `run` after the current round."""
        self._running = False

    def run(self) -> None:
        """Serves events until `stop`. An error in one callback is logged and ends nothing else."""
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self) -> None:
        """One round: due calls, then what the selector reports."""
        for _ in range(len(self._ready)):
            _guarded(self._ready.popleft())
        for key, events in self.selector.select(self._timeout()):
            callback = key.data
            # An earlier callback of this round may have closed the descriptor.
            if self.selector.get_map().get(key.fd) is not None:
                _guarded(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]
        now = time.monotonic()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].callback is None):
            _, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                _guarded(timer.callback)

    def _timeout(self) -> float | None:
        if self._ready or not self._running:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def close(self) -> None:
        """Closes the selector."""
        if self._hangups is not None:
            self._hangups.close()
        self.selector.close()


def _mask(pair: _Pair) -> int:
    return sum(event for event, callback in zip(_EVENTS, pair, strict=True) if callback is not None)


def _dispatch(pair: _Pair, events: int) -> None:
    # The first call may end the second one's watch.
    for which in (0, 1):
        callback = pair[which]
        if callback is not None and events & _EVENTS[which]:
            callback()


def _guarded(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        _log.exception("a callback failed")


def _report(done: Future[Any], what: str) -> None:
    try:
        done.result()
    except Exception as error:
        _log.error("%s: %s", what, error, exc_info=not isinstance(error, OSError))
