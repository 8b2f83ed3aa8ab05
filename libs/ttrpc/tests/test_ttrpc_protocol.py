"""Frames and messages without a socket."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2

from gantry.ttrpc import Code, TTRPCError
from gantry.ttrpc.protocol import (
    HEADER,
    MAX_PAYLOAD,
    FrameDecoder,
    ProtocolError,
    Request,
    Response,
    Type,
    encode_frame,
    response_frame,
)


def _reference_messages():
    """ttrpc's two messages as protobuf itself builds them."""
    file = descriptor_pb2.FileDescriptorProto(name="ttrpc_reference.proto", package="ref", syntax="proto3")
    file.dependency.append("google/rpc/status.proto")
    field = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="Request")
    for number, (name, kind) in enumerate(
        [("service", field.TYPE_STRING), ("method", field.TYPE_STRING), ("payload", field.TYPE_BYTES),
         ("timeout_nano", field.TYPE_INT64)], 1
    ):  # fmt: skip
        request.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    request.field.add(
        name="metadata", number=5, type=field.TYPE_MESSAGE, type_name=".ref.KeyValue", label=field.LABEL_REPEATED
    )
    pair = file.message_type.add(name="KeyValue")
    pair.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    pair.field.add(name="value", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="Response")
    response.field.add(
        name="status", number=1, type=field.TYPE_MESSAGE, type_name=".google.rpc.Status", label=field.LABEL_OPTIONAL
    )
    response.field.add(name="payload", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    for source in ("google/protobuf/any.proto", "google/rpc/status.proto"):
        pool.AddSerializedFile(status_pb2.DESCRIPTOR.pool.FindFileByName(source).serialized_pb)
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return (
        message_factory.GetMessageClass(find("ref.Request")),
        message_factory.GetMessageClass(find("ref.Response")),
    )


@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 127, b"z" * 128, b"w" * 70_000])
@pytest.mark.parametrize("timeout", [0, 1, 2_000_000_000, -5])
def test_request_is_the_protobuf_message(payload, timeout):
    """The hand-written codec and protobuf agree in both directions."""
    reference_type, _ = _reference_messages()
    request = Request("containerd.task.v3.Task", "Create", payload, timeout, (("a", "b"), ("key", "ü" * 200)))
    reference = reference_type()
    reference.ParseFromString(request.encode())
    assert (reference.service, reference.method, reference.payload) == (request.service, request.method, payload)
    assert reference.timeout_nano == timeout
    assert [(pair.key, pair.value) for pair in reference.metadata] == list(request.metadata)
    assert Request.decode(reference.SerializeToString()) == request


@pytest.mark.parametrize("response", [Response(), Response(b"abc"), Response(code=Code.NOT_FOUND, message="no such")])
def test_response_is_the_protobuf_message(response):
    """Answers and errors are what protobuf makes of them."""
    _, reference_type = _reference_messages()
    reference = reference_type()
    reference.ParseFromString(response.encode())
    assert (reference.status.code, reference.status.message) == (response.code, response.message)
    assert Response.decode(reference.SerializeToString()) == response


def test_unknown_fields_are_skipped():
    """A newer peer may send fields that we do not know."""
    extra = b"\x78\x05" + b"\x7a\x02hi" + b"\x7d\x00\x00\x00\x00" + b"\x79" + bytes(8)
    assert Response.decode(extra + Response(b"abc").encode()) == Response(b"abc")


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\xff" * 11, b"\x0b", b"\x08\x01"])
def test_malformed_requests_are_refused(data):
    """Bytes that are not the message raise ProtocolError, nothing else."""
    with pytest.raises(ProtocolError):
        Request.decode(data)


def test_frames_survive_any_cut():
    """However the stream is cut, the same frames come out."""
    stream = b"".join(encode_frame(2 * n + 1, Type.REQUEST, b"p" * (n * 7), n) for n in range(20))
    for size in (1, 2, 9, 10, 11, 64, len(stream)):
        decoder = FrameDecoder()
        frames = [f for at in range(0, len(stream), size) for f in decoder.feed(stream[at : at + size])]
        assert [(f.stream_id, f.flags, len(f.payload)) for f in frames] == [(2 * n + 1, n, 7 * n) for n in range(20)]
        assert decoder.idle


def test_an_oversized_frame_is_skipped_and_reported():
    """The frame after one above 4 MiB is read as if nothing had happened."""
    big = MAX_PAYLOAD + 5
    stream = HEADER.pack(big, 1, Type.REQUEST, 0) + bytes(big) + encode_frame(3, Type.REQUEST, b"next")
    decoder = FrameDecoder()
    frames = [f for at in range(0, len(stream), 65536) for f in decoder.feed(stream[at : at + 65536])]
    assert [(f.stream_id, f.oversized, f.payload) for f in frames] == [(1, big, b""), (3, 0, b"next")]


def test_a_message_above_the_cap_is_not_sent():
    """The sender refuses it; an answer becomes RESOURCE_EXHAUSTED."""
    with pytest.raises(TTRPCError) as caught:
        encode_frame(1, Type.REQUEST, bytes(MAX_PAYLOAD + 1))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    (frame,) = FrameDecoder().feed(response_frame(1, Response(bytes(MAX_PAYLOAD))))
    assert Response.decode(frame.payload).code is Code.RESOURCE_EXHAUSTED
