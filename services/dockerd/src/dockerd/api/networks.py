"""Networks: ``/networks``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.engine import current_engine
from dockerd.images.listing import parse_until
from dockerd.networks import Endpoint, Network
from dockerd.networks.definition import Addressing, Definition, parse_addressing, parse_options
from dockerd.networks.model import PREDEFINED

__all__ = ["blueprint"]

blueprint = flask.Blueprint("networks", __name__)

_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_PRUNE_FILTERS = frozenset({"until", "label", "label!"})


@blueprint.get("/networks")
def list_networks() -> flask.Response:
    """List networks; ``Containers`` is empty here, as the API says."""
    filters = request.query_filters(_FILTERS)
    networks = current_engine().networks
    used = {endpoint.network_id for endpoint in networks.endpoints()} if "dangling" in filters else set()
    chosen = [one for one in networks.networks() if _matches(one, filters, used)]
    return request.json_reply([_body(network, ()) for network in chosen])


@blueprint.get("/networks/<path:reference>")
def inspect_network(reference: str) -> flask.Response:
    """Show one network and who is on it."""
    networks = current_engine().networks
    network = networks.network(reference)
    scope = request.query_text("scope")
    if scope not in ("", "local"):
        raise errors.NotFound(f"network {reference} not found")
    here = [endpoint for endpoint in networks.endpoints() if endpoint.network_id == network.id]
    return request.json_reply(_body(network, here))


@blueprint.post("/networks/create")
def create_network() -> flask.Response:
    """Make a network."""
    wanted = _definition(request.json_body())
    network = current_engine().networks.create(wanted)
    return request.json_reply({"Id": network.id, "Warning": ""}, 201)


@blueprint.post("/networks/<path:reference>/connect")
def connect(reference: str) -> flask.Response:
    """Put a container on a network."""
    body = request.json_body()
    container = _container_named(body)
    engine = current_engine()
    engine.containers.connecting.connect(container, engine.networks.network(reference), body.section("EndpointConfig"))
    return flask.Response(status=200)


@blueprint.post("/networks/<path:reference>/disconnect")
def disconnect(reference: str) -> flask.Response:
    """Take a container off a network."""
    body = request.json_body()
    container = _container_named(body)
    engine = current_engine()
    network = engine.networks.network(reference)
    engine.containers.connecting.disconnect(container, network, force=body.flag("Force"))
    return flask.Response(status=200)


@blueprint.delete("/networks/<path:reference>")
def remove_network(reference: str) -> flask.Response:
    """Remove a network that no running container is on."""
    current_engine().networks.remove(reference)
    return request.no_content()


@blueprint.post("/networks/prune")
def prune_networks() -> flask.Response:
    """Remove all networks that no running container is on; predefined ones are never removed."""
    filters = request.query_filters(_PRUNE_FILTERS)
    moments = filters.get("until", [])
    if len(moments) > 1:
        raise errors.InvalidParameter("more than one until filter specified")
    before = parse_until(moments[0]) if moments else None
    networks = current_engine().networks
    used = {endpoint.network_id for endpoint in networks.endpoints()}
    removed: list[str] = []
    for network in networks.networks():
        labels = dict(network.labels)
        if network.predefined or network.id in used or (before is not None and network.created >= before):
            continue
        if not all(_has_label(labels, one) for one in filters.get("label", ())):
            continue
        if any(_has_label(labels, one) for one in filters.get("label!", ())):
            continue
        try:
            networks.remove(network.id)
        except (errors.Forbidden, errors.NotFound):  # used, or removed, since the look above
            continue
        removed.append(network.name)
    return request.json_reply({"NetworksDeleted": removed or None})


def _container_named(body: request.Fields) -> str:
    name = body.text("Container")
    if not name:
        raise errors.InvalidParameter('invalid name or ID supplied: ""')
    return name


def _definition(body: request.Fields) -> Definition:
    """What ``POST /networks/create`` asks for. Raises the real engine's errors for what no engine can make."""
    name, driver = body.text("Name"), body.text("Driver") or "bridge"
    if name in PREDEFINED:
        raise errors.Forbidden(f"operation is not permitted on predefined {name} network ")
    if not name.strip():
        raise errors.InvalidParameter("invalid name: name is empty")
    _refuse_kinds(body, driver)
    ipam = body.section("IPAM")
    if ipam.text("Driver", "default") not in ("", "default"):
        raise errors.NotFound(f'plugin "{ipam.text("Driver")}" not found')
    enable_ipv4 = body.flag("EnableIPv4", default=True)
    if not enable_ipv4 and not body.flag("EnableIPv6"):
        raise errors.InvalidParameter("IPv4 or IPv6 must be enabled")
    if body.flag("EnableIPv6") or not enable_ipv4:
        raise errors.NotSupported("EnableIPv6: IPv6 networks are not supported by this engine")
    return Definition(
        name=name,
        addressing=_addressing(ipam.sections("Config")),
        internal=body.flag("Internal"),
        attachable=body.flag("Attachable"),
        options=parse_options(body.text_map("Options")),
        labels=tuple(sorted(body.text_map("Labels").items())),
        ipam_options=tuple(sorted(ipam.text_map("Options").items())) if ipam.get("Options") is not None else None,
    )


