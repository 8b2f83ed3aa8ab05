"""The other side of a suite: a containerd at the end of a channel, and a namespace in it that nobody else uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import grpc
import pytest

from gantry.contracts.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from gantry.contracts.containerd.services.images.v1.images_pb2_grpc import ImagesStub
from gantry.contracts.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
from gantry.contracts.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub

Metadata = list[tuple[str, str]]


ROOT = {"containerd.io/gc.root": "now"}
"""Without it a collection in the middle of a test would be right to take what nobody refers to."""


class Peer:
    """What a suite needs; whoever runs the suite hands it in as the fixture ``peer``, fresh for each test.

    ``real`` tells the real containerd apart, for the few differences that a test has to explain.
    """

    def __init__(self, channel: grpc.Channel, namespace: str, *, real: bool) -> None:
        self.channel = channel
        self.namespace = namespace
        self.real = real
        # Content is shared by namespaces: that of one test must not be there already for another.
        self.data = (namespace.encode() + b"0123456789" * 1000)[:10_000]
        self.digest = f"sha256:{sha256(self.data).hexdigest()}"
        self.content = content_pb2_grpc.ContentStub(channel)
        self.images = ImagesStub(channel)
        self.leases = LeasesStub(channel)
        self.snapshots = SnapshotsStub(channel)

    def metadata(self, lease: str = "") -> Metadata:
        """The headers of a request."""
        return [("containerd-namespace", self.namespace), *([("containerd-lease", lease)] if lease else [])]

    def call(self, method: Callable[..., Any], request: object, lease: str = "") -> Any:
        """Make a unary call in the namespace."""
        return method(request, metadata=self.metadata(lease), timeout=20)

    def listed(self, method: Callable[..., Any], request: object) -> list[Any]:
        """Make a call that streams replies, and return them."""
        return list(method(request, metadata=self.metadata(), timeout=20))

    def write(self, data: bytes, *, lease: str = "", labels: dict[str, str] | None = None) -> str:
        """Store content, with :data:`ROOT` unless a lease keeps it; returns its digest."""
        labels = dict(labels or {}) if lease else {**ROOT, **(labels or {})}
        digest = f"sha256:{sha256(data).hexdigest()}"
        request = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref=digest, total=len(data), expected=digest, data=data, labels=labels
        )
        for _ in self.content.Write(iter([request]), metadata=self.metadata(lease), timeout=20):
            pass
        return digest


@contextmanager
def fails(code: str) -> Iterator[None]:
    """Assert that a call ends with a gRPC status, by its name."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = caught.value
    assert error.code() is grpc.StatusCode[code], f"{error.code().name} instead of {code}: {error.details()}"
