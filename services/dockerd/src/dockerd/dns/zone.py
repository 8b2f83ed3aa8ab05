"""What containers are called: the names of each network, and which of them an asker sees."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dockerd.dns import message

__all__ = ["Table", "answer"]


@dataclass(frozen=True)
class Table:
    """The names of one network, in lower case, with their addresses; and for each address its first name."""

    name: str = ""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Sequence[str]:
        """The addresses of ``name``, or of ``name.NETWORK``."""
        found = self.names.get(name)
        if found is None and self.name:
            found = self.names.get(name.removesuffix(f".{self.name.lower()}"))
        return found or ()


def answer(query: message.Query, tables: Sequence[Table], links: Mapping[str, str] | None = None) -> list[bytes] | None:
    """The records for a question about a container on one of the networks; None when it is about something else.

    ``links`` are names that only the asker has for others, in lower case.

    A name that is known has no records of other kinds, so nobody else is asked for them. Several containers with one
    name take turns in being the first.
    """
    if query.type == message.PTR:
        address = message.reverse_address(query.name)
        for table in tables:
            if address and address in table.addresses:
                record = message.name_record(f"{table.addresses[address]}.{table.name}")
                return [record] if record else []
        return None
    name = (links or {}).get(query.name, query.name)
    for table in tables:
        addresses = list(table.find(name))
        if addresses:
            if query.type != message.A:
                return []
            random.shuffle(addresses)
            return [message.address_record(address) for address in addresses]
    return None
