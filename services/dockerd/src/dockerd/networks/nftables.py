"""The engine's nftables table: computed as text, put into the kernel in one transaction by libnftables.

Rules are few and change only when a network comes or goes; what varies are elements of two maps, one element for each
published port. The table is the engine's own, so rules of the host's administrator and of other engines stand beside
it: a packet passes only if all of them let it pass. The one exception: another Docker on the machine makes the chain
DOCKER-USER for rules that are not its own, and drops what nobody accepts; there this engine's bridge is accepted.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from dockerd import errors

__all__ = [
    "BridgeRules",
    "Nftables",
    "Translation",
    "accept_bridge",
    "add_translations",
    "delete_table",
    "delete_translations",
    "dropping_forward_chains",
    "forget_bridge",
    "install_table",
]

_ANY = IPv4Address(0)
_OUTPUT_HANDLE = 1 << 3  # NFT_CTX_OUTPUT_HANDLE of libnftables.h

_TABLE = """\
add table ip {table}
delete table ip {table}
table ip {table} {{
    comment "made by Gantry: replaced when the engine starts"

    map published {{
        type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
    }}
    map published-anywhere {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}

    chain published-ports {{
        meta l4proto {{ tcp, udp, sctp }} dnat ip to meta l4proto . ip daddr . th dport map @published
        meta l4proto {{ tcp, udp, sctp }} dnat ip to meta l4proto . th dport map @published-anywhere
    }}
    chain before-conntrack {{
        type filter hook prerouting priority raw; policy accept;
        ip daddr 127.0.0.0/8 iifname {{ {bridges} }} drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump published-ports
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local jump published-ports
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
{masquerades}
        ip saddr 127.0.0.0/8 oifname {{ {bridges} }} ct status dnat masquerade
    }}
{chains}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        oifname vmap {{ {into} }}
{internal}    }}
}}
"""

_INTO = """\
    chain into-{name} {{
        ct state established,related accept
        iifname "{name}" {within}
        ct status dnat accept
        drop
    }}
"""

_INTO_INTERNAL = """\
    chain into-{name} {{
        iifname "{name}" {within}
        drop
    }}
