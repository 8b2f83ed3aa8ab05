"""The events service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

import grpc
from contract.suites.peer import Peer, fails
from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from gantry.contracts.containerd.events.task_pb2 import TaskExit, TaskOOM
from gantry.contracts.containerd.services.events.v1 import events_pb2 as messages
from gantry.contracts.containerd.services.events.v1.events_pb2_grpc import EventsStub
from gantry.contracts.containerd.types.event_pb2 import Envelope

READY = "/suite/ready"


class EventsSuite:
    """What every event service does."""

    def test_what_is_published_is_heard(self, peer: Peer) -> None:
        """With topic, namespace, time and content."""
        with self._subscribed(peer) as heard:
            self._publish(peer, "/suite/one", TaskOOM(container_id="c"))
            envelope = next(heard)
        assert (envelope.topic, envelope.namespace) == ("/suite/one", peer.namespace)
        assert abs(envelope.timestamp.seconds - time.time()) < 60
        assert envelope.event.type_url == "containerd.events.TaskOOM"
        assert TaskOOM.FromString(envelope.event.value).container_id == "c"

    def test_what_is_forwarded_keeps_its_time_and_namespace(self, peer: Peer) -> None:
        """It happened elsewhere and earlier."""
        with self._subscribed(peer) as heard:
            envelope = Envelope(
                timestamp=Timestamp(seconds=5), namespace=peer.namespace, topic="/suite/two", event=self._any(TaskOOM())
            )
            self._forward(peer, envelope)
            found = next(heard)
        assert (found.timestamp.seconds, found.topic) == (5, "/suite/two")

    def test_filters_choose(self, peer: Peer) -> None:
        """By topic, by namespace, and by the event's own fields."""
        chosen = f'namespace=={peer.namespace},topic~="/exit$",event.container_id==b'
        with self._subscribed(peer, chosen) as heard:
            self._publish(peer, "/suite/exit", TaskExit(container_id="a"))
            self._publish(peer, "/suite/oom", TaskExit(container_id="b"))
            self._publish(peer, "/suite/exit", TaskExit(container_id="b", exit_status=3))
            assert TaskExit.FromString(next(heard).event.value).exit_status == 3

    def test_bad_events_and_filters_are_refused(self, peer: Peer) -> None:
        """Topics begin with a slash and have parts; a forwarded event has a time."""
        for topic in ("", "/", "suite/one", "/suite/$"):
            with fails("INVALID_ARGUMENT"):
                self._publish(peer, topic, TaskOOM())
        with fails("INVALID_ARGUMENT"):
            self._forward(peer, Envelope(namespace=peer.namespace, topic="/suite/x", event=self._any(TaskOOM())))
        with fails("UNKNOWN" if peer.real else "INVALID_ARGUMENT"):  # 1.6 says so in the text alone
            next(EventsStub(peer.channel).Subscribe(messages.SubscribeRequest(filters=['topic=="']), timeout=20))
        with fails("FAILED_PRECONDITION"):
            request = messages.PublishRequest(topic="/suite/x", event=self._any(TaskOOM()))
            EventsStub(peer.channel).Publish(request, timeout=20)

    def _publish(self, peer: Peer, topic: str, event: TaskOOM | TaskExit) -> None:
        request = messages.PublishRequest(topic=topic, event=self._any(event))
        peer.call(EventsStub(peer.channel).Publish, request)

    def _forward(self, peer: Peer, envelope: Envelope) -> None:
        peer.call(EventsStub(peer.channel).Forward, messages.ForwardRequest(envelope=envelope))

    @staticmethod
    def _any(event: TaskOOM | TaskExit) -> Any:
        return Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())

    @contextmanager
    def _subscribed(self, peer: Peer, *filters: str) -> Iterator[Iterator[Envelope]]:
        """Subscribe, and wait until the subscription stands: the call itself does not say."""
        ready = f'topic=="{READY}",namespace=={peer.namespace}'
        chosen = [*(filters or [f"namespace=={peer.namespace}"]), ready]
        call = EventsStub(peer.channel).Subscribe(messages.SubscribeRequest(filters=chosen), timeout=60)
        heard: SimpleQueue[Envelope] = SimpleQueue()
        reader = threading.Thread(target=self._read, args=(call, heard))
        reader.start()
        try:
            deadline = time.monotonic() + 10
            while heard.empty():
                assert time.monotonic() < deadline, "nothing is heard"
                self._publish(peer, READY, TaskOOM())
                time.sleep(0.05)
            yield self._others(heard)
        finally:
            call.cancel()
            reader.join()

    @staticmethod
    def _read(call: Iterator[Envelope], heard: SimpleQueue[Envelope]) -> None:
        with suppress(grpc.RpcError):  # it ends by being cancelled
            for envelope in call:
                heard.put(envelope)

    @staticmethod
    def _others(heard: SimpleQueue[Envelope]) -> Iterator[Envelope]:
        while True:
            envelope = heard.get(timeout=20)
            if envelope.topic != READY:
                yield envelope
