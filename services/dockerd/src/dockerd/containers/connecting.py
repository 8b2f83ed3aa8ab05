"""Putting a container that exists on a network, and taking it off one, whether it runs or not."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dockerd import errors
from dockerd.containers import validation
from dockerd.containers.model import Container
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.starting import resolver_file
from dockerd.dns import ADDRESS as DNS_ADDRESS
from dockerd.networks import changed_hosts_file, membership

if TYPE_CHECKING:
    from dockerd.networks import Network

__all__ = ["Connecting"]

_log = logging.getLogger(__name__)

_LONGEST = 1 << 20


class Connecting:
    """Changes the networks of containers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def connect(self, reference: str, network: Network, settings: Mapping[str, Any]) -> None:
        """Put a container on a network. A container that does not run gets its place there when it starts.

        Raises NotFound for an unknown container, InvalidParameter for a network mode or settings that do not allow it,
        Forbidden when it is on the network already, and what :meth:`NetworkService.connect` raises.
        """
        handle = self._parts.registry.find(reference)
        with handle.exclusive():
            container = _changeable(handle)
            _check_modes(container, network)
            membership.check(membership.parse(network.name, settings), network)
            if self._key(container, network) is not None:
                name = container.name.lstrip("/")
                raise errors.Forbidden(f"endpoint with name {name} already exists in network {network.name}")
            if container.state.running:
                endpoint = self._parts.networks.connect(
                    container.id, network, name=container.name, hostname=container.config.hostname, settings=settings
                )
                _rewrite_hosts(container, new=endpoint.address)
                if endpoint.names:
                    self._resolve_names(container)
            self._save(handle, {**container.endpoints, network.name: dict(settings)})

    def disconnect(self, reference: str, network: Network, *, force: bool = False) -> None:
        """Take a container off a network.

        Raises NotFound for an unknown container, InvalidParameter for a network mode that does not allow it,
        SystemFailure when it is not on the network.
        """
        try:
            handle = self._parts.registry.find(reference)
        except errors.NotFound:
            if force:
                raise errors.NotFound(f"endpoint {reference} not found") from None
            raise
        with handle.exclusive():
            container = _changeable(handle)
            if container.host_config.network_mode == "host" and network.name == "host":
                raise errors.InvalidParameter(
                    "cannot disconnect container from host network - container was created in host network mode"
                )
            key = self._key(container, network)
            if key is None:
                raise errors.SystemFailure(f"container {container.id} is not connected to network {network.name}")
            if container.state.running and container.host_config.network_mode != "none":
                endpoint = self._parts.networks.disconnect(container.id, network)
                if endpoint is not None:
                    _rewrite_hosts(container, gone=endpoint.address)
            self._save(handle, {name: one for name, one in container.endpoints.items() if name != key})

    def _resolve_names(self, container: Container) -> None:
        """The container's first user-defined network: its names are resolved by the engine from now on."""
        with open(f"{container.root}/resolv.conf", "r+", encoding="utf-8", errors="surrogateescape") as file:
            if f"nameserver {DNS_ADDRESS}\n" not in file.read(_LONGEST):
                file.seek(0)
                file.write(resolver_file(self._parts.config, container, embedded=True))
                file.truncate()

    def _key(self, container: Container, network: Network) -> str | None:
        """Under which name or id the container's settings have the network."""
        for reference in container.endpoints:
            if reference in (network.name, network.id):
                return reference
            try:
                if self._parts.networks.network(reference).id == network.id:
                    return reference
            except errors.EngineError:  # no such network any more
                continue
        return None

    def _save(self, handle: Handle, endpoints: dict[str, dict[str, Any]]) -> None:
        container = msgspec.structs.replace(handle.container, endpoints=endpoints)
        self._parts.store.save_definition(container)
        handle.container = container


def _changeable(handle: Handle) -> Container:
    container = handle.container
    if handle.removed:
        raise errors.NotFound(f"No such container: {container.id}")
    return container


def _check_modes(container: Container, network: Network) -> None:
    mode = container.host_config.network_mode
    if mode == "host" or validation.container_mode(mode) is not None:
        raise errors.InvalidParameter(
            "container sharing network namespace with another container or host cannot be connected to any other "
            "network"
        )
    if network.name == "host":
        raise errors.InvalidParameter(
            "cannot connect container to host network - container must be created in host network mode"
        )
    if (network.name == "none") != (mode == "none") or (mode == "none" and "none" in container.endpoints):
        raise errors.InvalidParameter(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )


def _rewrite_hosts(container: Container, *, gone: str = "", new: str = "") -> None:
    """Change the file in its place: it is mounted in the container, and what the user wrote there stays."""
    path = f"{container.root}/hosts"
    config = container.config
    with open(path, "r+", encoding="utf-8", errors="surrogateescape") as file:
        if os.fstat(file.fileno()).st_size > _LONGEST:
            _log.warning("container %s: its /etc/hosts is too long to be kept up to date", container.id[:12])
            return
        text = changed_hosts_file(file.read(), config.hostname, config.domainname, gone=gone, new=new)
        file.seek(0)
        file.write(text)
        file.truncate()
