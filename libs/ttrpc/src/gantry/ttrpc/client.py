"""A blocking ttrpc client: one call at a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import Message

from gantry.ttrpc import address as addresses
from gantry.ttrpc.errors import ConnectionLost, DeadlineExceeded
from gantry.ttrpc.protocol import Frame, FrameDecoder, ProtocolError, Response, Type, metadata_of, request_frame

M = TypeVar("M", bound=Message)


class Client:
    """One connection. Not to be shared between threads.

    After a DeadlineExceeded the connection goes on: the late answer is dropped when it comes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        self._next_id = 1

    @classmethod
    def connect(cls, address: str, timeout: float | None = None) -> Client:
        """Connects to `unix:///path`. OSError when nobody listens there."""
        return cls(addresses.connect(address, timeout))

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] | None = None,
    ) -> M:
        """Calls a method and waits for its answer.

        `service` is the full name (`containerd.task.v2.Task`), `timeout` in seconds. Raises the TTRPCError that the
        peer answered, DeadlineExceeded, or ConnectionLost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        stream_id = self._next_id
        self._next_id += 2
        frame = request_frame(stream_id, service, method, request.SerializeToString(), timeout, metadata_of(metadata))
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(frame)
            payload = self._receive(stream_id, deadline).result()
        except TimeoutError:
            raise DeadlineExceeded() from None
        except OSError as error:
            raise ConnectionLost(f"ttrpc: closed: {error.strerror}") from error
        response = response_type()
        response.ParseFromString(payload)
        return response

    def _receive(self, stream_id: int, deadline: float | None) -> Response:
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.stream_id != stream_id or frame.type != Type.RESPONSE:
                    continue
                if frame.oversized:
                    raise ProtocolError(f"answer of {frame.oversized} bytes")
                return Response.decode(frame.payload)
            if deadline is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                self._socket.settimeout(remaining)
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionLost()
            self._frames = self._decoder.feed(data)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
