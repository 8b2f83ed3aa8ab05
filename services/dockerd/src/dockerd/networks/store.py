"""The networks' rows: which there are, and which container has which place on them."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Interface

from dockerd import errors
from dockerd.networks.model import Endpoint, Network
from gantry.database import Database

__all__ = ["PREDEFINED", "SCHEMA", "NetworkStore"]

SCHEMA = """
CREATE TABLE networks (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    created_at TEXT NOT NULL,
    address TEXT NOT NULL DEFAULT '',
    options TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE endpoints (
    container_id TEXT PRIMARY KEY,
    network TEXT NOT NULL REFERENCES networks (name),
    address TEXT,
    endpoint TEXT NOT NULL,
    UNIQUE (network, address)
);
"""

PREDEFINED: Mapping[str, str] = {"bridge": "bridge", "host": "host", "none": "null"}
"""Networks that are always there, and their drivers."""


class NetworkStore:
    """Reads and writes those rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure_predefined(self) -> None:
        """Give the predefined networks their ids, once and for all."""
        with self._database.write() as connection:
            for name, driver in PREDEFINED.items():
                now = datetime.now(UTC)
                created_at = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}000Z"
                connection.execute(
                    "INSERT OR IGNORE INTO networks (name, id, driver, created_at) VALUES (?, ?, ?, ?)",
                    (name, secrets.token_hex(32), driver, created_at),
                )

    def bridge_address(self, name: str) -> str:
        """The address (CIDR) that the network's bridge had last, or nothing."""
        with self._database.read() as connection:
            row = connection.execute("SELECT address FROM networks WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row["address"])

    def set_bridge(self, name: str, address: str, options: Mapping[str, str]) -> None:
        """Note the address (CIDR) and the driver options of a network's bridge."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE networks SET address = ?, options = ? WHERE name = ?",
                (address, json.dumps(dict(options)), name),
            )

    def networks(self) -> list[Network]:
        """All networks, by name."""
        with self._database.read() as connection:
            return [_network(row) for row in connection.execute("SELECT * FROM networks ORDER BY name")]

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, those of the longest running containers first."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT endpoint FROM endpoints ORDER BY rowid")
            return [Endpoint.decode(row["endpoint"]) for row in rows]

    def endpoint(self, container_id: str) -> Endpoint | None:
        """The container's endpoint while it runs."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT endpoint FROM endpoints WHERE container_id = ?", (container_id,)
            ).fetchone()
        return None if row is None else Endpoint.decode(row["endpoint"])

    def insert(self, endpoint: Endpoint) -> None:
        """Keep a new endpoint. Raises Conflict when the container has one, or another has its address."""
        try:
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO endpoints (container_id, network, address, endpoint) VALUES (?, ?, ?, ?)",
                    (endpoint.container_id, endpoint.network, endpoint.address or None, endpoint.encode()),
                )
        except sqlite3.IntegrityError as error:
            raise errors.Conflict(
                f"container {endpoint.container_id} already has a network endpoint, or its address is in use: {error}"
            ) from error

    def update(self, endpoint: Endpoint) -> None:
        """Keep what changed of an endpoint."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE endpoints SET endpoint = ? WHERE container_id = ?", (endpoint.encode(), endpoint.container_id)
            )

    def delete(self, container_id: str) -> None:
        """Forget an endpoint."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM endpoints WHERE container_id = ?", (container_id,))


def _network(row: sqlite3.Row) -> Network:
    subnet = gateway = ""
    if row["address"]:
        address = IPv4Interface(row["address"])
        subnet, gateway = str(address.network), str(address.ip)
    options = tuple(sorted(json.loads(row["options"]).items()))
    return Network(row["id"], row["name"], row["driver"], row["created_at"], subnet, gateway, options)
