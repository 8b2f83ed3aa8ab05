"""Take away what a stopped engine leaves in the kernel on purpose: bridges, table, its place in DOCKER-USER."""

from __future__ import annotations

import os

from dockerd import errors
from dockerd.config import Config
from dockerd.dns import companion
from dockerd.networks import bridge as bridges
from dockerd.networks import netlink, nftables

__all__ = ["remove_network"]


def remove_network(config: Config) -> str:
    """Remove the bridges and the rules of the engine with this configuration; returns the default bridge's name.

    User-defined networks come back when the engine starts again. What is gone already is no error. The engine must not
    run. Raises Conflict while containers are on a bridge.
    """
    names = bridges.engine_names(config)
    companion.stop(config.exec_root)
    with netlink.RouteSocket() as host:
        links = host.links()
        own = [link.name for link in links if link.alias == names.mark]
        devices = [*own, *(link.name for link in links if link.name == names.bridge)]
        for device in devices:
            members = f"/sys/class/net/{device}/brif"
            if os.path.isdir(members) and os.listdir(members):
                raise errors.Conflict(f"{device} is in use by running containers: remove those first")
        rules = nftables.Nftables()
        try:
            rules.run(nftables.delete_table(names.table))
            for device in {names.bridge, *devices}:
                rules.run(nftables.forget_bridge(rules.user_chain(), device))
        finally:
            rules.close()
        for device in devices:
            if device != config.bridge:
                host.run([netlink.delete_link(device)])
    return names.bridge
