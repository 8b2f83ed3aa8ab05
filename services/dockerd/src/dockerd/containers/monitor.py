"""News from containerd: one thread that subscribes, and subscribes again when containerd was away.

containerd does not tell when it has accepted a subscription. So the monitor publishes a marker of its own; when it
comes back, no later event can be missed, and ``on_connected`` is called to compare what is with what was known.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf import any_pb2, empty_pb2

from dockerd import errors
from gantry.contracts.containerd.events import task_pb2
from gantry.contracts.containerd.services.events.v1 import events_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from dockerd.containerd_client import Client
    from gantry.contracts.containerd.types import event_pb2

__all__ = ["Monitor"]

_log = logging.getLogger(__name__)

_MARKER_TOPIC = "/gantry/subscribed"
_MARKER_INTERVAL = 0.2
_RETRY = 0.2

_KINDS: dict[str, type[Message]] = {
    "containerd.events.TaskExit": task_pb2.TaskExit,
    "containerd.events.TaskOOM": task_pb2.TaskOOM,
    "containerd.events.TaskPaused": task_pb2.TaskPaused,
    "containerd.events.TaskResumed": task_pb2.TaskResumed,
}


class Monitor:
    """Calls ``on_event`` for every task event, in order, in its own thread; ``on_connected`` after each connection."""

    def __init__(
        self, containerd: Client, on_event: Callable[[Message], None], on_connected: Callable[[], None]
    ) -> None:
        self._containerd = containerd
        self._on_event = on_event
        self._on_connected = on_connected
        self._closing = threading.Event()
        self._connected = threading.Event()
        self._stream: object | None = None
        self._thread = threading.Thread(target=self._run, name="containerd-events", daemon=True)

    def start(self, timeout: float) -> None:
        """Begin; returns when events arrive. Raises Unavailable after ``timeout`` seconds."""
        self._thread.start()
        if not self._connected.wait(timeout):
            raise errors.Unavailable(f"containerd at {self._containerd.address} sends no events")

    def close(self) -> None:
        """End the subscription."""
        self._closing.set()
        cancel = getattr(self._stream, "cancel", None)
        if cancel is not None:
            cancel()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow()
            except errors.EngineError as error:
                if not self._closing.is_set():
                    _log.warning("events of containerd: %s", error)
            self._closing.wait(_RETRY)

    def _follow(self) -> None:
        marker = secrets.token_hex(8)
        topic = f"{_MARKER_TOPIC}/{marker}"
        namespace = self._containerd.namespace
        request = events_pb2.SubscribeRequest(
            filters=[f"namespace=={namespace},topic~=|^/tasks/|", f'namespace=={namespace},topic=="{topic}"']
        )
        stream = self._containerd.events.Subscribe(request)
        self._stream = stream
        seen = threading.Event()
        threading.Thread(target=self._publish_marker, args=(topic, seen), name="containerd-marker", daemon=True).start()
        try:
            for envelope in stream:
                if envelope.topic == topic:
                    if not seen.is_set():
                        seen.set()
                        self._connected.set()
                        self._on_connected()
                    continue
                self._dispatch(envelope)
        finally:
            seen.set()

    def _publish_marker(self, topic: str, seen: threading.Event) -> None:
        event = any_pb2.Any(type_url="google.protobuf.Empty", value=empty_pb2.Empty().SerializeToString())
        while not seen.is_set():
            try:
                self._containerd.events.Publish(events_pb2.PublishRequest(topic=topic, event=event), timeout=5)
            except errors.EngineError as error:
                _log.info("cannot publish at containerd: %s", error)
            seen.wait(_MARKER_INTERVAL)

    def _dispatch(self, envelope: event_pb2.Envelope) -> None:
        kind = _KINDS.get(envelope.event.type_url.rpartition("/")[2])
        if kind is None:
            return
        message = kind()
        message.ParseFromString(envelope.event.value)
        try:
            self._on_event(message)
        except Exception:
            # One event that cannot be handled must not end the news of all others.
            _log.exception("event %s", envelope.topic)
