"""What happens to containers, told to containerd: each event is kept until containerd has acknowledged it, in order.

`containerd.services.events.ttrpc.v1.Events/Forward` at TTRPC_ADDRESS. While containerd is away the shim tries again
with growing pauses, and only as long as something waits; an idle shim has no timer.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import Message

from gantry.contracts.containerd.services.events.ttrpc.v1 import events_pb2
from gantry.contracts.containerd.types import event_pb2
from gantry.ttrpc import address as addresses
from gantry.ttrpc.errors import Code
from gantry.ttrpc.protocol import FrameDecoder, ProtocolError, Response, request_frame
from shim.loop import Future, Loop, Timer

_log = logging.getLogger(__name__)

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
ANSWER_WITHIN: Final = 5.0
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
MOST_REFUSALS: Final = 5
_TOPICS: Final = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
    "TaskOOM": "/tasks/oom",
}


class Publisher:
    """The queue to one containerd. Without an address events go nowhere."""

    def __init__(self, loop: Loop, namespace: str, address: str) -> None:
        self._loop = loop
        self._namespace = namespace
        self._address = address
        self._queue: deque[bytes] = deque()
        self._socket: socket.socket | None = None
        self._decoder = FrameDecoder()
        self._stream_id = -1
        self._in_flight = False
        self._timer: Timer | None = None
        self._pause = FIRST_PAUSE
        self._refusals = 0
        self._empty: list[Future[None]] = []

    def publish(self, event: Message) -> None:
        """Queues an event of containerd.events."""
        if not self._address:
            return
        envelope = event_pb2.Envelope(
            namespace=self._namespace,
            topic=_TOPICS[event.DESCRIPTOR.name],
            # The type URL is the bare name, as containerd's typeurl registers it.
            event=any_pb2.Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString()),
        )
        seconds, envelope.timestamp.nanos = divmod(time.time_ns(), 1_000_000_000)
        envelope.timestamp.seconds = seconds
        self._queue.append(events_pb2.ForwardRequest(envelope=envelope).SerializeToString())
        if self._timer is None and not self._in_flight:
            self._send()

    @property
    def pending(self) -> int:
        """Events that containerd has not acknowledged."""
        return len(self._queue)

    def drained(self) -> Future[None]:
        """Settled when nothing waits any more."""
        future: Future[None] = self._loop.future()
        if self._queue:
            self._empty.append(future)
        else:
            future.set_result(None)
        return future

    def _send(self) -> None:
        self._cancel_timer()
        try:
            sock = self._connected()
            self._stream_id += 2
            frame = request_frame(self._stream_id, SERVICE, "Forward", self._queue[0], ANSWER_WITHIN, ())
            # Never blocking: containers' streams do not wait for a daemon that hangs.
            if sock.send(frame) != len(frame):
                raise BlockingIOError("the socket is full")
        except OSError as error:
            self._again(f"cannot reach containerd: {error}")
            return
        self._in_flight = True
        self._timer = self._loop.call_later(ANSWER_WITHIN, lambda: self._again("containerd does not answer"))

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = addresses.connect(self._address, 0)
            self._decoder = FrameDecoder()
            self._stream_id = -1
            self._loop.on_readable(self._socket.fileno(), self._receive)
        return self._socket

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            if self._in_flight:
                self._again("containerd closed the connection")
            return
        try:
            for frame in self._decoder.feed(data):
                if frame.stream_id == self._stream_id and self._in_flight:
                    self._answered(Response.decode(frame.payload))
        except ProtocolError as error:
            self._again(f"containerd answered nonsense: {error}")

    def _answered(self, response: Response) -> None:
        self._in_flight = False
        self._cancel_timer()
        if response.code is not Code.OK:
            self._refusals += 1
            if self._refusals < MOST_REFUSALS:
                self._again(f"containerd refused an event: {response.message}")
                return
            _log.error("an event was dropped, refused %d times: %s", self._refusals, response.message)
        self._refusals = 0
        self._pause = FIRST_PAUSE
        self._queue.popleft()
        if self._queue:
            self._send()
            return
        waiting, self._empty = self._empty, []
        for future in waiting:
            future.set_result(None)

    def _again(self, reason: str) -> None:
        _log.debug("%s; %d events wait", reason, len(self._queue))
        self._disconnect()
        self._in_flight = False
        self._cancel_timer()
        self._timer = self._loop.call_later(self._pause, self._send)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Gives up what is queued."""
        self._disconnect()
        self._cancel_timer()
        self._queue.clear()
