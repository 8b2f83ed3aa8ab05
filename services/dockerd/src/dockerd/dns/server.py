"""The companion's loop: containers' questions, and what the engine says over the control socket.

The engine's messages are JSON objects behind their length (4 bytes, big-endian), each answered by one:

- ``{"op": "watch"}``: the connection stays; as long as one does there is an engine. Answered with the version.
- ``{"op": "network", "id", "name", "names": {NAME: [ADDRESS]}, "addresses": {ADDRESS: NAME}}``: the whole table of a
  network; without names it is forgotten.
- ``{"op": "container", "id", "networks": [ID], "servers": [ADDRESS], "links": {ALIAS: NAME}, "forward": BOOL}``:
  with two descriptors a new container's sockets (datagram, stream), without them a change. ``servers`` empty: those of
  the host.
- ``{"op": "forget", "id"}``, ``{"op": "list"}``, ``{"op": "stop"}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from dockerd.dns import forward, message, zone
from dockerd.version import VERSION

__all__ = ["Server"]

_LONGEST_CONTROL = 64 << 20
_CLIENTS_OF_ONE = 30
_IDLE = 10.0
_GRACE = 10.0  # for the engine that started this process to say so
_OUTPUT_LIMIT = 1 << 18
_BATCH = 32

Send = Callable[[bytes], None]


class _Container:
    """Who asks: its sockets, the networks that it is on, and where its other questions go."""

    def __init__(self, container_id: str, datagrams: socket.socket, streams: socket.socket) -> None:
        self.id = container_id
        self.datagrams = datagrams
        self.streams = streams
        self.networks: list[str] = []
        self.servers: list[str] = []
        self.links: dict[str, str] = {}
        self.forward = True
        self.clients: set[_Client] = set()


class _Client:
    """One connection of a container's."""

    def __init__(self, container: _Container, connection: socket.socket) -> None:
        self.container = container
        self.connection = connection
        self.input = bytearray()
        self.output = bytearray()
        self.deadline = time.monotonic() + _IDLE


