"""ttrpc on the wire, without a socket: frames, and the two messages that unary calls are made of.

A frame is ten bytes (big-endian: u32 length of what follows, u32 stream id, u8 type, u8 flags) and a payload of at most
4 MiB. A client numbers its calls 1, 3, 5...; the answer carries the number of its call, in any order.

The messages (ttrpc's request.proto) are encoded by hand. They have seven fields between them, and so no process
needs generated code of ttrpc's own.

    Request:  1 service, 2 method, 3 payload, 4 timeout_nano (int64), 5 metadata (repeated: 1 key, 2 value)
    Response: 1 status (google.rpc.Status: 1 code, 2 message, 3 details), 2 payload
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from gantry.ttrpc.errors import Code, TTRPCError, code_of

HEADER: Final = struct.Struct(">IIBB")
MAX_PAYLOAD: Final = 4 << 20

Metadata = tuple[tuple[str, str], ...]


class ProtocolError(Exception):
    """The peer sent something that is not ttrpc; the connection is of no more use."""


class Type(enum.IntEnum):
    """Type of a frame."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Frame(NamedTuple):
    """One frame as it was received."""

    stream_id: int
    type: int
    flags: int
    payload: bytes
    # Length that the header announced, where it is above the cap: the payload was skipped and is empty.
    oversized: int = 0


def encode_frame(stream_id: int, type_: Type, payload: bytes, flags: int = 0) -> bytes:
    """A frame as bytes. RESOURCE_EXHAUSTED when the payload is above the cap."""
    if len(payload) > MAX_PAYLOAD:
        raise TTRPCError(
            Code.RESOURCE_EXHAUSTED, f"message length {len(payload)} exceed maximum message size of {MAX_PAYLOAD}"
        )
    return HEADER.pack(len(payload), stream_id, type_, flags) + payload


class FrameDecoder:
    """Cuts a byte stream into frames. What is above the cap is skipped without being kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Takes in what was read and returns the frames that are complete now."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        position = 0
        available = len(buffer)
        while available - position >= HEADER.size:
            length, stream_id, type_, flags = HEADER.unpack_from(buffer, position)
            start = position + HEADER.size
            if length > MAX_PAYLOAD:
                frames.append(Frame(stream_id, type_, flags, b"", length))
                position = min(available, start + length)
                self._skip = start + length - position
                continue
            if available - start < length:
                break
            position = start + length
            frames.append(Frame(stream_id, type_, flags, bytes(buffer[start:position])))
        if position:
            del buffer[:position]
        return frames

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two frames."""
        return not self._buffer and not self._skip


@dataclass(frozen=True, slots=True)
class Request:
    """A call. `timeout_nano` is what the caller is ready to wait, 0 for ever."""

    service: str
    method: str
    payload: bytes
    timeout_nano: int = 0
    metadata: Metadata = ()

    def encode(self) -> bytes:
        """As a protobuf message."""
        parts = [
            _bytes_field(0x0A, self.service.encode()),
            _bytes_field(0x12, self.method.encode()),
        ]
        if self.payload:
            parts.append(_bytes_field(0x1A, self.payload))
        if self.timeout_nano:
            parts.append(b"\x20" + _varint(self.timeout_nano))
        for key, value in self.metadata:
            parts.append(_bytes_field(0x2A, _bytes_field(0x0A, key.encode()) + _bytes_field(0x12, value.encode())))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """From a protobuf message. ProtocolError when it is not one."""
        service = method = ""
        payload = b""
        timeout = 0
        metadata: list[tuple[str, str]] = []
        for number, value in _fields(data):
            if number == 1:
                service = _text(value)
            elif number == 2:
                method = _text(value)
            elif number == 3:
                payload = _octets(value)
            elif number == 4:
                timeout = _signed(value)
            elif number == 5:
                pair = dict(_fields(_octets(value)))
                metadata.append((_text(pair.get(1, b"")), _text(pair.get(2, b""))))
        return cls(service, method, payload, timeout, tuple(metadata))


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: a payload, or an error when `code` is not OK."""

    payload: bytes = b""
    code: Code = Code.OK
    message: str = ""

    def encode(self) -> bytes:
        """As a protobuf message."""
        parts = []
        if self.code is not Code.OK:
            status = b"\x08" + _varint(self.code)
            if self.message:
                status += _bytes_field(0x12, self.message.encode("utf-8", "replace"))
            parts.append(_bytes_field(0x0A, status))
        if self.payload:
            parts.append(_bytes_field(0x12, self.payload))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Response:
        """From a protobuf message. ProtocolError when it is not one."""
        payload = b""
        code = Code.OK
        message = ""
        for number, value in _fields(data):
            if number == 1:
                for inner, content in _fields(_octets(value)):
                    if inner == 1:
                        code = code_of(_signed(content))
                    elif inner == 2:
                        message = _text(content)
            elif number == 2:
                payload = _octets(value)
        return cls(payload, code, message)

    def result(self) -> bytes:
        """The payload; raises the TTRPCError that the answer stands for."""
        if self.code is not Code.OK:
            raise TTRPCError(self.code, self.message)
        return self.payload


def request_frame(
    stream_id: int, service: str, method: str, payload: bytes, timeout: float | None, metadata: Metadata
) -> bytes:
    """A call as a frame; `timeout` in seconds."""
    nanoseconds = 0 if timeout is None else max(1, int(timeout * 1e9))
    return encode_frame(stream_id, Type.REQUEST, Request(service, method, payload, nanoseconds, metadata).encode())


def response_frame(stream_id: int, response: Response) -> bytes:
    """An answer as a frame; one that is too long becomes RESOURCE_EXHAUSTED, as in the Go implementation."""
    try:
        return encode_frame(stream_id, Type.RESPONSE, response.encode())
    except TTRPCError as error:
        return encode_frame(stream_id, Type.RESPONSE, Response(code=error.code, message=error.message).encode())


def metadata_of(values: Iterable[tuple[str, str]] | None) -> Metadata:
    """Metadata in the form that frames take."""
    return tuple(values) if values else ()


def _varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    return bytes((tag,)) + _varint(length) + content


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ProtocolError("malformed varint in a ttrpc message")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0
    size = len(data)
    while position < size:
        tag, position = _read_varint(data, position)
        wire = tag & 7
        value: bytes | int
        if wire == 2:
            length, position = _read_varint(data, position)
            if size - position < length:
                raise ProtocolError("truncated field in a ttrpc message")
            value = data[position : position + length]
            position += length
        elif wire == 0:
            value, position = _read_varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            if size - position < length:
                raise ProtocolError("truncated field in a ttrpc message")
            value = int.from_bytes(data[position : position + length], "little")
            position += length
        else:
            raise ProtocolError(f"wire type {wire} in a ttrpc message")
        yield tag >> 3, value


def _octets(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ProtocolError("number where a ttrpc message has bytes")
    return value


def _text(value: bytes | int) -> str:
    return _octets(value).decode("utf-8", "replace")


def _signed(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise ProtocolError("bytes where a ttrpc message has a number")
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value
