"""The connection to containerd: one channel, every service's stub, deadlines, and errors in the engine's words.

Every call carries the namespace and a deadline; a failed one raises an error of :mod:`dockerd.errors`, so that no
gRPC type is known beyond this module. While containerd restarts, calls wait for it as long as their deadline allows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

import grpc
from google.protobuf import empty_pb2

from dockerd import errors
from gantry.contracts.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub
from gantry.contracts.containerd.services.content.v1.content_pb2_grpc import ContentStub
from gantry.contracts.containerd.services.diff.v1.diff_pb2_grpc import DiffStub
from gantry.contracts.containerd.services.events.v1.events_pb2_grpc import EventsStub
from gantry.contracts.containerd.services.images.v1.images_pb2_grpc import ImagesStub
from gantry.contracts.containerd.services.introspection.v1.introspection_pb2_grpc import IntrospectionStub
from gantry.contracts.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
from gantry.contracts.containerd.services.namespaces.v1.namespace_pb2_grpc import NamespacesStub
from gantry.contracts.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub
from gantry.contracts.containerd.services.streaming.v1.streaming_pb2_grpc import StreamingStub
from gantry.contracts.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub
from gantry.contracts.containerd.services.transfer.v1.transfer_pb2_grpc import TransferStub
from gantry.contracts.containerd.services.version.v1.version_pb2_grpc import VersionStub

__all__ = ["DEFAULT_NAMESPACE", "Client", "translate"]

DEFAULT_NAMESPACE = "moby"

# containerd's own limit for one message.
_MESSAGE_BYTES = 16 << 20

_DEFAULT_DEADLINE = 30.0

# Seconds. Calls that wait for a runtime, for a disk or for a client have more; those that only look something up
# less, so that an engine whose containerd hangs says so soon.
_DEADLINES = {
    "/containerd.services.tasks.v1.Tasks/Create": 120.0,
    "/containerd.services.tasks.v1.Tasks/Start": 60.0,
    "/containerd.services.tasks.v1.Tasks/Delete": 60.0,
    "/containerd.services.tasks.v1.Tasks/Exec": 60.0,
    "/containerd.services.tasks.v1.Tasks/Checkpoint": 600.0,
    "/containerd.services.tasks.v1.Tasks/Get": 10.0,
    "/containerd.services.tasks.v1.Tasks/List": 10.0,
    "/containerd.services.tasks.v1.Tasks/Metrics": 10.0,
    "/containerd.services.tasks.v1.Tasks/ListPids": 10.0,
    "/containerd.services.containers.v1.Containers/Get": 10.0,
    "/containerd.services.images.v1.Images/Delete": 120.0,
    "/containerd.services.introspection.v1.Introspection/Plugins": 10.0,
    "/containerd.services.version.v1.Version/Version": 5.0,
    "/containerd.services.snapshots.v1.Snapshots/Remove": 120.0,
    "/containerd.services.snapshots.v1.Snapshots/Usage": 120.0,
    "/containerd.services.diff.v1.Diff/Apply": 3600.0,
    "/containerd.services.diff.v1.Diff/Diff": 3600.0,
    "/containerd.services.leases.v1.Leases/Delete": 120.0,
}

# As long as the transfer or the process lasts; the caller ends them by cancelling or with a timeout of its own.
_UNBOUNDED = frozenset(
    {
        "/containerd.services.tasks.v1.Tasks/Wait",
        "/containerd.services.transfer.v1.Transfer/Transfer",
    }
)

_ERRORS: dict[grpc.StatusCode, type[errors.EngineError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidParameter,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidParameter,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupported,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthorized,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
}

Request = TypeVar("Request")
Response = TypeVar("Response")


def translate(error: grpc.RpcError, method: str, address: str) -> errors.EngineError:
    """The engine's error for a failed call. The text is containerd's own, except where the call got no answer."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    name = method.rsplit(".", 1)[-1].replace("/", ".")
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"cannot connect to containerd at {address} for {name}: {details}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"containerd at {address} did not answer {name} in time"
    # Go's containerd ends the text of an error that has no class with the class's name.
    return _ERRORS.get(code, errors.SystemFailure)(details.removesuffix(": unknown"))