def _refuse_kinds(body: request.Fields, driver: str) -> None:
    if body.flag("Ingress"):
        raise errors.Forbidden("Ingress network can only be global scope network")
    if body.text("Scope") == "swarm":
        raise errors.Forbidden("cannot create a swarm scoped network when swarm is not active")
    if driver in ("host", "null"):
        raise errors.Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "overlay":
        raise errors.Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
            "to swarm and try again."
        )
    if driver in ("macvlan", "ipvlan"):
        raise errors.NotSupported(f"network driver {driver} is not supported by this engine")
    if driver != "bridge":
        raise errors.NotFound(f'plugin "{driver}" not found')
    if body.flag("ConfigOnly") or body.section("ConfigFrom").text("Network"):
        raise errors.NotSupported("ConfigOnly and ConfigFrom: configuration networks are not supported by this engine")


def _addressing(entries: Sequence[request.Fields]) -> Addressing:
    chosen = [
        parse_addressing(
            one.text("Subnet"), one.text("IPRange"), one.text("Gateway"), one.text_map("AuxiliaryAddresses")
        )
        for one in entries
        if any(one.values())
    ]
    if len(chosen) > 1:
        raise errors.Forbidden("bridge driver doesn't support multiple subnets")
    return chosen[0] if chosen else Addressing()


def _matches(network: Network, filters: Mapping[str, Sequence[str]], used: set[str]) -> bool:
    """Whether the network passes every filter; values of one filter are alternatives, except of ``label``."""
    labels = dict(network.labels)
    for key, values in filters.items():
        if not values:
            continue
        if key == "name" and not any(value in network.name for value in values):
            return False
        if key == "id" and not any(value in network.id for value in values):
            return False
        if key == "driver" and network.driver not in values:
            return False
        if key == "scope" and "local" not in values:
            return False
        if key == "type" and ("builtin" if network.predefined else "custom") not in _known_types(values):
            return False
        if key == "label" and not all(_has_label(labels, value) for value in values):
            return False
        if key == "dangling" and _dangling(values) != (not network.predefined and network.id not in used):
            return False
    return True


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, separator, value = wanted.partition("=")
    return name in labels and (not separator or labels[name] == value)


def _known_types(values: Sequence[str]) -> Sequence[str]:
    for value in values:
        if value not in ("builtin", "custom"):
            raise errors.InvalidParameter(f"invalid filter: 'type'='{value}'")
    return values


def _dangling(values: Sequence[str]) -> bool:
    if len(values) > 1:
        raise errors.InvalidParameter('got more than one value for filter key "dangling"')
    if values[0] not in ("0", "false", "1", "true"):
        raise errors.InvalidParameter(
            'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
        )
    return values[0] in ("1", "true")


def _body(network: Network, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created_at,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": None if network.ipam_options is None else dict(network.ipam_options),
            "Config": _subnets(network),
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {endpoint.container_id: _container(endpoint) for endpoint in endpoints},
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }


def _subnets(network: Network) -> list[dict[str, Any]] | None:
    if not network.subnet:
        return None
    body: dict[str, Any] = {"Subnet": network.subnet}
    if network.ip_range:
        body["IPRange"] = network.ip_range
    body["Gateway"] = network.gateway
    if network.auxiliary:
        body["AuxiliaryAddresses"] = dict(network.auxiliary)
    return [body]


def _container(endpoint: Endpoint) -> dict[str, str]:
    return {
        "Name": endpoint.container_name,
        "EndpointID": endpoint.endpoint_id,
        "MacAddress": endpoint.hardware_address,
        "IPv4Address": f"{endpoint.address}/{endpoint.prefix}" if endpoint.address else "",
        "IPv6Address": "",
    }
