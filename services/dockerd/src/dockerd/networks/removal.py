"""Take away what a stopped engine leaves in the kernel on purpose: its bridge, its table, its place in DOCKER-USER."""

from __future__ import annotations

import os

from dockerd import errors
from dockerd.config import Config
from dockerd.networks import bridge as bridges
from dockerd.networks import netlink, nftables

__all__ = ["remove_network"]


def remove_network(config: Config) -> str:
    """Remove the default bridge and the rules of the engine with this configuration; returns the bridge's name.

    What is gone already is no error. The engine must not run. Raises Conflict while containers are on the bridge.
    """
    names = bridges.engine_names(config)
    members = f"/sys/class/net/{names.bridge}/brif"
    if os.path.isdir(members) and os.listdir(members):
        raise errors.Conflict(f"{names.bridge} is in use by running containers: remove those first")
    rules = nftables.Nftables()
    try:
        rules.run(nftables.delete_table(names.table))
        rules.run(nftables.forget_bridge(rules.user_chain(), names.bridge))
    finally:
        rules.close()
    if not config.bridge and os.path.isdir(f"/sys/class/net/{names.bridge}"):
        host = netlink.RouteSocket()
        try:
            host.run([netlink.delete_link(names.bridge)])
        finally:
            host.close()
    return names.bridge
