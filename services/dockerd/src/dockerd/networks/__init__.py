"""Networks: what a container sees of the world, and what the world sees of it.

:class:`NetworkService` gives a container its network namespace before the container exists, and takes it away when the
container has ended. The kernel's side is in ``netlink``, ``netns``, ``bridge``, ``nftables`` and ``ports``.
"""

from __future__ import annotations

from dockerd.networks import membership
from dockerd.networks.files import changed_hosts_file, hostname_file, hosts_file, resolv_conf, resolv_conf_of_host
from dockerd.networks.model import Attachment, Endpoint, Network, PublishedPort
from dockerd.networks.service import NetworkService
from dockerd.networks.store import SCHEMA, SCHEMA_2

__all__ = [
    "SCHEMA",
    "SCHEMA_2",
    "Attachment",
    "Endpoint",
    "Network",
    "NetworkService",
    "PublishedPort",
    "changed_hosts_file",
    "hostname_file",
    "hosts_file",
    "membership",
    "resolv_conf",
    "resolv_conf_of_host",
]
