"""One live shim: a ttrpc connection, and who waits for its processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from containerd import errors
from containerd.errors import ContainerdError, DeadlineExceeded, NotFound, Unavailable
from containerd.runtime.bootstrap import Bootstrap, Exit, ShimBinary
from containerd.runtime.bundle import Bundle
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.ttrpc import ConnectionLost, TTRPCError
from gantry.ttrpc import DeadlineExceeded as CallTimedOut
from gantry.ttrpc.aio import Client

__all__ = ["Shim", "ShimGone"]

M = TypeVar("M", bound=Message)

NAMESPACE_METADATA = "containerd-namespace-ttrpc"
_BY_CODE: dict[str, type[ContainerdError]] = {
    kind.code: kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), ContainerdError)
}


class ShimGone(NotFound):
    """The connection ended: there is no task any more, whatever the call was about."""


class Shim:
    """A shim that serves one container. Used in the event loop.

    ``lost`` is called once when the connection ends without :meth:`close` having been called.
    """

    def __init__(self, bundle: Bundle, binary: ShimBinary, bootstrap: Bootstrap, lost: Callable[[Shim], None]) -> None:
        self.bundle = bundle
        self.binary = binary
        self.version = bootstrap.version
        self.address = bootstrap.address
        self.deleted = False
        """Set when the task has been deleted: the end of the shim is then no news."""
        self._lost = lost
        self._client: Client | None = None
        self._closing = False
        self._waits: dict[str, asyncio.Future[Exit]] = {}
        self._wait_calls: set[asyncio.Task[None]] = set()

    @property
    def namespace(self) -> str:
        """The namespace of the container."""
        return self.bundle.namespace

    @property
    def id(self) -> str:
        """The container's id."""
        return self.bundle.id

    async def connect(self, timeout: float) -> None:
        """Connect, or connect again. Raises OSError."""
        self._client = await Client.connect(self.address, timeout=timeout, on_close=self._disconnected)
        for process in list(self._waits):
            self._call_wait(process)

    async def call(self, method: str, request: Message, response_type: type[M], timeout: float | None) -> M:
        """Call a method of the task API; ``timeout`` in seconds.

        Raises the error that the shim answered with, :class:`ShimGone`, :class:`DeadlineExceeded`.
        """
        if self._client is None:
            raise ShimGone(f"shim of task {self.id} is not connected: not found")
        try:
            return await self._client.call(
                f"containerd.task.v{self.version}.Task",
                method,
                request,
                response_type,
                timeout=timeout,
                metadata=((NAMESPACE_METADATA, self.namespace),),
            )
        except ConnectionLost as error:
            raise ShimGone(f"{error.message}: task {self.id} not found") from error
        except CallTimedOut as error:
            raise DeadlineExceeded(
                f"shim of task {self.id} did not answer {method} within {timeout:g} s: context deadline exceeded"
            ) from error
        except TTRPCError as error:
            raise _BY_CODE.get(error.code.name, errors.Unknown)(error.message) from error

    async def wait(self, process: str) -> Exit:
        """Wait for the end of a process: an exec's id, or empty for the container's init.

        All who wait for one process share one call. Raises what the shim answers, :class:`NotFound` for one.
        """
        future = self._waits.get(process)
        if future is None:
            future = self._waits[process] = asyncio.get_running_loop().create_future()
            # Nobody may be left to hear of an error; that is no reason for asyncio to complain.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._call_wait(process)
        return await asyncio.shield(future)

    def exited(self, process: str, exit_: Exit) -> None:
        """Tell those who wait for ``process`` how it ended."""
        future = self._waits.pop(process, None)
        if future is not None and not future.done():
            future.set_result(exit_)

    def ended(self, exit_: Exit) -> None:
        """Tell everybody who waits for any process: the shim and all its processes are gone."""
        for process in list(self._waits):
            self.exited(process, exit_)

    def release(self) -> None:
        """Tell everybody who waits that this daemon does not hear of it any more: the next one will know."""
        for process in list(self._waits):
            future = self._waits.pop(process)
            if not future.done():
                future.set_exception(Unavailable("containerd is stopping: unavailable"))

    async def disconnected(self, timeout: float) -> bool:
        """Wait until the shim ends the connection; tell whether it did so in time."""
        if self._client is None:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._client.closed.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the connection; the shim itself goes on."""
        self._closing = True
        for call in self._wait_calls:
            call.cancel()
        if self._client is not None:
            await self._client.close()

    def _call_wait(self, process: str) -> None:
        task = asyncio.get_running_loop().create_task(self._wait(process))
        self._wait_calls.add(task)
        task.add_done_callback(self._wait_calls.discard)

    async def _wait(self, process: str) -> None:
        request = shim_pb2.WaitRequest(id=self.id, exec_id=process)
        try:
            response = await self.call("Wait", request, shim_pb2.WaitResponse, None)
        except ShimGone:
            return  # whoever looks after the lost shim connects again, or says how it all ended
        except ContainerdError as error:
            future = self._waits.pop(process, None)
            if future is not None and not future.done():
                future.set_exception(error)
            return
        exited_at = response.exited_at.seconds * 1_000_000_000 + response.exited_at.nanos
        self.exited(process, Exit(response.exit_status, max(exited_at, 0)))

    def _disconnected(self) -> None:
        if not self._closing:
            self._lost(self)
