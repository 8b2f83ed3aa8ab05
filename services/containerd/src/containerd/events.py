"""The event exchange: what happens is published once and reaches every subscriber whose filters match.

Nothing is stored. There is one exception: right after the daemon's start, exits are kept for those who subscribe
within the first seconds. Shims report what happened while no daemon ran as soon as one is there, and clients take a
moment longer to come back; without this, they would never hear of it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from google.protobuf import symbol_database
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from containerd import filters as filter_language
from containerd import namespaces
from containerd.anyvalue import AnyValue
from containerd.errors import InvalidArgument, ResourceExhausted
from containerd.identifiers import validate_identifier

__all__ = ["Envelope", "Exchange", "Subscription", "pack"]

EXIT_TOPIC = "/tasks/exit"
QUEUE_LENGTH = 16384
CATCH_UP_SECONDS = 30.0
CATCH_UP_LENGTH = 4096

# Filters decode an event to look into it: only the types of the contracts have fields to look at.
_SYMBOLS = symbol_database.Default()
_EVENT_TYPES = re.compile(r"^containerd\.")


@dataclass(frozen=True)
class Envelope:
    """One event. ``timestamp`` is in nanoseconds since 1970, set where the event happened."""

    timestamp: int
    namespace: str
    topic: str
    event: AnyValue

    def field(self, path: Sequence[str]) -> str | None:
        """Return what a filter names: ``namespace``, ``topic``, ``event.FIELD...``."""
        match path[0]:
            case "namespace":
                return self.namespace or None
            case "topic":
                return self.topic or None
            case "event":
                message = _unpack(self.event)
                return None if message is None else _message_field(message, path[1:])
            case _:
                return None


def pack(message: Message) -> AnyValue:
    """Wrap a message as containerd does: the type's full name alone, without a host in front."""
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


class Subscription:
    """A subscriber's queue. Iterate over it; it ends with :class:`ResourceExhausted` when it was not read in time."""

    def __init__(self, exchange: Exchange, matcher: filter_language.Filter) -> None:
        self._exchange = exchange
        self._matcher = matcher
        self._queue: deque[Envelope] = deque()
        self._arrived = asyncio.Event()
        self._overrun = False
        self._closed = False

    def offer(self, envelope: Envelope) -> None:
        """Queue the event if it matches. Only the exchange calls this, in its loop."""
        if self._overrun or not self._matcher.match(envelope.field):
            return
        if len(self._queue) >= QUEUE_LENGTH:
            self._overrun = True
        else:
            self._queue.append(envelope)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Envelope]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._overrun:
                raise ResourceExhausted(
                    f"subscription error: more than {QUEUE_LENGTH} events are waiting to be read: subscribe again"
                )
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Take the subscription off the exchange; whoever iterates comes to the end of what is queued."""
        self._closed = True
        self._exchange.remove(self)
        self._arrived.set()


class Exchange:
    """Joins publishers and subscribers. Made in the event loop; :meth:`publish` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Envelope], None]] = []
        self._catch_up: deque[Envelope] = deque(maxlen=CATCH_UP_LENGTH)
        self._catch_up_ends = self._loop.time() + CATCH_UP_SECONDS

    def listen(self, listener: Callable[[Envelope], None]) -> None:
        """Call ``listener`` with every event, in the loop, before the subscribers get it. It must not raise or wait."""
        self._listeners.append(listener)

    def publish(self, topic: str, event: Message | AnyValue, namespace: str | None = None) -> None:
        """Send an event that happens now, in the request's namespace unless another is given.

        Raises :class:`InvalidArgument` for a bad topic, :class:`FailedPrecondition` without a namespace.
        """
        if namespace is None:
            namespace = namespaces.namespace_required()
        _validate_topic(topic)
        value = event if isinstance(event, AnyValue) else pack(event)
        self._send(Envelope(time.time_ns(), namespace, topic, value))

    def forward(self, envelope: Envelope) -> None:
        """Send an event on behalf of whoever saw it happen. Raises :class:`InvalidArgument`."""
        validate_identifier(envelope.namespace, "event envelope has invalid namespace")
        _validate_topic(envelope.topic)
        if envelope.timestamp == 0:
            raise InvalidArgument("timestamp must be set on forwarded event: invalid argument")
        self._send(envelope)

    def subscribe(self, filters: Sequence[str] = ()) -> Subscription:
        """Begin to receive the events that match any of ``filters``. Raises :class:`InvalidArgument`.

        The caller has to close the subscription.
        """
        subscription = Subscription(self, filter_language.parse(filters))
        if self._loop.time() < self._catch_up_ends:
            for envelope in self._catch_up:
                subscription.offer(envelope)
        else:
            self._catch_up.clear()
        self._subscriptions.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription; see :meth:`Subscription.close`."""
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription: the daemon stops."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def _send(self, envelope: Envelope) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._dispatch(envelope)
        else:
            self._loop.call_soon_threadsafe(self._dispatch, envelope)

    def _dispatch(self, envelope: Envelope) -> None:
        for listener in self._listeners:
            listener(envelope)
        for subscription in self._subscriptions:
            subscription.offer(envelope)
        if envelope.topic == EXIT_TOPIC and self._loop.time() < self._catch_up_ends:
            self._catch_up.append(envelope)


def _validate_topic(topic: str) -> None:
    what = f'envelope topic "{topic}"'
    if not topic:
        raise InvalidArgument(f"{what}: must not be empty: invalid argument")
    if not topic.startswith("/"):
        raise InvalidArgument(f"{what}: must start with '/': invalid argument")
    if topic == "/":
        raise InvalidArgument(f"{what}: must have at least one component: invalid argument")
    for component in topic[1:].split("/"):
        validate_identifier(component, f'{what}: failed validation on component "{component}"')


def _unpack(value: AnyValue) -> Message | None:
    name = value.type_url.rpartition("/")[2]
    if not _EVENT_TYPES.match(name):
        return None
    try:
        message: Message = _SYMBOLS.GetSymbol(name)()
        message.ParseFromString(value.value)
    except (KeyError, DecodeError):
        return None
    return message


def _message_field(message: Message, path: Sequence[str]) -> str | None:
    if not path:
        return None
    descriptor = message.DESCRIPTOR.fields_by_name.get(path[0])
    if descriptor is None:
        return None
    value = getattr(message, path[0])
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return filter_language.label_field(value, path[1:])
    if descriptor.is_repeated:
        return None
    if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        return _message_field(value, path[1:])
    if descriptor.type == FieldDescriptor.TYPE_STRING:
        return value or None
    if descriptor.type == FieldDescriptor.TYPE_BOOL:
        return "true" if value else "false"
    return None
