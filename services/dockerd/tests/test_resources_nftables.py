"""The ruleset as text."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import IPv4Address, IPv4Network

import pytest

from dockerd.networks import nftables
from dockerd.networks.nftables import (
    BridgeRules,
    Translation,
    add_translations,
    delete_table,
    delete_translations,
    dropping_forward_chains,
    install_table,
)

CONTAINER = IPv4Address("172.30.0.2")
WEB = Translation("tcp", IPv4Address(0), 8080, CONTAINER, 80)
DNS = Translation("udp", IPv4Address("127.0.0.1"), 5353, CONTAINER, 53)


def test_one_element_for_each_port() -> None:
    """A port on any address and a port on one are in different maps."""
    assert add_translations("gantry", [WEB, DNS]) == (
        "add element ip gantry published { udp . 127.0.0.1 . 5353 : 172.30.0.2 . 53 }\n"
        "add element ip gantry published-anywhere { tcp . 8080 : 172.30.0.2 . 80 }\n"
    )


def test_closing_names_only_the_key() -> None:
    """An element is deleted by its key."""
    assert delete_translations("gantry", [WEB]) == "delete element ip gantry published-anywhere { tcp . 8080 }\n"


def test_nothing_to_do_is_no_command() -> None:
    """A container without published ports costs no transaction."""
    assert add_translations("gantry", []) == ""
    assert delete_translations("gantry", []) == ""


def test_the_table_is_replaced_in_one_transaction() -> None:
    """The old table goes, whether it is there or not, and the new one comes with its elements."""
    text = install_table("gantry-1", [BridgeRules("br7", IPv4Network("10.1.0.0/16"))], [WEB])
    assert text.startswith("add table ip gantry-1\ndelete table ip gantry-1\ntable ip gantry-1 {\n")
    assert text.endswith("}\nadd element ip gantry-1 published-anywhere { tcp . 8080 : 172.30.0.2 . 80 }\n")
    assert 'ip daddr 127.0.0.0/8 iifname { "br7" } drop' in text
    assert 'ip saddr 10.1.0.0/16 oifname != "br7" masquerade' in text


def test_what_is_forwarded_between_networks() -> None:
    """Into a network come answers, its own, and what is published; an internal one has no way in or out."""
    inside = BridgeRules("br8", IPv4Network("10.2.0.0/16"), internal=True)
    silent = BridgeRules("br9", IPv4Network("10.3.0.0/16"), masquerade=False, within=False)
    text = install_table("gantry", [BridgeRules("br7", IPv4Network("10.1.0.0/16")), inside, silent], [])
    assert 'oifname vmap { "br7" : goto into-br7, "br8" : goto into-br8, "br9" : goto into-br9 }' in text
    chains = dict(part.split(" {", 1) for part in text.split("    chain ")[1:])
    assert "ct status dnat accept" in chains["into-br7"]
    assert chains["into-br8"].split() == ["iifname", '"br8"', "accept", "drop", "}"]
    assert 'iifname "br9" drop' in chains["into-br9"]
    assert 'iifname "br8" drop' in chains["forward"]
    assert "saddr 10.2.0.0/16 oifname !=" not in text
    assert "saddr 10.3.0.0/16 oifname !=" not in text


def test_an_engine_without_bridges_has_no_table() -> None:
    """The last network takes the table along."""
    assert install_table("gantry", [], []) == delete_table("gantry")


def test_rules_do_not_depend_on_the_number_of_ports() -> None:
    """Published ports are elements, never rules."""
    few = install_table("gantry", [BridgeRules("br7", IPv4Network("10.1.0.0/16"))], [])
    many = install_table(
        "gantry",
        [BridgeRules("br7", IPv4Network("10.1.0.0/16"))],
        [Translation("tcp", IPv4Address(0), port, CONTAINER, 80) for port in range(1000)],
    )
    assert len(many.splitlines()) == len(few.splitlines()) + 1


def test_other_firewalls_are_recognised() -> None:
    """Only chains that forward IPv4 and drop by default stand in containers' way."""
    listing = """\
table ip filter {
\tchain DOCKER-USER {
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table ip6 filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table inet firewall {
\tchain forward {
\t\ttype filter hook forward priority 0; policy accept;
\t}
}
"""
    assert dropping_forward_chains(listing) == ["ip filter FORWARD"]


@pytest.mark.root
def test_nft_accepts_the_ruleset() -> None:
    """The program reads it as it is meant, without applying it."""
    nft = shutil.which("nft")
    if nft is None:
        pytest.skip("the program nft is not installed")
    bridges = [
        BridgeRules("br7", IPv4Network("10.1.0.0/16")),
        BridgeRules("br-1f0.2", IPv4Network("10.2.0.0/24"), masquerade=False, within=False),
        BridgeRules("br-inside", IPv4Network("10.3.0.0/24"), internal=True),
    ]
    text = install_table("gantry-check", bridges, [WEB, DNS]) + delete_table("gantry-check")
    done = subprocess.run([nft, "-c", "-f", "-"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


CHAINS = """\
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain DOCKER-USER {
\t}
}
"""
USER_CHAIN = "table ip filter {\n\tchain DOCKER-USER { # handle 7\n\t}\n}\n"


def test_the_bridge_is_accepted_where_another_docker_drops() -> None:
    """Once, in the chain made for it, and only where something is dropped at all."""
    commands = nftables.accept_bridge(CHAINS, USER_CHAIN, "gantry0")
    assert commands.splitlines() == [
        'insert rule ip filter DOCKER-USER iifname "gantry0" accept comment "gantry: gantry0"',
        'insert rule ip filter DOCKER-USER oifname "gantry0" accept comment "gantry: gantry0"',
    ]
    has_them = USER_CHAIN.replace("\t}", '\t\tiifname "gantry0" accept comment "gantry: gantry0" # handle 9\n\t}')
    assert nftables.accept_bridge(CHAINS, has_them, "gantry0") == ""
    assert nftables.accept_bridge(CHAINS.replace("policy drop", "policy accept"), USER_CHAIN, "gantry0") == ""
    assert nftables.accept_bridge(CHAINS, "", "gantry0") == ""


def test_only_own_rules_are_taken_back() -> None:
    """By handle, of this bridge."""
    chain = (
        '\t\tiifname "gantry0" accept comment "gantry: gantry0" # handle 9\n'
        '\t\tiifname "gantry-1" accept comment "gantry: gantry-1" # handle 10\n'
        '\t\tiifname "eth0" drop # handle 11\n'
    )
    assert nftables.forget_bridge(chain, "gantry0") == "delete rule ip filter DOCKER-USER handle 9\n"
