"""Published ports: what is asked for, and keeping host ports."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address

import pytest

from dockerd import errors
from dockerd.containers.model import PortBinding
from dockerd.networks.ports import BindError, PortRequest, bind_first_free, parse_port, parse_requests

ANY = IPv4Address(0)
LOOPBACK = IPv4Address("127.0.0.1")


def test_a_port_has_a_protocol() -> None:
    """tcp is the default."""
    assert parse_port("80") == (80, "tcp")
    assert parse_port("53/UDP") == (53, "udp")


@pytest.mark.parametrize("text", ["", "0", "65536", "80/", "80/icmp", "x", "80-90", "-1", "80/tcp/udp"])
def test_what_is_no_port(text: str) -> None:
    """Refused with the text that was given."""
    with pytest.raises(errors.InvalidParameter, match="invalid port specification"):
        parse_port(text)


def test_bindings_become_requests() -> None:
    """Addresses, ranges and free choice."""
    bindings = {
        "80/tcp": [PortBinding(host_port="8080"), PortBinding(host_ip="127.0.0.1", host_port="")],
        "53/udp": [PortBinding(host_port="5300-5310")],
        "90/tcp": None,
    }
    assert parse_requests(bindings, ["80/tcp", "99/tcp"], publish_all=False) == [
        PortRequest(53, "udp", ANY, 5300, 5310),
        PortRequest(80, "tcp", LOOPBACK, 0, 0),
        PortRequest(80, "tcp", ANY, 8080, 8080),
        PortRequest(90, "tcp", ANY, 0, 0),
    ]


def test_publish_all_adds_what_is_exposed() -> None:
    """-P publishes exposed ports that -p does not name."""
    requests = parse_requests({"80/tcp": [PortBinding(host_port="80")]}, ["80/tcp", "53/udp"], publish_all=True)
    assert requests == [PortRequest(53, "udp", ANY, 0, 0), PortRequest(80, "tcp", ANY, 80, 80)]


@pytest.mark.parametrize("port", ["x", "70000", "90-80", "1-70000", "0-5", "-5", " 80"])
def test_bad_host_port(port: str) -> None:
    """A host port is a number or a range upwards."""
    with pytest.raises(errors.InvalidParameter, match="invalid port specification"):
        parse_requests({"80/tcp": [PortBinding(host_port=port)]}, [], publish_all=False)


def test_bad_host_address() -> None:
    """IPv6 is refused by name, other texts as no address."""
    with pytest.raises(errors.NotSupported, match="IPv6 address ::1"):
        parse_requests({"80/tcp": [PortBinding(host_ip="::1")]}, [], publish_all=False)
    with pytest.raises(errors.InvalidParameter, match="invalid IP address: host"):
        parse_requests({"80/tcp": [PortBinding(host_ip="host")]}, [], publish_all=False)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_kept_port_is_nobody_elses(protocol: str) -> None:
    """A second binding fails, also with SO_REUSEADDR and to another address of the host; after closing it is free."""
    port, keeper = bind_first_free(PortRequest(80, protocol, ANY, 0, 0))
    with keeper:
        assert port == keeper.getsockname()[1]
        with pytest.raises(BindError) as caught:
            bind_first_free(PortRequest(80, protocol, LOOPBACK, port, port))
        assert (caught.value.code, caught.value.reason) == (errno.EADDRINUSE, "address already in use")
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("0.0.0.0", port))
                if protocol == "udp":  # SO_REUSEADDR lets only both sides share a datagram port
                    raise AssertionError("bound")
    port_again, keeper = bind_first_free(PortRequest(80, protocol, ANY, port, port))
    keeper.close()
    assert port_again == port


def test_the_first_free_of_a_range() -> None:
    """A taken port of a range is passed over; a range that is taken whole fails."""
    port, keeper = bind_first_free(PortRequest(80, "tcp", LOOPBACK, 0, 0))
    with keeper:
        other, second = bind_first_free(PortRequest(80, "tcp", LOOPBACK, port, port + 3))
        second.close()
        assert port < other <= port + 3
        with pytest.raises(BindError):
            bind_first_free(PortRequest(80, "tcp", LOOPBACK, port, port))


def test_an_address_that_the_host_does_not_have() -> None:
    """The real engine's words."""
    with pytest.raises(BindError) as caught:
        bind_first_free(PortRequest(80, "tcp", IPv4Address("203.0.113.7"), 0, 0))
    assert caught.value.reason == "cannot assign requested address"
