"""A small D-Bus client (D-Bus Specification 0.42), for the few calls that systemd is asked.

`encode` and `decode` are the wire format, `Protocol` makes messages of bytes and knows nothing of sockets, `Bus`
carries them over a Unix socket: to a message bus, or to systemd's private socket, which has no bus in between.
A value of type variant is a pair of its signature and itself; structs are tuples, dictionaries lists of pairs.
"""

from __future__ import annotations

import _socket
import os
import time

from gantry.linux import unix
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)
_MAX_MESSAGE = 1 << 27
_MAX_DEPTH = 32
_FIXED_HEADER = 16
# type: (size, signed); all but `b` are aligned to their size.
_INTEGERS = {
    "y": (1, False),
    "n": (2, True),
    "q": (2, False),
    "i": (4, True),
    "u": (4, False),
    "x": (8, True),
    "t": (8, False),
    "b": (4, False),
}
_ALIGNMENT = {kind: size for kind, (size, _) in _INTEGERS.items()}
_ALIGNMENT |= {"s": 4, "o": 4, "g": 1, "a": 4, "v": 1, "(": 8, "{": 8}


class BusError(RuntimeFailure):
    """An error that the other side answered with; `name` is its D-Bus name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


def split_signature(signature: str) -> list[str]:
    """The single complete types of a signature. Raises ValueError."""
    found, rest = [], signature
    while rest:
        length = _type_length(rest, 0)
        found.append(rest[:length])
        rest = rest[length:]
    return found


def _type_length(text: str, depth: int) -> int:
    if depth > _MAX_DEPTH or not text:
        raise ValueError("bad D-Bus signature")
    kind = text[0]
    if kind == "a":
        return 1 + _type_length(text[1:], depth + 1)
    if kind in "({":
        close, length = ")}"["({".index(kind)], 1
        while text[length : length + 1] != close:
            length += _type_length(text[length:], depth + 1)
        return length + 1
    if kind not in _ALIGNMENT:
        raise ValueError("bad D-Bus signature")
    return 1


# Encoding


def encode(signature: str, values: list[Any] | tuple[Any, ...]) -> bytes:
    """Values of these types, as they follow each other in a body."""
    out = bytearray()
    for kind, value in zip(split_signature(signature), values, strict=True):
        _put(out, kind, value)
    return bytes(out)


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)


def _put(out: bytearray, kind: str, value: Any) -> None:
    first = kind[0]
    _pad(out, _ALIGNMENT[first])
    if first in _INTEGERS:
        size, signed = _INTEGERS[first]
        out += int(value).to_bytes(size, "little", signed=signed)
    elif first in "so":
        raw = value.encode("utf-8", "surrogateescape")
        out += len(raw).to_bytes(4, "little") + raw + b"\0"
    elif first == "g":
        out += bytes((len(value),)) + value.encode() + b"\0"
    elif first == "v":
        _put(out, "g", value[0])
        _put(out, value[0], value[1])
    elif first == "a":
        start = len(out)
        out += bytes(4)
        _pad(out, _ALIGNMENT[kind[1]])
        content = len(out)
        for item in value:
            _put(out, kind[1:], item)
        out[start : start + 4] = (len(out) - content).to_bytes(4, "little")
    else:
        for each, item in zip(split_signature(kind[1:-1]), value, strict=True):
            _put(out, each, item)


# Decoding


def decode(signature: str, data: bytes) -> list[Any]:
    """The values of a body. Raises ValueError for what is none."""
    values, position = [], 0
    for kind in split_signature(signature):
        value, position = _get(data, position, kind, 0)
        values.append(value)
    return values


def _get(data: bytes, position: int, kind: str, depth: int) -> tuple[Any, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("D-Bus value nested too deeply")
    first = kind[0]
    position += -position % _ALIGNMENT[first]
    if first in _INTEGERS:
        size, signed = _INTEGERS[first]
        number = int.from_bytes(_cut(data, position, size), "little", signed=signed)
        return (bool(number) if first == "b" else number), position + size
    if first in "sog":
        width = 1 if first == "g" else 4
        size = int.from_bytes(_cut(data, position, width), "little")
        text = _cut(data, position + width, size).decode("utf-8", "surrogateescape")
        return text, position + width + size + 1
    if first == "v":
        inner, position = _get(data, position, "g", depth)
        value, position = _get(data, position, inner, depth + 1)
        return (inner, value), position
    if first == "a":
        size = int.from_bytes(_cut(data, position, 4), "little")
        position += 4
        position += -position % _ALIGNMENT[kind[1]]
        end = position + size
        if end > len(data):
            raise ValueError("D-Bus array longer than its message")
        items = []
        while position < end:
            item, position = _get(data, position, kind[1:], depth + 1)
            items.append(item)
        return items, position
    members = []
    for each in split_signature(kind[1:-1]):
        value, position = _get(data, position, each, depth + 1)
        members.append(value)
    return tuple(members), position


def _cut(data: bytes, position: int, size: int) -> bytes:
    piece = data[position : position + size]
    if len(piece) != size:
        raise ValueError("D-Bus message shorter than what it says")
    return piece


# Messages


class Message:
    """A message: its kind, its header fields by number, its body."""

    __slots__ = ("body", "fields", "kind", "serial")

    def __init__(self, kind: int, serial: int, fields: dict[int, Any], body: list[Any]) -> None:
        self.kind = kind
        self.serial = serial
        self.fields = fields
        self.body = body

    @property
    def reply_to(self) -> int:
        """The serial number of the call that this answers, 0 for none."""
        number: int = self.fields.get(_REPLY_SERIAL, 0)
        return number

    @property
    def member(self) -> str:
        """The method or signal."""
        name: str = self.fields.get(_MEMBER, "")
        return name


def pack(kind: int, serial: int, fields: dict[int, tuple[str, Any]], signature: str, values: list[Any]) -> bytes:
    """The bytes of a message; fields hold variants."""
    body = encode(signature, values)
    if signature:
        fields = {**fields, _SIGNATURE: ("g", signature)}
    head = encode("yyyyuua(yv)", [ord("l"), kind, 0, 1, len(body), serial, list(fields.items())])
    return head + bytes(-len(head) % 8) + body


class Protocol:
    """One end of a connection after the handshake: bytes in, messages out."""

    def __init__(self) -> None:
        self._serial = 0
        self._buffer = b""

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str, values: list[Any]
    ) -> tuple[int, bytes]:
        """A method call: its serial number, and its bytes. An empty destination is for a peer without a bus."""
        self._serial += 1
        fields = {_PATH: ("o", path), _INTERFACE: ("s", interface), _MEMBER: ("s", member)}
        if destination:
            fields[_DESTINATION] = ("s", destination)
        return self._serial, pack(CALL, self._serial, fields, signature, values)

    def receive(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes. Raises ValueError for what is no D-Bus message."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _FIXED_HEADER:
            if self._buffer[:1] != b"l":
                raise ValueError("D-Bus message in another byte order")
            body_size = int.from_bytes(self._buffer[4:8], "little")
            fields_size = int.from_bytes(self._buffer[12:16], "little")
            head_size = _FIXED_HEADER + fields_size
            head_size += -head_size % 8
            if head_size + body_size > _MAX_MESSAGE:
                raise ValueError("D-Bus message too long")
            if len(self._buffer) < head_size + body_size:
                break
            head, body = self._buffer[:head_size], self._buffer[head_size : head_size + body_size]
            self._buffer = self._buffer[head_size + body_size :]
            _, kind, _, _, _, serial, pairs = decode("yyyyuua(yv)", head)
            fields = {number: value for number, (_, value) in pairs}
            found.append(Message(kind, serial, fields, decode(fields.get(_SIGNATURE, ""), body)))
        return found


def handshake(uid: int) -> bytes:
    """What a client says first: who it is, which the kernel confirms (SASL EXTERNAL)."""
    return b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n"


def is_accepted(line: bytes) -> bool:
    """Did the server take that?"""
    return line.startswith(b"OK ")


# The connection


class Bus:
    """A connection. Raises RuntimeFailure when there is nobody, or no answer in time."""

    def __init__(self, path: str, uid: int, patience: float) -> None:
        self._deadline = time.monotonic() + patience
        self._protocol = Protocol()
        self._signals: list[Message] = []
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.settimeout(patience)
            if path.startswith("@"):
                self._socket.connect("\0" + path[1:])
            else:
                unix.connect_path(self._socket, path)
            self._send(handshake(uid))
            line = b""
            while not line.endswith(b"\r\n"):
                line += self._receive(1)
            if not is_accepted(line):
                raise RuntimeFailure(f"dbus: authentication failed: {line.decode('latin-1').strip()}")
            self._send(b"BEGIN\r\n")
        except OSError as error:
            self.close()
            raise RuntimeFailure(f"dial unix {path}: connect: {system_text(error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *values: Any
    ) -> list[Any]:
        """Call a method; gives the body of its answer. Raises BusError for an error that is answered."""
        serial, data = self._protocol.call(destination, path, interface, member, signature, list(values))
        self._send(data)
        answer = self._wait(lambda message: message.reply_to == serial)
        if answer.kind == ERROR:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise BusError(answer.fields.get(_ERROR_NAME, ""), text)
        return answer.body

    def wait_signal(self, member: str, matches: Callable[[list[Any]], bool]) -> list[Any]:
        """The body of the next signal of this name that matches, one that came before an answer included."""

        def wanted(message: Message) -> bool:
            return message.kind == SIGNAL and message.member == member and matches(message.body)

        for message in self._signals:
            if wanted(message):
                return message.body
        return self._wait(wanted).body

    def _wait(self, wanted: Callable[[Message], bool]) -> Message:
        while True:
            try:
                messages = self._protocol.receive(self._receive(65536))
            except ValueError as error:
                raise RuntimeFailure(f"dbus: {error}") from error
            for index, message in enumerate(messages):
                if wanted(message):
                    self._signals += messages[index + 1 :]
                    return message
                self._signals.append(message)

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _receive(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise RuntimeFailure("dbus: no answer in time")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(size)
        except TimeoutError:
            raise RuntimeFailure("dbus: no answer in time") from None
        except OSError as error:
            raise RuntimeFailure(f"dbus: connection lost: {system_text(error)}") from error
        if not data:
            raise RuntimeFailure("dbus: connection closed by the other side")
        return data


def socket_path(address: str) -> str:
    """The Unix socket of a bus address, an abstract one behind `@`. Raises RuntimeFailure for any other transport."""
    for one in address.split(";"):
        transport, _, rest = one.partition(":")
        if transport != "unix":
            continue
        for pair in rest.split(","):
            key, _, value = pair.partition("=")
            if key in ("path", "abstract"):
                return ("@" if key == "abstract" else "") + _unescape(value)
    raise RuntimeFailure(f"dbus: address {address!r} names no unix socket")


def _unescape(text: str) -> str:
    head, *rest = text.encode().split(b"%")
    for piece in rest:
        head += bytes.fromhex(piece[:2].decode()) + piece[2:]
    return os.fsdecode(head)