"""


@dataclass(frozen=True)
class BridgeRules:
    """What of a network's bridge matters to the rules.

    ``masquerade``: connections to the outside get the host's address. ``within``: its containers reach each other.
    ``internal``: nothing is forwarded into it or out of it.
    """

    name: str
    subnet: IPv4Network
    masquerade: bool = True
    within: bool = True
    internal: bool = False


@dataclass(frozen=True)
class Translation:
    """One published port: what comes to ``host_address:host_port`` goes to ``address:port``.

    ``host_address`` 0.0.0.0 is any address of the host.
    """

    protocol: str
    host_address: IPv4Address
    host_port: int
    address: IPv4Address
    port: int


def install_table(table: str, bridges: Sequence[BridgeRules], translations: Iterable[Translation]) -> str:
    """The commands that make the table as it must be, in place of what it was; connections under way go on.

    - A container's connections to the outside get the host's address.
    - Published ports lead into containers, from outside, from the host itself (127.0.0.1 too: hence the masquerade of
      loopback sources), and from containers (whose connections get the bridge's address, else the answer would go
      past the translation).
    - From outside, and from other networks, only published ports are reachable, whatever routes others have.
    - A container does not reach what the host serves on 127.0.0.1. The bridges have route_localnet, so a packet from
      them to that network would not be dropped by the kernel itself; answers are not yet translated back at this hook,
      so they never look like that.
    """
    if not bridges:
        return delete_table(table)
    internal = [one for one in bridges if one.internal]
    rules = _TABLE.format(
        table=table,
        bridges=", ".join(f'"{one.name}"' for one in bridges),
        masquerades="\n".join(line for one in bridges for line in _masquerade(one)),
        chains="".join(
            (_INTO_INTERNAL if one.internal else _INTO).format(name=one.name, within="accept" if one.within else "drop")
            for one in bridges
        ).rstrip(),
        into=", ".join(f'"{one.name}" : goto into-{one.name}' for one in bridges),
        internal="".join(f'        iifname "{one.name}" drop\n' for one in internal),
    )
    return rules + add_translations(table, translations)


def _masquerade(bridge: BridgeRules) -> list[str]:
    hairpin = f'        ip saddr {bridge.subnet} oifname "{bridge.name}" ct status dnat masquerade'
    if not bridge.masquerade or bridge.internal:
        return [hairpin]
    return [f'        ip saddr {bridge.subnet} oifname != "{bridge.name}" masquerade', hairpin]


def delete_table(table: str) -> str:
    """The commands that remove the table, whether it is there or not."""
    return f"add table ip {table}\ndelete table ip {table}\n"


def add_translations(table: str, translations: Iterable[Translation]) -> str:
    """The commands that open published ports; empty for none."""
    return _elements(table, translations, "add", with_value=True)


def delete_translations(table: str, translations: Iterable[Translation]) -> str:
    """The commands that close published ports; empty for none."""
    return _elements(table, translations, "delete", with_value=False)


def _elements(table: str, translations: Iterable[Translation], verb: str, *, with_value: bool) -> str:
    bound: list[str] = []
    anywhere: list[str] = []
    for one in translations:
        value = f" : {one.address} . {one.port}" if with_value else ""
        if one.host_address == _ANY:
            anywhere.append(f"{one.protocol} . {one.host_port}{value}")
        else:
            bound.append(f"{one.protocol} . {one.host_address} . {one.host_port}{value}")
    commands = ""
    if bound:
        commands += f"{verb} element ip {table} published {{ {', '.join(bound)} }}\n"
    if anywhere:
        commands += f"{verb} element ip {table} published-anywhere {{ {', '.join(anywhere)} }}\n"
    return commands


def dropping_forward_chains(listing: str) -> list[str]:
    """Of ``nft list chains``: the chains, as TABLE CHAIN, that drop what is forwarded and not accepted there."""
    found: list[str] = []
    table = chain = ""
    for line in map(str.strip, listing.splitlines()):
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif "hook forward" in line and "policy drop" in line and table.split()[0] in ("ip", "inet"):
            found.append(f"{table} {chain}")
    return found


def accept_bridge(listing: str, user_chain: str, bridge: str) -> str:
    """The commands that let a bridge's packets pass ``DOCKER-USER``; empty where the chain is not, or has them.

    ``listing`` is ``nft list chains``, ``user_chain`` as from :meth:`Nftables.user_chain`. Docker keeps what others
    put there when it restarts.
    """
    if not user_chain or not any(chain == "ip filter FORWARD" for chain in dropping_forward_chains(listing)):
        return ""
    mark = f'comment "gantry: {bridge}"'
    if mark in user_chain:
        return ""
    where = "insert rule ip filter DOCKER-USER"
    return f'{where} iifname "{bridge}" accept {mark}\n{where} oifname "{bridge}" accept {mark}\n'


def forget_bridge(user_chain: str, bridge: str) -> str:
    """The commands that undo :func:`accept_bridge`; ``user_chain`` has the rules' handles."""
    mark = f'comment "gantry: {bridge}"'
    handles = [
        line.rsplit("# handle ", 1)[1] for line in user_chain.splitlines() if mark in line and "# handle " in line
    ]
    return "".join(f"delete rule ip filter DOCKER-USER handle {handle}\n" for handle in handles)


class Nftables:
    """Runs nftables commands, all of one call in one transaction. Through libnftables; without it through ``nft``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._context: ctypes.c_void_p | None = None
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            return
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        context = ctypes.c_void_p(library.nft_ctx_new(0))
        library.nft_ctx_output_set_flags(context, _OUTPUT_HANDLE)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        self._library, self._context = library, context

    def run(self, commands: str) -> str:
        """Apply all commands or none, and return what they print. Raises SystemFailure with nftables' own words."""
        if not commands:
            return ""
        with self._lock:
            if self._library is None:
                return self._run_program(commands)
            if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
                text: bytes = self._library.nft_ctx_get_error_buffer(self._context)
                raise _failure(text.decode(errors="replace"))
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
            return output.decode(errors="replace")

    def user_chain(self) -> str:
        """The text of another Docker's chain DOCKER-USER with the handles of its rules; empty without one."""
        try:
            return self.run("list chain ip filter DOCKER-USER")
        except errors.SystemFailure:
            return ""

    def close(self) -> None:
        """Let go of the library's context."""
        with self._lock:
            if self._library is not None:
                self._library.nft_ctx_free(self._context)
                self._library = self._context = None

    def _run_program(self, commands: str) -> str:
        try:
            done = subprocess.run(["nft", "-a", "-f", "-"], input=commands, text=True, capture_output=True, check=False)
        except FileNotFoundError as error:
            raise errors.SystemFailure(
                "nftables is not installed: neither libnftables.so.1 nor the program nft was found"
            ) from error
        if done.returncode != 0:
            raise _failure(done.stderr)
        return done.stdout


def _failure(text: str) -> errors.SystemFailure:
    first = next((line for line in text.splitlines() if line.strip()), "no reason given")
    return errors.SystemFailure(f"nftables refused the change: {first.removeprefix('Error: ')}")
