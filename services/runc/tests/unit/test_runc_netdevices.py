from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from runc import netdevices, resctrl
from runc.errors import RuntimeFailure


def configuration(devices: Any, *kinds: str) -> Any:
    """A container with these devices, and namespaces of these kinds."""
    return {"linux": {"netDevices": devices, "namespaces": [{"type": kind} for kind in kinds]}}


def test_names_in_the_container() -> None:
    """Are the host's when none is given."""
    devices = {"eth0": {}, "eth1": {"name": "lan%d"}}
    assert netdevices.check(configuration(devices, "network")) == {"eth0": "eth0", "eth1": "lan%d"}
    assert netdevices.check(configuration({})) == {}


@pytest.mark.parametrize(
    ("devices", "kinds", "message"),
    [
        ({"eth0": {}}, ("pid",), "without a NET namespace"),
        ({"a/b": {}}, ("network",), 'invalid network device name "a/b"'),
        ({"eth0": {"name": "x" * 16}}, ("network",), f'invalid network device name "{"x" * 16}"'),
        ({"..": {}}, ("network",), "invalid network device name"),
        ({"a b": {}}, ("network",), "invalid network device name"),
    ],
)
def test_devices_that_can_not_be(devices: Any, kinds: tuple[str, ...], message: str) -> None:
    """Are refused."""
    with pytest.raises(RuntimeFailure, match=message):
        netdevices.check(configuration(devices, *kinds))


def test_ordinary_users_move_no_devices() -> None:
    """They belong to the host."""
    with pytest.raises(RuntimeFailure, match="not supported for rootless containers"):
        netdevices.check(configuration({"eth0": {}}, "network"), rootless=True)


def test_the_request_that_moves_a_device() -> None:
    """Its number here, then name, namespace and number there, each attribute aligned."""
    body = netdevices.link_move(7, "eth0", 5, 9)
    assert int.from_bytes(body[4:8], sys.byteorder) == 7
    order = sys.byteorder
    expected = [(3, b"eth0\0"), (28, (5).to_bytes(4, order)), (49, (9).to_bytes(4, order))]
    assert list(netdevices.attributes(body[16:])) == expected
    assert len(body) % 4 == 0


def address(flags: int, scope: int) -> netdevices.Address:
    """10.0.0.2/24 of device 7, as the kernel tells it."""
    body = bytes((2, 24, flags & 0xFF, scope)) + (7).to_bytes(4, sys.byteorder)
    body += netdevices.attribute(1, bytes((10, 0, 0, 2))) + netdevices.attribute(2, bytes((10, 0, 0, 2)))
    body += netdevices.attribute(3, b"eth0\0") + netdevices.attribute(8, flags.to_bytes(4, sys.byteorder))
    return netdevices.Address(body)


def test_addresses_that_go_with_the_device() -> None:
    """Permanent ones of global scope; their label, which names the device, stays."""
    assert [address(*each).is_kept for each in ((0x80, 0), (0x00, 0), (0x80, 253), (0x280, 0))] == [
        True,
        False,
        False,
        True,
    ]
    body = netdevices.address_addition(address(0x280, 0), 9)
    again = netdevices.Address(body)
    assert (again.family, again.prefix, again.index, again.flags) == (2, 24, 9, 0x200)
    assert set(again.attributes) == {1, 2, 8}


def test_messages_of_a_datagram() -> None:
    """Are told apart; what is broken ends it."""
    data = netdevices.message(16, 0, 1, b"abc") + b"\0" + netdevices.message(3, 0, 1, bytes(4))
    assert list(netdevices.messages(data)) == [(16, 1, b"abc"), (3, 1, bytes(4))]
    assert list(netdevices.messages(bytes(40))) == []
    assert list(netdevices.attributes(bytes(8))) == []


def test_the_number_in_the_container() -> None:
    """The device's own where it is free."""
    assert netdevices.free_index(5, {1: "lo"}) == 5
    assert netdevices.free_index(5, {1: "lo", 5: "x", 9: "y"}) == 10


def test_the_kernel_answers() -> None:
    """A dump of the devices has the loopback; an error is raised as what it is."""
    connection = netdevices.Connection()
    try:
        assert connection.links()[1] == "lo"
        with pytest.raises(OSError, match="No such device"):
            connection.set_up(999_999)
    finally:
        connection.close()


def test_resctrl_checks(tmp_path: Path) -> None:
    """Why there is none, what is wrong with the name, what the machine lacks, and at last that it is not done."""
    expectations: list[tuple[Any, str]] = [({}, "Intel RDT is not enabled")]
    for wanted, message in expectations:
        with pytest.raises(RuntimeFailure, match=message):
            resctrl.check(wanted, str(tmp_path))
    (tmp_path / "info/L3").mkdir(parents=True)
    expectations = [
        ({"closID": "a/b"}, 'invalid intelRdt.ClosID "a/b"'),
        ({"memBwSchema": "MB:0=20"}, "memBwSchema is specified in config, but Intel RDT/MBA is not enabled"),
        ({"l3CacheSchema": "L3:0=f"}, "not supported by this runtime"),
    ]
    for wanted, message in expectations:
        with pytest.raises(RuntimeFailure, match=message):
            resctrl.check(wanted, str(tmp_path))
