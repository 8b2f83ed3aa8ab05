"""Who is called what on the user-defined networks, told to the DNS companion."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Sequence

from dockerd.dns.companion import Companion, bind_sockets
from dockerd.networks import netns
from dockerd.networks.model import Endpoint
from dockerd.networks.store import NetworkStore

__all__ = ["Resolver"]

_log = logging.getLogger(__name__)

Sockets = tuple[socket.socket, socket.socket]


class Resolver:
    """Keeps the companion as the database is. A container without user-defined networks never reaches it.

    A companion that cannot be had is logged: containers run without names then.
    """

    def __init__(self, exec_root: str, store: NetworkStore) -> None:
        self._store = store
        self._companion = Companion(exec_root, self.synchronize)
        self._lock = threading.Lock()  # what is read is what is told, in that order

    def close(self) -> None:
        """The companion goes on without this engine."""
        self._companion.close()

    def serve(self, endpoints: Sequence[Endpoint], sockets: Sockets) -> None:
        """Answer a container, and tell its networks of its names. The sockets are the caller's to close."""
        try:
            with self._lock:
                self._companion.ensure()
                self._companion.request(_container(endpoints), sockets)
                self._tell(one.network_id for one in endpoints)
        except OSError as error:
            _log.error("container %s: names are not resolved: %s", endpoints[0].container_id[:12], error)

    def update(self, endpoints: Sequence[Endpoint], networks: Iterable[str] = ()) -> None:
        """A container that is served has other networks or names; ``networks`` are those that it was on as well."""
        if not endpoints:
            self._tell_logged(networks)
            return
        try:
            with self._lock:
                missing = self._companion.request(_container(endpoints)).get("missing")
                self._tell({*networks, *(one.network_id for one in endpoints)})
        except OSError as error:
            _log.error("container %s: names are not kept up to date: %s", endpoints[0].container_id[:12], error)
            return
        if missing and any(one.names for one in endpoints):
            self._serve_running(endpoints)

    def forget(self, endpoints: Sequence[Endpoint]) -> None:
        """The container ends: its sockets are closed, so that its namespace can go."""
        if not any(one.names for one in endpoints):
            return
        try:
            with self._lock:
                self._companion.request({"op": "forget", "id": endpoints[0].container_id})
        except OSError as error:
            _log.info("container %s: nothing was resolving its names: %s", endpoints[0].container_id[:12], error)

    def gone(self, endpoints: Sequence[Endpoint]) -> None:
        """The container has no places any more: nobody finds it."""
        if any(one.names for one in endpoints):
            self._tell_logged(one.network_id for one in endpoints)

    def forget_others(self, live: Iterable[str]) -> None:
        """Close the sockets of containers that ended while there was no engine."""
        if not self._companion.find():
            return
        try:
            known = self._companion.request({"op": "list"})["containers"]
            for container_id in set(known) - set(live):
                self._companion.request({"op": "forget", "id": container_id})
        except OSError as error:
            _log.error("the DNS companion does not answer: %s", error)

    def synchronize(self) -> None:
        """Give the companion, a new one if need be, all that it should have."""
        by_container: dict[str, list[Endpoint]] = {}
        for endpoint in self._store.endpoints():
            by_container.setdefault(endpoint.container_id, []).append(endpoint)
        wanted = {key: places for key, places in by_container.items() if any(one.names for one in places)}
        if not wanted:
            return
        try:
            self._companion.ensure()
            known = set(self._companion.request({"op": "list"})["containers"])
        except OSError as error:
            _log.error("names of containers are not resolved: %s", error)
            return
        for key, places in wanted.items():
            if key in known:
                self.update(places)
            else:
                self._serve_running(places)

    def _serve_running(self, endpoints: Sequence[Endpoint]) -> None:
        try:
            sockets = netns.enter(endpoints[0].namespace, lambda _descriptor: bind_sockets())
        except OSError as error:
            _log.error("container %s: names are not resolved: %s", endpoints[0].container_id[:12], error)
            return
        with sockets[0], sockets[1]:
            self.serve(endpoints, sockets)

    def _tell_logged(self, networks: Iterable[str]) -> None:
        try:
            with self._lock:
                self._tell(networks)
        except OSError as error:
            _log.error("names of containers are not kept up to date: %s", error)

    def _tell(self, networks: Iterable[str]) -> None:
        for network_id in sorted(set(networks)):
            places = [one for one in self._store.endpoints_on(network_id) if one.names]
            names: dict[str, list[str]] = {}
            for place in places:
                for name in place.names:
                    names.setdefault(name.lower(), []).append(place.address)
            self._companion.request(
                {
                    "op": "network",
                    "id": network_id,
                    "name": places[0].network if places else "",
                    "names": names,
                    "addresses": {place.address: place.names[0] for place in places},
                }
            )


def _container(endpoints: Sequence[Endpoint]) -> dict[str, object]:
    return {
        "op": "container",
        "id": endpoints[0].container_id,
        "networks": [one.network_id for one in endpoints if one.names],
        "servers": list(endpoints[0].servers),
        "links": {alias: name for one in endpoints for alias, name in one.links},
        # Nothing leaves an internal network, questions neither.
        "forward": any(one.gateway for one in endpoints),
    }
