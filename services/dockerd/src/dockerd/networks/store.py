"""The networks' rows: which there are, and which container has which place on them."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from dockerd import errors
from dockerd.networks.model import PREDEFINED, Endpoint, Network
from gantry.database import Database

__all__ = ["SCHEMA", "SCHEMA_2", "NetworkStore"]

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

# Networks of the user's, and several for one container. ``settings`` is JSON of what only those have.
SCHEMA_2 = """
ALTER TABLE networks ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
CREATE TABLE places (
    container_id TEXT NOT NULL,
    network_id TEXT NOT NULL REFERENCES networks (id),
    address TEXT,
    endpoint TEXT NOT NULL,
    PRIMARY KEY (container_id, network_id),
    UNIQUE (network_id, address)
);
INSERT INTO places
    SELECT endpoints.container_id, networks.id, endpoints.address, endpoints.endpoint
    FROM endpoints JOIN networks ON networks.name = endpoints.network ORDER BY endpoints.rowid;
DROP TABLE endpoints;
ALTER TABLE places RENAME TO endpoints;
"""


class NetworkStore:
    """Reads and writes those rows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._generation = 0
        # What was read since the last write: listings ask for every container.
        self._known: tuple[Network, ...] | None = None
        self._joined: dict[str, tuple[Endpoint, ...]] = {}

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One change; what was read before is not remembered after it."""
        try:
            with self._database.write() as connection:
                yield connection
        finally:
            with self._lock:
                self._generation += 1
                self._known = None
                self._joined.clear()

    def ensure_predefined(self) -> None:
        """Give the predefined networks their ids, once and for all."""
        with self._write() as connection:
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
        with self._write() as connection:
            connection.execute(
                "UPDATE networks SET address = ?, options = ? WHERE name = ?",
                (address, json.dumps(dict(options)), name),
            )

    def networks(self) -> list[Network]:
        """All networks, by name."""
        known, generation = self._known, self._generation
        if known is None:
            with self._database.read() as connection:
                known = tuple(_network(row) for row in connection.execute("SELECT * FROM networks ORDER BY name"))
            with self._lock:
                if generation == self._generation:
                    self._known = known
        return list(known)

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, those of the longest running containers first."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT endpoint FROM endpoints ORDER BY rowid")
            return [Endpoint.decode(row["endpoint"]) for row in rows]

    def insert_network(self, network: Network) -> None:
        """Keep a new network. Raises Conflict when the name is taken."""
        address = ""
        if network.subnet:
            address = f"{network.gateway}/{IPv4Network(network.subnet).prefixlen}"
        settings = {name: getattr(network, name) for name in _SETTINGS}
        try:
            with self._write() as connection:
                connection.execute(
                    "INSERT INTO networks (name, id, driver, created_at, address, options, settings) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        network.name,
                        network.id,
                        network.driver,
                        network.created_at,
                        address,
                        json.dumps(dict(network.options)),
                        json.dumps(settings),
                    ),
                )
        except sqlite3.IntegrityError as error:
            raise errors.Conflict(f"network with name {network.name} already exists") from error

    def delete_network(self, network_id: str) -> bool:
        """Forget a network; False, and nothing changed, when a container is on it."""
        try:
            with self._write() as connection:
                connection.execute("DELETE FROM networks WHERE id = ?", (network_id,))
        except sqlite3.IntegrityError:
            return False
        return True

    def endpoints_of(self, container_id: str) -> list[Endpoint]:
        """The container's endpoints while it runs, in the order in which it was joined to their networks."""
        generation, found = self._generation, self._joined.get(container_id)
        if found is None:
            with self._database.read() as connection:
                rows = connection.execute(
                    "SELECT endpoint FROM endpoints WHERE container_id = ? ORDER BY rowid", (container_id,)
                )
                found = tuple(Endpoint.decode(row["endpoint"]) for row in rows)
            with self._lock:
                if generation == self._generation:
                    self._joined[container_id] = found
        return list(found)

    def endpoints_on(self, network_id: str) -> list[Endpoint]:
        """The endpoints on one network, the oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT endpoint FROM endpoints WHERE network_id = ? ORDER BY rowid", (network_id,)
            )
            return [Endpoint.decode(row["endpoint"]) for row in rows]

    def insert(self, endpoint: Endpoint) -> None:
        """Keep a new endpoint. Raises NotFound when the network is gone, Conflict when the place is taken."""
        try:
            with self._write() as connection:
                connection.execute(
                    "INSERT INTO endpoints (container_id, network_id, address, endpoint) VALUES (?, ?, ?, ?)",
                    (endpoint.container_id, endpoint.network_id, endpoint.address or None, endpoint.encode()),
                )
        except sqlite3.IntegrityError as error:
            if "FOREIGN KEY" in str(error):
                raise errors.NotFound(f"network {endpoint.network} not found") from error
            raise errors.Conflict(
                f"container {endpoint.container_id} already has a network endpoint, or its address is in use: {error}"
            ) from error

    def update(self, endpoint: Endpoint) -> None:
        """Keep what changed of an endpoint."""
        with self._write() as connection:
            connection.execute(
                "UPDATE endpoints SET endpoint = ? WHERE container_id = ? AND network_id = ?",
                (endpoint.encode(), endpoint.container_id, endpoint.network_id),
            )

    def delete(self, endpoint: Endpoint) -> None:
        """Forget an endpoint."""
        with self._write() as connection:
            connection.execute(
                "DELETE FROM endpoints WHERE container_id = ? AND network_id = ?",
                (endpoint.container_id, endpoint.network_id),
            )


_SETTINGS = (
    "device",
    "configured",
    "ip_range",
    "auxiliary",
    "internal",
    "attachable",
    "labels",
    "ipam_options",
)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), str(text)) for name, text in value)


def _network(row: sqlite3.Row) -> Network:
    subnet = gateway = ""
    if row["address"]:
        address = IPv4Interface(row["address"])
        subnet, gateway = str(address.network), str(address.ip)
    settings = json.loads(row["settings"])
    for name in ("auxiliary", "labels"):
        settings[name] = _pairs(settings.get(name, ()))
    if settings.get("ipam_options") is not None:
        settings["ipam_options"] = _pairs(settings["ipam_options"])
    options = tuple(sorted(json.loads(row["options"]).items()))
    return Network(row["id"], row["name"], row["driver"], row["created_at"], subnet, gateway, options, **settings)
