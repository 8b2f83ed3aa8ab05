"""What stands for systemd, for tests on machines without it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runc.cgroups import dbus

JOB = "/org/freedesktop/systemd1/job/7"


class FakeSystemd:
    """A message bus with systemd on it: takes every call down, and ends every job with `result`.

    errors: a member to the D-Bus errors that its next calls are answered with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unix:path={path}"
        self.calls: list[tuple[str, list[Any]]] = []
        self.result = "done"
        self.errors: dict[str, list[str]] = {}
        self.logins: list[bytes] = []
        self._serial = 0
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def members(self) -> list[str]:
        """What was called, in order."""
        return [member for member, _ in self.calls]

    def properties(self, member: str) -> dict[str, Any]:
        """The properties that the last call of this member gave, as signature and value."""
        body = [body for name, body in self.calls if name == member][-1]
        return dict(next(item for item in body if isinstance(item, list)))

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self._attend(connection)

    def _attend(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        self.logins.append(stream.readline())
        connection.sendall(b"OK 0123456789abcdef\r\n")
        assert stream.readline() == b"BEGIN\r\n"
        protocol = dbus.Protocol()
        while data := stream.read1(65536):
            for message in protocol.receive(data):
                self._answer(connection, message)

    def _answer(self, connection: socket.socket, message: dbus.Message) -> None:
        self.calls.append((message.member, message.body))
        pending = self.errors.get(message.member, [])
        if pending:
            name = pending.pop(0)
            self._send(connection, dbus.ERROR, {5: ("u", message.serial), 4: ("s", name)}, "s", ["it did not work"])
            return
        if message.member in ("StartTransientUnit", "StopUnit"):
            # A job can be done before its number is known to the caller.
            fields = {1: ("o", "/org/freedesktop/systemd1"), 2: ("s", "x.y"), 3: ("s", "JobRemoved")}
            self._send(connection, dbus.SIGNAL, fields, "uoss", [6, JOB + "0", message.body[0], "failed"])
            self._send(connection, dbus.SIGNAL, fields, "uoss", [7, JOB, message.body[0], self.result])
            self._send(connection, dbus.RETURN, {5: ("u", message.serial)}, "o", [JOB])
        elif message.member == "Get":
            self._send(connection, dbus.RETURN, {5: ("u", message.serial)}, "v", [("s", "/user.slice/of-the-user")])
        else:
            self._send(connection, dbus.RETURN, {5: ("u", message.serial)}, "", [])

    def _send(
        self,
        connection: socket.socket,
        kind: int,
        fields: dict[int, tuple[str, Any]],
        signature: str,
        values: list[Any],
    ) -> None:
        self._serial += 1
        connection.sendall(dbus.pack(kind, self._serial, fields, signature, values))


@pytest.fixture
def fake_systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    """It, at a socket of its own."""
    made = FakeSystemd(tmp_path / "bus")
    yield made
    made.close()
