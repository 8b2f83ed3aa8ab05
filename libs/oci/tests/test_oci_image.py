from __future__ import annotations

import json

import pytest

from gantry.oci import image
from gantry.oci.digest import Digest
from gantry.oci.image import (
    Descriptor,
    ExecutionConfig,
    Healthcheck,
    History,
    ImageConfig,
    Index,
    InvalidImage,
    Manifest,
    chain_ids,
    document_type,
)
from gantry.oci.platform import Platform

CONFIG = Descriptor.of(image.DOCKER_CONFIG, b"{}")
LAYER = Descriptor.of(image.DOCKER_LAYER_GZIP, b"layer")


def test_a_manifest_survives_writing_and_parsing() -> None:
    """What is written is what is read, and equal values have equal bytes."""
    manifest = Manifest(CONFIG, (LAYER,), image.DOCKER_MANIFEST, {"b": "2", "a": "1"})
    assert Manifest.parse(manifest.to_bytes()) == manifest
    same = Manifest(CONFIG, (LAYER,), image.DOCKER_MANIFEST, {"a": "1", "b": "2"})
    assert same.to_bytes() == manifest.to_bytes()
    assert document_type(manifest.to_bytes()) == image.DOCKER_MANIFEST


def test_an_index_keeps_platforms() -> None:
    """Platforms of the entries are read and written."""
    entry = Descriptor.of(image.OCI_MANIFEST, b"m", platform=Platform("linux", "arm", "v7"))
    index = Index((entry,))
    assert Index.parse(index.to_bytes()) == index
    assert document_type(index.to_bytes()) == image.OCI_INDEX


def test_an_image_config_survives_with_what_docker_adds() -> None:
    """Unknown top-level fields are kept; the execution config is typed."""
    config = ImageConfig(
        platform=Platform("linux", "amd64"),
        diff_ids=(Digest.of(b"1"), Digest.of(b"2")),
        config=ExecutionConfig(
            env=("PATH=/bin",),
            cmd=("sh",),
            exposed_ports=("80/tcp",),
            labels={"a": "b"},
            healthcheck=Healthcheck(test=("CMD", "true"), interval=5),
        ),
        history=(History(created_by="x", empty_layer=True),),
        created="2024-01-01T00:00:00Z",
        extra={"docker_version": "1"},
    )
    assert ImageConfig.parse(config.to_bytes()) == config


def test_chain_ids_follow_the_specification() -> None:
    """The first is the diff id; the next hashes the chain so far and the diff id."""
    first, second = Digest.of(b"1"), Digest.of(b"2")
    chain = chain_ids((first, second))
    assert chain == (first, Digest.of(f"{first} {second}".encode()))
    assert chain_ids(()) == ()


def _manifest(**change: object) -> bytes:
    value: dict[str, object] = json.loads(Manifest(CONFIG, (LAYER,)).to_bytes())
    value.update(change)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100000, "not valid JSON"),
        (b" " * (image.MAX_MANIFEST_SIZE + 1), "more than"),
        (_manifest(schemaVersion=1), "schemaVersion"),
        (_manifest(mediaType=image.OCI_INDEX), "mediaType"),
        (_manifest(config=None), "manifest.config: missing"),
        (_manifest(layers={}), "manifest.layers: not a list"),
        (_manifest(layers=[{"digest": "x", "size": 1}]), r"manifest.layers\[0\].digest"),
        (_manifest(layers=[{"digest": str(LAYER.digest), "size": -1}]), r"layers\[0\].size"),
        (_manifest(layers=[{"digest": str(LAYER.digest), "size": True}]), r"layers\[0\].size"),
        (_manifest(annotations={"a": 1}), "manifest.annotations"),
        (_manifest(manifests=[]), "fields of another document"),
    ],
)
def test_bad_manifests_name_the_field(content: bytes, message: str) -> None:
    """A registry is not trusted: every field has its type and its bounds."""
    with pytest.raises(InvalidImage, match=message):
        Manifest.parse(content)


def test_too_many_layers_are_refused() -> None:
    """The number of layers is bounded."""
    content = _manifest(layers=[LAYER.to_json()] * (image.MAX_LAYERS + 1))
    with pytest.raises(InvalidImage, match="more than the 1024"):
        Manifest.parse(content)


def test_schema_one_is_refused_by_name() -> None:
    """The old manifest is told from garbage."""
    with pytest.raises(InvalidImage, match="schema 1 is not supported"):
        document_type(b'{"schemaVersion":1,"fsLayers":[]}')
    with pytest.raises(InvalidImage, match="neither a manifest nor an index"):
        document_type(b'{"schemaVersion":2}')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"rootfs":{"type":"x"}}', "rootfs.type"),
        (b'{"rootfs":{"type":"layers","diff_ids":["x"]}}', "diff_ids"),
        (b'{"config":{"Env":"x"}}', "config.Env: not a list of strings"),
        (b'{"config":{"Labels":[]}}', "config.Labels"),
        (b'{"history":[1]}', "history"),
        (b'{"config":{"Healthcheck":{"Interval":"x"}}}', "Healthcheck.Interval"),
    ],
)
def test_bad_image_configs_name_the_field(content: bytes, message: str) -> None:
    """So does the configuration."""
    with pytest.raises(InvalidImage, match=message):
        ImageConfig.parse(content)
