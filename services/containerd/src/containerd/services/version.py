"""containerd.services.version.v1.Version"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd import version
from gantry.contracts.containerd.services.version.v1 import version_pb2 as messages
from gantry.contracts.containerd.services.version.v1 import version_pb2_grpc as service

__all__ = ["Version"]

_Context = grpc.aio.ServicerContext[Any, Any]


class Version(service.VersionServicer):
    """Says which containerd this is equal to, and that it is Gantry's."""

    async def Version(self, request: Empty, context: _Context) -> messages.VersionResponse:
        return messages.VersionResponse(version=version.VERSION, revision=version.REVISION)
