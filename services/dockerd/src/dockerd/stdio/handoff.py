"""Giving a client's connection away: to a container's shim, or to the template while there is no shim yet.

One SOCK_SEQPACKET connection a request, as ``gantry.stdio.v1`` and ``gantry.shim.template.v1`` describe. When a call
returns, the receiver has the connection and the caller closes its copy, without shutdown(2): that would end it for
both.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Protocol, TypeVar

from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.linux.unix import connect_path, receive_packet, send_packet

__all__ = [
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "HandoffRefused",
    "HandoffUnavailable",
    "answer",
    "attach",
    "detach",
    "hold",
    "park",
    "unpark",
]

# google.rpc.Code
NOT_FOUND = 5
ALREADY_EXISTS = 6
FAILED_PRECONDITION = 9

TIMEOUT = 10.0
"""Seconds for one request: the receiver only takes a descriptor in."""

PACKET = 256 << 10


class HandoffUnavailable(Exception):
    """Nobody listens there, or nobody answers: the connection is still the caller's."""


class HandoffRefused(Exception):
    """The receiver answered no; ``code`` is a google.rpc.Code. The connection is still the caller's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Reply(Protocol):
    @property
    def code(self) -> int: ...
    @property
    def message(self) -> str: ...


Reply = TypeVar("Reply", stdio_pb2.Reply, template_pb2.Reply)


def attach(path: str, session: stdio_pb2.Session, client: int) -> None:
    """Give the connection ``client`` to the shim that listens at ``path``.

    Raises :class:`HandoffUnavailable` or :class:`HandoffRefused`.
    """
    request = stdio_pb2.Request(attach=stdio_pb2.Attach(session=session))
    _ask(path, request.SerializeToString(), stdio_pb2.Reply(), [client])


def detach(path: str, session_id: str) -> None:
    """End a session as its detach keys would. Raises like :func:`attach`."""
    request = stdio_pb2.Request(detach=stdio_pb2.Detach(session_id=session_id))
    _ask(path, request.SerializeToString(), stdio_pb2.Reply())


def park(path: str, namespace: str, container_id: str, session: stdio_pb2.Session, client: int) -> None:
    """Leave the connection ``client`` with the template, for a container that has no shim yet.

    Raises like :func:`attach`.
    """
    action = template_pb2.Park(namespace=namespace, id=container_id, session=session)
    _ask(path, template_pb2.Request(park=action).SerializeToString(), template_pb2.Reply(), [client])


def unpark(path: str, namespace: str, container_id: str) -> None:
    """Have the template close what was parked for a container. Raises like :func:`attach`."""
    action = template_pb2.Unpark(namespace=namespace, id=container_id)
    _ask(path, template_pb2.Request(unpark=action).SerializeToString(), template_pb2.Reply())


def hold(path: str, namespace: str, container_id: str, condition: str, client: int) -> None:
    """Leave a connection with the template whose reply is due when the container meets ``condition``.

    Raises like :func:`attach`.
    """
    action = template_pb2.Hold(namespace=namespace, id=container_id, condition=condition)
    _ask(path, template_pb2.Request(hold=action).SerializeToString(), template_pb2.Reply(), [client])


def answer(path: str, namespace: str, container_id: str, conditions: Iterable[str], data: bytes) -> None:
    """Have the template send ``data`` to the connections that it holds for these conditions, and close them.

    Raises like :func:`attach`.
    """
    action = template_pb2.Answer(namespace=namespace, id=container_id, conditions=conditions, data=data)
    _ask(path, template_pb2.Request(answer=action).SerializeToString(), template_pb2.Reply())


def _ask(path: str, request: bytes, reply: Reply, descriptors: list[int] | None = None) -> Reply:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connect_path(connection, path)
            send_packet(connection, request, descriptors or [])
            data, strangers = receive_packet(connection, PACKET)
        except OSError as error:
            raise HandoffUnavailable(f"{path}: {error.strerror or error}") from error
    for descriptor in strangers:
        os.close(descriptor)
    if not data:
        raise HandoffUnavailable(f"{path}: the connection was closed without an answer")
    reply.ParseFromString(data)
    if reply.code != 0:
        raise HandoffRefused(reply.code, reply.message)
    return reply