class _Call(Generic[Response]):
    """A streaming reply whose iteration raises the engine's errors."""

    def __init__(self, inner: Any, fail: Callable[[grpc.RpcError], NoReturn]) -> None:
        self._inner = inner
        self._fail = fail

    def __iter__(self) -> Iterator[Response]:
        return self

    def __next__(self) -> Response:
        try:
            response: Response = next(self._inner)
        except grpc.RpcError as error:
            self._fail(error)
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Future:
    """A call under way; its result raises the engine's errors."""

    def __init__(self, inner: Any, fail: Callable[[grpc.RpcError], NoReturn]) -> None:
        self._inner = inner
        self._fail = fail

    def result(self) -> Any:
        """Wait for the reply."""
        try:
            return self._inner.result()
        except grpc.RpcError as error:
            self._fail(error)

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self._inner.cancel()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back, from a thread of grpc's, when the call has ended."""
        self._inner.add_done_callback(lambda _: callback())


class _Method:
    """One method of one service: fills in metadata and deadline, and translates what fails."""

    def __init__(self, inner: Any, method: str, channel: _Channel, streams: bool) -> None:
        self._inner = inner
        self._method = method
        self._channel = channel
        self._streams = streams
        unbounded = streams or method in _UNBOUNDED
        self._deadline = None if unbounded else _DEADLINES.get(method, _DEFAULT_DEADLINE)

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: tuple[tuple[str, str], ...] | None = None,
        wait_for_ready: bool = True,
    ) -> Any:
        try:
            reply = self._inner(
                request,
                timeout=self._deadline if timeout is None else timeout,
                metadata=self._channel.metadata + (metadata or ()),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as error:
            self._fail(error)
        return _Call(reply, self._fail) if self._streams else reply

    def future(self, request: Any, metadata: tuple[tuple[str, str], ...] | None = None) -> _Future:
        """Begin a call, and return how to wait for it or end it."""
        inner = self._inner.future(
            request,
            timeout=self._deadline,
            metadata=self._channel.metadata + (metadata or ()),
            wait_for_ready=True,
        )
        return _Future(inner, self._fail)

    def _fail(self, error: grpc.RpcError) -> NoReturn:
        raise translate(error, self._method, self._channel.address) from error


class _Channel:
    """What the generated stubs need of a channel (:class:`grpc.Channel`)."""

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self.metadata = (("containerd-namespace", namespace),)
        self.inner = grpc.insecure_channel(
            f"unix:{address}",
            options=[
                # Go peers refuse the escaped socket path that grpc would send as :authority.
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
                # A restart of containerd takes a second: the default back-off of up to two minutes outlives it.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self.inner.unary_unary(method, *args, **kwargs), method, self, streams=False)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self.inner.unary_stream(method, *args, **kwargs), method, self, streams=True)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self.inner.stream_unary(method, *args, **kwargs), method, self, streams=False)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self.inner.stream_stream(method, *args, **kwargs), method, self, streams=True)


class Client:
    """Stubs of containerd's services over one connection, in one namespace.

    Stub methods take the request and optionally ``timeout`` in seconds, and raise :class:`dockerd.errors.EngineError`.
    Replies that stream are iterators with ``cancel()``. Safe to use from any thread; made after the last fork.
    """

    def __init__(self, address: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        self.address = address
        self.namespace = namespace
        self._channel = _Channel(address, namespace)
        channel: Any = self._channel
        self.containers = ContainersStub(channel)
        self.content = ContentStub(channel)
        self.diff = DiffStub(channel)
        self.events = EventsStub(channel)
        self.images = ImagesStub(channel)
        self.introspection = IntrospectionStub(channel)
        self.leases = LeasesStub(channel)
        self.namespaces = NamespacesStub(channel)
        self.snapshots = SnapshotsStub(channel)
        self.streaming = StreamingStub(channel)
        self.tasks = TasksStub(channel)
        self.transfer = TransferStub(channel)
        self.version = VersionStub(channel)

    def wait_ready(self, timeout: float) -> None:
        """Return when containerd answers. Raises Unavailable after ``timeout`` seconds."""
        self.version.Version(empty_pb2.Empty(), timeout=timeout)

    def watch(self, on_ready: Callable[[bool], None]) -> Callable[[], None]:
        """Report to ``on_ready`` each time the connection comes (True) or goes (False); returns how to stop that.

        The reports come from a thread of grpc's, one at a time: do not block it.
        """
        last: list[bool | None] = [None]
        lock = threading.Lock()

        def report(connectivity: grpc.ChannelConnectivity) -> None:
            ready = connectivity is grpc.ChannelConnectivity.READY
            with lock:
                changed = last[0] is not ready
                last[0] = ready
            if changed:
                on_ready(ready)

        self._channel.inner.subscribe(report, try_to_connect=True)
        return lambda: self._channel.inner.unsubscribe(report)

    def close(self) -> None:
        """End the connection; calls under way fail."""
        self._channel.inner.close()
