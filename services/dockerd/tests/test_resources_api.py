"""The API of volumes and networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from dockerd import errors
from dockerd.api import create_app
from dockerd.config import Config
from dockerd.networks import Endpoint, Network, NetworkService
from dockerd.networks.definition import Addressing, Definition
from dockerd.volumes import SCHEMA, VolumeService
from gantry.database import Database

BRIDGE = Network(
    "b" * 64,
    "bridge",
    "bridge",
    "2026-01-01T00:00:00.000000000Z",
    "172.30.0.0/16",
    "172.30.0.1",
    (("com.docker.network.bridge.name", "gantry0"),),
)
NONE = Network("0" * 64, "none", "null", "2026-01-01T00:00:00.000000000Z")


class Networks:
    """Two networks, and one container on one of them."""

    def networks(self) -> list[Network]:
        return [BRIDGE, NONE]

    def network(self, reference: str) -> Network:
        for network in self.networks():
            if reference in (network.name, network.id):
                return network
        raise errors.NotFound(f"network {reference} not found")

    created: ClassVar[list[Definition]] = []

    def create(self, wanted: Definition) -> Network:
        self.created.append(wanted)
        return Network("i" * 64, wanted.name, "bridge", "")

    def remove(self, reference: str) -> Network:
        return NetworkService.remove(self, reference)  # type: ignore[arg-type]

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("c1", "web", "bridge", BRIDGE.id, "e1", "s1", address="172.30.0.2", prefix=16),
            Endpoint("c2", "alone", "none", NONE.id, "e2", "s2"),
        ]


@pytest.fixture
def client(tmp_path: Path) -> Any:
    Networks.created.clear()
    events = SimpleNamespace(publish=lambda *_: None)
    config = Config(data_root=str(tmp_path))
    volumes = VolumeService(config, Database(tmp_path / "engine.db", [SCHEMA]), events)  # type: ignore[arg-type]
    volumes.start()
    engine = SimpleNamespace(volumes=volumes, networks=Networks(), config=config)
    return create_app(engine, ["networks", "volumes"]).test_client()  # type: ignore[arg-type]


def message(response: Any) -> tuple[int, str]:
    return response.status_code, response.get_json()["message"]


def test_volume_round(client: Any, tmp_path: Path) -> None:
    """Create, list, inspect, remove, with the fields of the API."""
    created = client.post("/v1.50/volumes/create", json={"Name": "v1", "Labels": {"a": "b"}})
    assert created.status_code == 201
    body = created.get_json()
    assert body.pop("CreatedAt").endswith("Z")
    assert body == {
        "Driver": "local",
        "Labels": {"a": "b"},
        "Mountpoint": f"{tmp_path}/volumes/v1/_data",
        "Name": "v1",
        "Options": None,
        "Scope": "local",
    }
    listed = client.get("/volumes").get_json()
    assert (listed["Volumes"], listed["Warnings"]) == ([client.get("/volumes/v1").get_json()], None)
    assert client.delete("/volumes/v1").status_code == 204
    assert message(client.get("/volumes/v1")) == (404, "get v1: no such volume")
    assert message(client.delete("/volumes/v1")) == (404, "get v1: no such volume")
    assert client.delete("/volumes/v1?force=1").status_code == 204


def test_volume_without_a_name(client: Any) -> None:
    """It gets one, and the label; without labels there are none."""
    assert client.post("/volumes/create", json={}).get_json()["Labels"] == {"com.docker.volume.anonymous": ""}
    assert client.post("/volumes/create", json={"Name": "vv"}).get_json()["Labels"] is None


def test_bad_volume_requests(client: Any) -> None:
    """Statuses and words of the real engine."""
    assert message(client.post("/volumes/create", json={"Name": "v1", "Driver": "nope"})) == (
        404,
        'create v1: error looking up volume plugin nope: plugin "nope" not found',
    )
    assert message(client.post("/volumes/create", json={"Name": "x"}))[0] == 400
    assert message(client.post("/volumes/create", json={"Name": 5}))[0] == 400
    assert message(client.get('/volumes?filters={"foo":["x"]}')) == (400, "invalid filter 'foo'")


def test_volume_prune_by_version(client: Any) -> None:
    """Before 1.42 named volumes go too."""
    client.post("/volumes/create", json={"Name": "named"})
    assert client.post("/v1.50/volumes/prune").get_json() == {"VolumesDeleted": [], "SpaceReclaimed": 0}
    assert client.post("/v1.41/volumes/prune").get_json()["VolumesDeleted"] == ["named"]


def test_network_list(client: Any) -> None:
    """Every field that the real engine shows, without containers."""
    bridge, none = client.get("/v1.50/networks").get_json()
    assert bridge == {
        "Name": "bridge",
        "Id": "b" * 64,
        "Created": "2026-01-01T00:00:00.000000000Z",
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [{"Subnet": "172.30.0.0/16", "Gateway": "172.30.0.1"}],
        },
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {"com.docker.network.bridge.name": "gantry0"},
        "Labels": {},
    }
    assert (none["Driver"], none["IPAM"]["Config"]) == ("null", None)


def test_network_inspect_shows_containers(client: Any) -> None:
    """Those on this network."""
    body = client.get("/networks/bridge").get_json()
    assert list(body["Containers"]) == ["c1"]
    assert body["Containers"]["c1"]["IPv4Address"] == "172.30.0.2/16"
    assert message(client.get("/networks/nope")) == (404, "network nope not found")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ('{"driver":["bridge"]}', ["bridge"]),
        ('{"name":["on"]}', ["none"]),
        ('{"id":["bb"]}', ["bridge"]),
        ('{"type":["custom"]}', []),
        ('{"type":["builtin"]}', ["bridge", "none"]),
        ('{"dangling":["true"]}', []),
        ('{"label":["x"]}', []),
        ('{"scope":["local"]}', ["bridge", "none"]),
    ],
)
def test_network_filters(client: Any, filters: str, names: list[str]) -> None:
    """Each of them."""
    assert [row["Name"] for row in client.get(f"/networks?filters={filters}").get_json()] == names


def test_removing_networks(client: Any) -> None:
    """Predefined ones stay, what is unknown is said, and a prune takes what nobody uses."""
    assert message(client.delete("/networks/bridge")) == (
        403,
        "bridge is a pre-defined network and cannot be removed",
    )
    assert message(client.delete("/networks/nope")) == (404, "network nope not found")
    assert client.post("/networks/prune").get_json() == {"NetworksDeleted": None}
    assert message(client.get('/networks?filters={"foo":["x"]}')) == (400, "invalid filter 'foo'")


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"Name": ""}, (400, "invalid name: name is empty")),
        ({"Name": "host"}, (403, "operation is not permitted on predefined host network ")),
        ({"Name": "x", "Driver": "nope"}, (404, 'plugin "nope" not found')),
        ({"Name": "x", "Driver": "host"}, (403, 'only one instance of "host" network is allowed')),
        ({"Name": "x", "IPAM": {"Driver": "nope"}}, (404, 'plugin "nope" not found')),
        ({"Name": "x", "Ingress": True}, (403, "Ingress network can only be global scope network")),
        ({"Name": "x", "EnableIPv4": False}, (400, "IPv4 or IPv6 must be enabled")),
        ({"Name": "x", "EnableIPv6": True}, (501, "EnableIPv6: IPv6 networks are not supported by this engine")),
        ({"Name": "x", "Driver": "macvlan"}, (501, "network driver macvlan is not supported by this engine")),
        (
            {"Name": "x", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}, {"Subnet": "10.2.0.0/24"}]}},
            (403, "bridge driver doesn't support multiple subnets"),
        ),
    ],
)
def test_networks_that_cannot_be(client: Any, body: dict[str, Any], answer: tuple[int, str]) -> None:
    """Statuses and words of the real engine, and what this one lacks by name."""
    assert message(client.post("/networks/create", json=body)) == answer


def test_what_a_network_is_made_of(client: Any) -> None:
    """All of the request arrives at the domain; empty entries of IPAM ask for nothing."""
    body = {
        "Name": "mine",
        "Internal": True,
        "Labels": {"b": "2", "a": "1"},
        "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.9", "AuxiliaryAddresses": {"x": "10.1.0.5"}}]},
    }
    reply = client.post("/networks/create", json=body)
    assert (reply.status_code, reply.get_json()) == (201, {"Id": "i" * 64, "Warning": ""})
    (wanted,) = Networks.created
    assert wanted == Definition(
        "mine",
        Addressing("10.1.0.0/24", gateway="10.1.0.9", auxiliary=(("x", "10.1.0.5"),)),
        internal=True,
        labels=(("a", "1"), ("b", "2")),
    )
    client.post("/networks/create", json={"Name": "plain", "IPAM": {"Driver": "default", "Config": [{}]}})
    assert Networks.created[1].addressing == Addressing()


def test_a_connection_needs_a_container(client: Any) -> None:
    """One without a name is refused before anything is looked for."""
    for action in ("connect", "disconnect"):
        answer = message(client.post(f"/networks/bridge/{action}", json={"Container": ""}))
        assert answer == (400, 'invalid name or ID supplied: ""')
