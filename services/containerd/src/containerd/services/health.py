"""grpc.health.v1.Health: serving from the moment the socket answers until the daemon stops."""

from __future__ import annotations

from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import aio  # type: ignore[import-untyped]

__all__ = ["Health", "register"]

register = health_pb2_grpc.add_HealthServicer_to_server


class Health(aio.HealthServicer):  # type: ignore[misc]
    """The stock health service with the two answers that the daemon gives."""

    async def serving(self) -> None:
        """Answer SERVING, also for the name that load balancers of containerd ask for."""
        for name in ("", "containerd"):
            await self.set(name, health_pb2.HealthCheckResponse.SERVING)
