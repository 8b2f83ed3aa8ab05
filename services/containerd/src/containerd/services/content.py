"""containerd.services.content.v1.Content"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.content import ContentStore, Info, IngestStatus, Writer
from containerd.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange
from containerd.scope import Scope
from containerd.services.wire import timestamp
from gantry.contracts.containerd.services.content.v1 import content_pb2 as messages
from gantry.contracts.containerd.services.content.v1 import content_pb2_grpc as service
from gantry.oci.digest import Digest, InvalidDigest

__all__ = ["Content"]

_Context = grpc.aio.ServicerContext[Any, Any]
_PAGE = 100
_READ_SIZE = 1 << 20


def _message(info: Info) -> messages.Info:
    return messages.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status(status: IngestStatus) -> messages.Status:
    return messages.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


def _digest(text: str) -> str:
    try:
        return Digest(text)
    except InvalidDigest as error:
        raise InvalidArgument(f'"{text[:200]}" failed validation: {error}: invalid argument') from error


class Content(service.ContentServicer):
    """Serves a :class:`ContentStore`."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    async def Info(self, request: messages.InfoRequest, context: _Context) -> messages.InfoResponse:
        info = await asyncio.to_thread(self._store.info, Scope.current(), _digest(request.digest))
        return messages.InfoResponse(info=_message(info))

    async def Update(self, request: messages.UpdateRequest, context: _Context) -> messages.UpdateResponse:
        digest = _digest(request.info.digest)
        labels, paths = dict(request.info.labels), list(request.update_mask.paths)
        info = await asyncio.to_thread(self._store.update, Scope.current(), digest, labels, paths)
        return messages.UpdateResponse(info=_message(info))

    async def List(
        self, request: messages.ListContentRequest, context: _Context
    ) -> AsyncIterator[messages.ListContentResponse]:
        found = await asyncio.to_thread(self._store.list, Scope.current(), list(request.filters))
        for start in range(0, len(found), _PAGE):
            yield messages.ListContentResponse(info=[_message(info) for info in found[start : start + _PAGE]])

    async def Delete(self, request: messages.DeleteContentRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._store.delete, Scope.current(), _digest(request.digest))
        return Empty()

    async def Read(
        self, request: messages.ReadContentRequest, context: _Context
    ) -> AsyncIterator[messages.ReadContentResponse]:
        scope, digest = Scope.current(), _digest(request.digest)
        info = await asyncio.to_thread(self._store.info, scope, digest)
        start = max(request.offset, 0)
        if start > info.size:
            raise OutOfRange(f"read past object length {info.size} bytes")
        end = min(start + request.size, info.size) if request.size > 0 else info.size
        descriptor = await asyncio.to_thread(self._store.open, scope, digest)
        try:
            position = start
            while position < end:
                data = await asyncio.to_thread(os.pread, descriptor, min(_READ_SIZE, end - position), position)
                if not data:
                    return
                yield messages.ReadContentResponse(offset=position - start, data=data)
                position += len(data)
        finally:
            os.close(descriptor)

    async def Status(self, request: messages.StatusRequest, context: _Context) -> messages.StatusResponse:
        try:
            status = await asyncio.to_thread(self._store.status, Scope.current(), request.ref)
        except NotFound as error:
            raise NotFound(f'could not get status for ref "{request.ref}": {error}') from error
        return messages.StatusResponse(status=_status(status))

    async def ListStatuses(
        self, request: messages.ListStatusesRequest, context: _Context
    ) -> messages.ListStatusesResponse:
        found = await asyncio.to_thread(self._store.statuses, Scope.current(), list(request.filters))
        return messages.ListStatusesResponse(statuses=[_status(status) for status in found])

    async def Abort(self, request: messages.AbortRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._store.abort, Scope.current(), request.ref)
        return Empty()

    async def Write(
        self, request_iterator: AsyncIterator[messages.WriteContentRequest], context: _Context
    ) -> AsyncIterator[messages.WriteContentResponse]:
        scope = Scope.current()
        requests = aiter(request_iterator)
        request = await anext(requests, None)
        if request is None:
            return
        if not request.ref:
            raise InvalidArgument("first message must have a reference: invalid argument")
        session = _Session(self._store, scope, request)
        try:
            await asyncio.to_thread(session.open)
            while request is not None:
                yield await asyncio.to_thread(session.answer, request)
                if request.action == messages.COMMIT:
                    return
                request = await anext(requests, None)
        finally:
            # Also when the call is cancelled: until it is closed nobody else may write to the reference.
            await asyncio.shield(asyncio.to_thread(session.close))


class _Session:
    """One call of Write: requests for one writer, each with its answer."""

    def __init__(self, store: ContentStore, scope: Scope, first: messages.WriteContentRequest) -> None:
        self._store = store
        self._scope = scope
        self._ref = first.ref
        self._total = first.total
        self._expected = first.expected
        self._writer: Writer | None = None

    def open(self) -> None:
        """Open the ingest. Raises as :meth:`ContentStore.writer`."""
        self._writer = self._store.writer(self._scope, self._ref, total=self._total, expected=self._expected)

    def close(self) -> None:
        """Let go of the ingest."""
        if self._writer is not None:
            self._writer.close()

    def answer(self, request: messages.WriteContentRequest) -> messages.WriteContentResponse:
        """Do what one request asks for."""
        writer = self._writer
        assert writer is not None
        if request.expected:
            self._expected = request.expected
            self._refuse_existing(writer, request.expected)
        if request.total > 0:
            self._total = request.total
        if request.action == messages.STAT:
            return messages.WriteContentResponse(
                action=request.action,
                started_at=timestamp(writer.started_at),
                updated_at=timestamp(writer.updated_at),
                offset=writer.offset,
                total=self._total,
                digest=writer.digest,
            )
        if request.offset > 0 and request.offset != writer.offset:
            raise OutOfRange(f"write @{request.offset} must occur at current offset {writer.offset}")
        if request.offset == 0 and writer.offset > 0 and (request.data or request.action == messages.WRITE):
            writer.truncate()
        if request.data:
            writer.write(request.data)
        offset, digest = writer.offset, ""
        if request.action == messages.COMMIT:
            digest = writer.commit(size=self._total, expected=self._expected, labels=dict(request.labels))
        # The digest so far would cost a copy of the hash for every message; clients look at it after the commit.
        return messages.WriteContentResponse(action=request.action, offset=offset, total=self._total, digest=digest)

    def _refuse_existing(self, writer: Writer, expected: str) -> None:
        try:
            self._store.info(self._scope, _digest(expected))
        except NotFound:
            return
        writer.close()
        with suppress(NotFound):
            self._store.abort(self._scope, self._ref)
        raise AlreadyExists(f"blob with expected digest {expected} exists: already exists")