class _Control:
    """One connection of an engine's."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.input = bytearray()
        self.descriptors: list[int] = []
        self.watching = False


class Server:
    """Answers until the engine says that it is enough, or is gone and no container is left."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._forwarder = forward.Forwarder(self._selector)
        self._host = forward.HostServers()
        self._containers: dict[str, _Container] = {}
        self._tables: dict[str, zone.Table] = {}
        self._clients: dict[_Client, None] = {}
        self._watchers: set[_Control] = set()
        self._ends = False
        self._grace: float | None = time.monotonic() + _GRACE
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, (self._accept_control, None))

    def run(self) -> None:
        """Serve."""
        while not self._over():
            for key, events in self._selector.select(self._timeout()):
                act, subject = key.data
                # An earlier event of this round may have closed it.
                if self._selector.get_map().get(key.fd) is key:
                    act(subject, events)

    def _over(self) -> bool:
        if self._ends:
            return True
        if self._containers or self._watchers:
            self._grace = None
            return False
        return self._grace is None or time.monotonic() >= self._grace

    def _timeout(self) -> float | None:
        now = time.monotonic()
        for client in list(self._clients):
            if client.deadline > now:
                break
            self._close_client(client)
        waits = [self._forwarder.expire()]
        waits += [client.deadline - now for client in list(self._clients)[:1]]
        waits += [self._grace - now] if self._grace is not None else []
        return min((max(wait, 0.0) for wait in waits if wait is not None), default=None)

    # Containers' questions

    def _datagrams(self, container: _Container, _events: int) -> None:
        for _ in range(_BATCH):
            try:
                data, asker = container.datagrams.recvfrom(message.MAX_UDP)
            except (BlockingIOError, OSError):
                return

            def send(reply: bytes, asker: Any = asker) -> None:
                with contextlib.suppress(OSError):  # it does not wait for it any more
                    container.datagrams.sendto(reply, asker)

            self._answer(container, data, send, stream=False)

    def _accept_client(self, container: _Container, _events: int) -> None:
        try:
            connection, _ = container.streams.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(container.clients) >= _CLIENTS_OF_ONE:
            connection.close()
            return
        client = _Client(container, connection)
        container.clients.add(client)
        self._clients[client] = None
        self._selector.register(connection, selectors.EVENT_READ, (self._client, client))

    def _client(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(client)
            if events & selectors.EVENT_READ:
                received = client.connection.recv(8192)
                if not received:
                    raise ConnectionError
                client.input += received
                client.deadline = time.monotonic() + _IDLE
                del self._clients[client]  # the dict is in the order of the deadlines
                self._clients[client] = None
        except BlockingIOError:
            return
        except OSError:
            self._close_client(client)
            return
        while client in self._clients and (data := forward.take_frame(client.input)) is not None:
            self._answer(client.container, data, lambda reply: self._send_stream(client, reply), stream=True)

    def _send_stream(self, client: _Client, reply: bytes) -> None:
        if client not in self._clients:
            return
        client.output += len(reply).to_bytes(2, "big") + reply
        try:
            if len(client.output) > _OUTPUT_LIMIT:
                raise ConnectionError
            self._flush(client)
        except OSError:
            self._close_client(client)

    def _flush(self, client: _Client) -> None:
        with contextlib.suppress(BlockingIOError):
            del client.output[: client.connection.send(client.output)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.output else 0)
        self._selector.modify(client.connection, wanted, (self._client, client))

    def _close_client(self, client: _Client) -> None:
        if client not in self._clients:
            return
        del self._clients[client]
        client.container.clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _answer(self, container: _Container, data: bytes, send: Send, *, stream: bool) -> None:
        try:
            query = message.parse_query(data)
        except message.Malformed as error:
            if error.rcode is not None:
                send(message.refusal(data, error.rcode))
            return
        limit = 65535 if stream else query.udp_size
        tables = [self._tables[network] for network in container.networks if network in self._tables]
        records = zone.answer(query, tables, container.links)
        if records is not None:
            send(message.response(query, message.NOERROR, records, limit))
            return
        servers = (container.servers or self._host.current()) if container.forward else []

        def reply(answered: bytes | None) -> None:
            send(answered if answered is not None else message.response(query, message.SERVFAIL))

        self._forwarder.ask(container.id, query, data, servers, stream, reply)

    # The engine

    def _accept_control(self, _subject: None, _events: int) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, (self._control, _Control(connection)))

    def _control(self, control: _Control, _events: int) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(control.connection, 1 << 18, 8)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        control.input += data
        control.descriptors += descriptors
        size = int.from_bytes(control.input[:4], "big")
        if not data or size > _LONGEST_CONTROL:
            self._close_control(control)
            return
        if len(control.input) < 4 or len(control.input) < 4 + size:
            return
        body = bytes(control.input[4 : 4 + size])
        del control.input[: 4 + size]
        given, control.descriptors = control.descriptors, []
        try:
            reply = self._obey(control, json.loads(body), given)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        finally:
            for descriptor in given:
                os.close(descriptor)
        encoded = json.dumps(reply).encode()
        try:
            control.connection.settimeout(2)  # the reply is small, and somebody waits for it
            control.connection.sendall(len(encoded).to_bytes(4, "big") + encoded)
            control.connection.setblocking(False)
        except OSError:
            self._close_control(control)

    def _close_control(self, control: _Control) -> None:
        self._watchers.discard(control)
        for descriptor in control.descriptors:
            os.close(descriptor)
        self._selector.unregister(control.connection)
        control.connection.close()

    def _obey(self, control: _Control, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "watch":
            self._watchers.add(control)
            return {"version": VERSION}
        if operation == "network":
            self._set_table(request)
        elif operation == "container":
            return self._set_container(request, descriptors)
        elif operation == "forget":
            self._forget(str(request["id"]))
        elif operation == "list":
            return {"containers": sorted(self._containers), "networks": sorted(self._tables)}
        elif operation == "stop":
            self._ends = True
        else:
            return {"error": f"unknown operation {operation}"}
        return {}

    def _set_table(self, request: dict[str, Any]) -> None:
        if request["names"]:
            self._tables[str(request["id"])] = zone.Table(
                str(request["name"]),
                {str(name).lower(): tuple(addresses) for name, addresses in request["names"].items()},
                {str(address): str(name) for address, name in request["addresses"].items()},
            )
        else:
            self._tables.pop(str(request["id"]), None)

    def _set_container(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        container_id = str(request["id"])
        if len(descriptors) == 2:
            self._forget(container_id)
            datagrams, streams = (socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors)
            for own in (datagrams, streams):
                own.setblocking(False)
            container = _Container(container_id, datagrams, streams)
            self._selector.register(datagrams, selectors.EVENT_READ, (self._datagrams, container))
            self._selector.register(streams, selectors.EVENT_READ, (self._accept_client, container))
            self._containers[container_id] = container
        elif container_id not in self._containers:
            return {"missing": True}
        container = self._containers[container_id]
        container.networks = [str(one) for one in request["networks"]]
        container.servers = [str(one) for one in request["servers"]]
        container.links = {str(alias): str(name) for alias, name in request["links"].items()}
        container.forward = bool(request["forward"])
        return {}

    def _forget(self, container_id: str) -> None:
        container = self._containers.pop(container_id, None)
        if container is None:
            return
        self._forwarder.forget(container_id)
        for client in list(container.clients):
            self._close_client(client)
        for own in (container.datagrams, container.streams):
            self._selector.unregister(own)
            own.close()
