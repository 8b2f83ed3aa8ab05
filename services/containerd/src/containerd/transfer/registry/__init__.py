"""Client for registries that speak the OCI distribution specification (and so Docker's)."""

from __future__ import annotations

from containerd.transfer.registry.auth import Credentials
from containerd.transfer.registry.client import RegistryClient
from containerd.transfer.registry.hosts import Host, hosts_for

__all__ = ["Credentials", "Host", "RegistryClient", "hosts_for"]
