"""containerd.services.transfer.v1.Transfer"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, wait
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from containerd.anyvalue import AnyValue
from containerd.errors import Cancelled, InvalidArgument, Unimplemented
from containerd.observers import nobody
from containerd.scope import Scope
from containerd.services.mounts import descriptor_message
from containerd.streaming import Stream, Streams
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import (
    ExportStream,
    ImageReference,
    ImageStoreEndpoint,
    ImportStream,
    OCIRegistry,
    UnpackConfiguration,
)
from containerd.transfer.progress import Progress
from containerd.transfer.registry import Credentials
from containerd.transfer.service import Connections, TransferService
from containerd.transfer.streams import StreamReader, StreamWriter
from gantry.contracts.containerd.services.transfer.v1 import transfer_pb2 as messages
from gantry.contracts.containerd.services.transfer.v1 import transfer_pb2_grpc as service
from gantry.contracts.containerd.types import platform_pb2
from gantry.contracts.containerd.types.transfer import (
    imagestore_pb2,
    importexport_pb2,
    progress_pb2,
    registry_pb2,
)
from gantry.oci.platform import Platform

__all__ = ["Transfer"]

_Context = grpc.aio.ServicerContext[Any, Any]
_POLL = 0.5


class Transfer(service.TransferServicer):
    """Serves a :class:`TransferService`; what it needs of the client goes through :class:`Streams`.

    Transfers run in the threads of ``executor``: quick calls elsewhere do not wait behind them.
    """

    def __init__(self, transfers: TransferService, streams: Streams, executor: Executor) -> None:
        self._executor = executor
        self._transfers = transfers
        self._streams = streams

    async def Transfer(self, request: messages.TransferRequest, context: _Context) -> Empty:
        scope = Scope.current()
        cancellation = Cancellation()
        async with AsyncExitStack() as stack:
            # First of all: whatever is wrong with the rest, the client's progress stream comes to its end.
            progress = self._progress(stack, scope, request.options.progress_stream)
            source, destination = _endpoint(request.source), _endpoint(request.destination)
            connections = self._connect(stack, scope, source, destination, progress, cancellation)
            work = asyncio.get_running_loop().run_in_executor(
                self._executor, self._transfers.transfer, scope, source, destination, connections, cancellation
            )
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                cancellation.cancel()
                await asyncio.wait((work,))
                raise
        return Empty()

    def _progress(self, stack: AsyncExitStack, scope: Scope, name: str) -> Callable[[Progress], None]:
        if not name:
            return nobody
        reporter = _Reporter(self._streams.get(scope.namespace, name))
        stack.push_async_callback(reporter.close)
        return reporter.report

    def _connect(
        self,
        stack: AsyncExitStack,
        scope: Scope,
        source: Any,
        destination: Any,
        progress: Callable[[Progress], None],
        cancellation: Cancellation,
    ) -> Connections:
        options: dict[str, Any] = {"progress": progress}
        for endpoint in (source, destination):
            if isinstance(endpoint, OCIRegistry) and endpoint.auth_stream:
                stream = self._streams.get(scope.namespace, endpoint.auth_stream)
                options["credentials"] = _credentials(stream, cancellation)
                stack.callback(stream.close)
        if isinstance(source, ImportStream):
            reader = StreamReader(self._streams.get(scope.namespace, source.stream), cancellation)
            stack.callback(reader.close)
            options["received"] = reader
        if isinstance(destination, ExportStream):
            writer = StreamWriter(self._streams.get(scope.namespace, destination.stream), cancellation)
            stack.callback(writer.close)
            options["send"], options["flush"] = writer.write, writer.flush
        return Connections(**options)


class _Reporter:
    """Sends progress in order, from whatever thread; what the client does not read in time is not waited for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def report(self, progress: Progress) -> None:
        """Queue one report. For threads."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, progress)

    async def close(self) -> None:
        """Send what is queued and end the stream."""
        self._queue.put_nowait(None)
        await asyncio.wait((self._task,), timeout=10)
        self._task.cancel()
        self._stream.close()

    async def _run(self) -> None:
        while (progress := await self._queue.get()) is not None:
            try:
                await self._stream.send(_packed(_progress_message(progress)))
            except Cancelled:
                return  # the client no longer listens; the transfer goes on


def _progress_message(progress: Progress) -> progress_pb2.Progress:
    return progress_pb2.Progress(
        event=progress.event,
        name=progress.name,
        parents=progress.parents,
        progress=progress.progress,
        total=progress.total,
        desc=descriptor_message(progress.descriptor) if progress.descriptor else None,
    )


def _packed(message: Message) -> AnyValue:
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def _credentials(stream: Stream, cancellation: Cancellation) -> Callable[[str, str], Credentials | None]:
    lock = threading.Lock()  # one question at a time: answers carry no name
    loop = asyncio.get_running_loop()

    def ask(host: str, reference: str) -> Credentials | None:
        with lock:
            stream.send_blocking(_packed(registry_pb2.AuthRequest(host=host, reference=reference)))
            answering = asyncio.run_coroutine_threadsafe(stream.recv(), loop)
            while not wait((answering,), timeout=_POLL).done:
                if cancellation.cancelled:  # a client that is gone does not answer any more
                    answering.cancel()
                cancellation.check()
            value = answering.result()
        if value is None:
            return None
        answer = registry_pb2.AuthResponse.FromString(value.value)
        if answer.authType == registry_pb2.NONE:
            return None
        if answer.authType == registry_pb2.HEADER:
            return Credentials(header=answer.secret)
        if answer.authType == registry_pb2.REFRESH:
            return Credentials(secret=answer.secret) if answer.secret else None
        return Credentials(username=answer.username, secret=answer.secret)

    return ask


def _endpoint(value: any_pb2.Any) -> Any:
    name = value.type_url.rpartition("/")[2]
    try:
        match name:
            case "containerd.types.transfer.OCIRegistry":
                return _registry(registry_pb2.OCIRegistry.FromString(value.value))
            case "containerd.types.transfer.ImageStore":
                return _image_store(imagestore_pb2.ImageStore.FromString(value.value))
            case "containerd.types.transfer.ImageImportStream":
                imported = importexport_pb2.ImageImportStream.FromString(value.value)
                return ImportStream(imported.stream, imported.media_type, imported.force_compress)
            case "containerd.types.transfer.ImageExportStream":
                return _export(importexport_pb2.ImageExportStream.FromString(value.value))
    except DecodeError as error:
        raise InvalidArgument(f"{name}: {error}: invalid argument") from error
    raise Unimplemented(f"transfer endpoint {name or '(none)'} is not supported: not implemented")


def _registry(message: registry_pb2.OCIRegistry) -> OCIRegistry:
    resolver = message.resolver
    if resolver.http_debug != registry_pb2.DISABLED or resolver.logs_stream:
        raise Unimplemented("http_debug and logs_stream of a registry resolver are not supported: not implemented")
    return OCIRegistry(
        message.reference,
        resolver.auth_stream,
        dict(resolver.headers),
        resolver.host_dir,
        resolver.default_scheme,
    )


def _image_store(message: imagestore_pb2.ImageStore) -> ImageStoreEndpoint:
    return ImageStoreEndpoint(
        name=message.name,
        labels=dict(message.labels),
        platforms=tuple(_platform(item) for item in message.platforms),
        all_metadata=message.all_metadata,
        manifest_limit=message.manifest_limit,
        extra_references=tuple(
            ImageReference(item.name, item.is_prefix, item.allow_overwrite, item.add_digest, item.skip_named_digest)
            for item in message.extra_references
        ),
        unpacks=tuple(
            UnpackConfiguration(
                _platform(item.platform) if item.HasField("platform") and item.platform.os else None, item.snapshotter
            )
            for item in message.unpacks
        ),
    )


def _export(message: importexport_pb2.ImageExportStream) -> ExportStream:
    return ExportStream(
        stream=message.stream,
        media_type=message.media_type,
        platforms=tuple(_platform(item) for item in message.platforms),
        all_platforms=message.all_platforms,
        skip_compatibility_manifest=message.skip_compatibility_manifest,
        skip_non_distributable=message.skip_non_distributable,
    )


def _platform(message: platform_pb2.Platform) -> Platform:
    return Platform(
        message.os, message.architecture, message.variant, message.os_version, tuple(message.os_features)
    ).normalized()
