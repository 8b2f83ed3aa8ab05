from __future__ import annotations

import os
from typing import Any

import pytest

from runc.cgroups import dbus
from runc.errors import RuntimeFailure


@pytest.mark.parametrize(
    ("signature", "parts"),
    [
        ("", []),
        ("ssa(sv)a(sa(sv))", ["s", "s", "a(sv)", "a(sa(sv))"]),
        ("a{sv}aayu", ["a{sv}", "aay", "u"]),
        ("(i(tb))v", ["(i(tb))", "v"]),
    ],
)
def test_signatures(signature: str, parts: list[str]) -> None:
    """Fall into complete types."""
    assert dbus.split_signature(signature) == parts


@pytest.mark.parametrize("signature", ["a", "(", "(s", "z", "{", "a" * 100])
def test_bad_signatures(signature: str) -> None:
    """Are no signatures."""
    with pytest.raises(ValueError, match="signature"):
        dbus.split_signature(signature)


def test_the_wire_format() -> None:
    """Alignment, lengths and padding as the specification has them."""
    assert dbus.encode("yu", [1, 2]) == b"\x01\0\0\0\x02\0\0\0"
    assert dbus.encode("s", ["ab"]) == b"\x02\0\0\0ab\0"
    assert dbus.encode("as", [["a"]]) == b"\x06\0\0\0\x01\0\0\0a\0"
    # The padding before the first struct does not count to the length of the array.
    assert dbus.encode("a(t)", [[(5,)]]) == b"\x08\0\0\0\0\0\0\0\x05" + bytes(7)
    assert dbus.encode("v", [("b", True)]) == b"\x01b\0\0\x01\0\0\0"
    assert dbus.encode("a(t)", [[]]) == bytes(8)


VALUES: list[tuple[str, list[Any]]] = [
    ("ynqiuxtb", [255, -2, 3, -4, 5, -6, 1 << 63, True]),
    ("sog", ["tëxt", "/path", "a(sv)"]),
    ("ssa(sv)a(sa(sv))", ["u", "replace", [("PIDs", ("au", [7])), ("Slice", ("s", "x.slice"))], []]),
    ("a{sv}", [[("k", ("v", ("ay", [1, 2, 3])))]]),
    ("yat", [1, [1, 2]]),
]


@pytest.mark.parametrize(("signature", "values"), VALUES)
def test_what_is_encoded_is_decoded(signature: str, values: list[Any]) -> None:
    """Unchanged."""
    assert dbus.decode(signature, dbus.encode(signature, values)) == values


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xff", b"\x05\0\0\0ab"])
def test_what_is_cut_off_is_an_error(data: bytes) -> None:
    """Not a value."""
    for signature in ("s", "as", "at"):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            dbus.decode(signature, data)


def test_messages_in_any_pieces() -> None:
    """Are told apart, with what they carry."""
    sender, receiver = dbus.Protocol(), dbus.Protocol()
    serial, first = sender.call("a.b", "/x", "i.f", "Do", "su", ["text", 7])
    again, second = sender.call("", "/x", "i.f", "More", "", [])
    assert (serial, again) == (1, 2)
    found = [message for byte in first + second for message in receiver.receive(bytes((byte,)))]
    assert [(m.kind, m.serial, m.member, m.body) for m in found] == [(1, 1, "Do", ["text", 7]), (1, 2, "More", [])]
    assert 6 not in found[1].fields
    with pytest.raises(ValueError, match="byte order"):
        dbus.Protocol().receive(b"B" + bytes(20))
    with pytest.raises(ValueError, match="too long"):
        dbus.Protocol().receive(b"l\x01\0\x01" + b"\xff" * 12)


def test_addresses() -> None:
    """The first that is a unix socket, unescaped."""
    assert dbus.socket_path("tcp:host=x;unix:path=/run/a%20b,guid=1") == "/run/a b"
    assert dbus.socket_path("unix:abstract=/tmp/x") == "@/tmp/x"
    with pytest.raises(RuntimeFailure, match="names no unix socket"):
        dbus.socket_path("tcp:host=x")


def test_a_call_over_a_socket(fake_systemd) -> None:
    """Says who it is, gets an answer, an error by name, and a signal that came before its turn."""
    bus = dbus.Bus(str(fake_systemd.path), os.getuid(), 10)
    try:
        assert bus.call("a.b", "/x", "i.f", "StopUnit", "ss", "u", "replace") == ["/org/freedesktop/systemd1/job/7"]
        assert bus.wait_signal("JobRemoved", lambda body: body[0] == 7)[3] == "done"
        fake_systemd.errors["Do"] = ["a.b.Error"]
        with pytest.raises(dbus.BusError, match="it did not work") as caught:
            bus.call("a.b", "/x", "i.f", "Do")
        assert caught.value.name == "a.b.Error"
    finally:
        bus.close()
    assert fake_systemd.logins == [b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"]


def test_nobody_there_or_no_answer(tmp_path, fake_systemd) -> None:
    """Is told."""
    with pytest.raises(RuntimeFailure, match=r"dial unix .*: connect: no such file"):
        dbus.Bus(str(tmp_path / "none"), 0, 1)
    bus = dbus.Bus(str(fake_systemd.path), 0, 0.2)
    try:
        with pytest.raises(RuntimeFailure, match="no answer in time"):
            bus.wait_signal("Never", lambda _: True)
    finally:
        bus.close()
