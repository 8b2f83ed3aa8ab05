"""Networks: ``/networks``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.engine import current_engine
from dockerd.networks import Endpoint, Network

__all__ = ["blueprint"]

blueprint = flask.Blueprint("networks", __name__)

_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})


@blueprint.get("/networks")
def list_networks() -> flask.Response:
    """List networks; ``Containers`` is empty here, as the API says."""
    filters = request.query_filters(_FILTERS)
    networks = [one for one in current_engine().networks.networks() if _matches(one, filters)]
    return request.json_reply([_body(network, ()) for network in networks])


@blueprint.get("/networks/<path:reference>")
def inspect_network(reference: str) -> flask.Response:
    """Show one network and who is on it."""
    networks = current_engine().networks
    network = networks.network(reference)
    here = [endpoint for endpoint in networks.endpoints() if endpoint.network_id == network.id]
    return request.json_reply(_body(network, here))


@blueprint.post("/networks/create")
def create_network() -> NoReturn:
    """Refused."""
    name = request.json_body().text("Name")
    raise errors.NotSupported(
        f"creating network {name}: user-defined networks are not supported by this engine version; "
        "there are bridge, host, none and container:NAME"
    )


@blueprint.post("/networks/<path:reference>/connect")
@blueprint.post("/networks/<path:reference>/disconnect")
def change_connection(reference: str) -> NoReturn:
    """Refused."""
    network = current_engine().networks.network(reference)
    raise errors.NotSupported(
        f"network {network.name}: connecting and disconnecting containers is not supported by this engine version; "
        "a container's network is chosen when it is created"
    )


@blueprint.delete("/networks/<path:reference>")
def remove_network(reference: str) -> NoReturn:
    """Refused: there are only predefined networks."""
    network = current_engine().networks.network(reference)
    raise errors.Forbidden(f"{network.name} is a pre-defined network and cannot be removed")


@blueprint.post("/networks/prune")
def prune_networks() -> flask.Response:
    """Remove unused networks; predefined ones are never removed."""
    request.query_filters(frozenset({"until", "label", "label!"}))
    return request.json_reply({"NetworksDeleted": None})


def _matches(network: Network, filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether the network passes every filter; the values of one filter are alternatives."""
    for key, values in filters.items():
        if key == "name" and not any(value in network.name for value in values):
            return False
        if key == "id" and not any(network.id.startswith(value) for value in values):
            return False
        if key == "driver" and network.driver not in values:
            return False
        if key == "scope" and "local" not in values:
            return False
        if key == "type" and _require(values, ("builtin", "custom"), key) != "builtin":
            return False
        # Predefined networks have no labels, and are never dangling.
        if key == "label" and values:
            return False
        if key == "dangling" and _require(values, ("true", "1", "false", "0"), key) in ("true", "1"):
            return False
    return True


def _require(values: Sequence[str], known: Sequence[str], key: str) -> str:
    for value in values:
        if value not in known:
            raise errors.InvalidParameter(f"invalid filter '{key}={value}'")
    return values[0] if values else known[0]


def _body(network: Network, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    subnets = [{"Subnet": network.subnet, "Gateway": network.gateway}] if network.subnet else None
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created_at,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": subnets},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {endpoint.container_id: _container(endpoint) for endpoint in endpoints},
        "Options": dict(network.options),
        "Labels": {},
    }


def _container(endpoint: Endpoint) -> dict[str, str]:
    return {
        "Name": endpoint.container_name,
        "EndpointID": endpoint.endpoint_id,
        "MacAddress": endpoint.hardware_address,
        "IPv4Address": f"{endpoint.address}/{endpoint.prefix}" if endpoint.address else "",
        "IPv6Address": "",
    }
