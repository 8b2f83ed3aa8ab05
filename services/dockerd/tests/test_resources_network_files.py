"""/etc/hosts, /etc/resolv.conf and /etc/hostname of containers."""

from __future__ import annotations

import pytest

from dockerd import errors
from dockerd.networks.files import hostname_file, hosts_file, resolv_conf

HOST = """# made by hand
domain ignored.example
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver ::1
search corp.example lab.example
options ndots:2 timeout:1
"""


def test_hosts_of_a_container_with_an_address() -> None:
    """As the real engine writes it: localhost first, the container's names last."""
    text = hosts_file("web", "example.org", ["172.30.0.2"], ["db:10.0.0.1", "gw=host-gateway"], gateway="172.30.0.1")
    assert text == (
        "127.0.0.1\tlocalhost\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
        "fe00::\tip6-localnet\n"
        "ff00::\tip6-mcastprefix\n"
        "ff02::1\tip6-allnodes\n"
        "ff02::2\tip6-allrouters\n"
        "10.0.0.1\tdb\n"
        "172.30.0.1\tgw\n"
        "172.30.0.2\tweb.example.org web\n"
    )


def test_hosts_without_an_address() -> None:
    """With --network none there is only localhost."""
    assert hosts_file("web", "", "").count("\n") == 6


def test_extra_host_with_an_ipv6_address() -> None:
    """Only the first colon separates, and brackets are taken off."""
    assert "\n2001:db8::1\tsix\n" in hosts_file("web", "", "", ["six:2001:db8::1"])
    assert "\n2001:db8::1\tsix\n" in hosts_file("web", "", "", ["six=[2001:db8::1]"])


@pytest.mark.parametrize("entry", ["db", ":10.0.0.1", "db:nowhere", "d b:10.0.0.1", "db\n1.1.1.1 bank:10.0.0.1"])
def test_bad_extra_hosts(entry: str) -> None:
    """What would not be one line of name and address is refused."""
    with pytest.raises(errors.InvalidParameter, match="add-host"):
        hosts_file("web", "", "", [entry])


def test_host_gateway_without_a_bridge() -> None:
    """There is no address to put in."""
    with pytest.raises(errors.InvalidParameter, match="host-gateway"):
        hosts_file("web", "", "", ["gw:host-gateway"])


def test_hostname() -> None:
    """One line."""
    assert hostname_file("web") == "web\n"


def test_servers_on_the_hosts_loopback_are_left_out() -> None:
    """A namespace has a loopback of its own."""
    lines = resolv_conf(HOST).splitlines()
    assert lines[1:] == ["nameserver 192.0.2.53", "search corp.example lab.example", "options ndots:2 timeout:1"]


def test_the_hosts_namespace_keeps_them() -> None:
    """--network host uses what the host uses."""
    servers = [line for line in resolv_conf(HOST, own_namespace=False).splitlines() if "nameserver" in line]
    assert servers == ["nameserver 127.0.0.53", "nameserver 192.0.2.53", "nameserver ::1"]


def test_no_server_left() -> None:
    """The real engine's fallback."""
    assert "nameserver 8.8.8.8\nnameserver 8.8.4.4\n" in resolv_conf("nameserver 127.0.0.1\n")


def test_options_replace_the_hosts_lines() -> None:
    """--dns, --dns-search and --dns-option each replace their kind of line only."""
    lines = resolv_conf(HOST, ["1.2.3.4"], ["foo"], ["ndots:3"]).splitlines()
    assert lines[1:] == ["nameserver 1.2.3.4", "search foo", "options ndots:3"]
    assert resolv_conf(HOST, ["127.0.0.1"]).splitlines()[1] == "nameserver 127.0.0.1"


def test_a_dot_is_no_search_list() -> None:
    """--dns-search=. removes the host's."""
    assert "search" not in resolv_conf(HOST, search=["."])


@pytest.mark.parametrize(
    ("dns", "search", "options"), [(["x"], [], []), ([], ["a b"], []), ([], [], ["a\nnameserver 6.6.6.6"])]
)
def test_bad_resolver_options(dns: list[str], search: list[str], options: list[str]) -> None:
    """Nothing can smuggle in another line."""
    with pytest.raises(errors.InvalidParameter, match="dns"):
        resolv_conf(HOST, dns, search, options)
