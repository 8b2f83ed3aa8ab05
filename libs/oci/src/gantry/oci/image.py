"""Image manifests, indexes and configurations: the OCI image-spec's and Docker's schema 2.

Parsing takes the bytes that were fetched, within bounds, and says which field is wrong; the bytes themselves stay the
truth (their digest is the identity), so nothing is ever parsed and written back under the same digest.
Writing gives compact JSON with the keys in the specification's order, so that equal values have equal digests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gantry.oci.digest import Digest, InvalidDigest
from gantry.oci.platform import Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_COMPRESSION: dict[str, str] = {
    OCI_LAYER: "",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
}
"""Every layer media type and how its tar is compressed."""

MAX_MANIFEST_SIZE = 4 << 20
MAX_CONFIG_SIZE = 8 << 20
MAX_LAYERS = 1024
MAX_MANIFESTS = 4096
_MAX_SIZE = (1 << 63) - 1

Json = dict[str, Any]


class InvalidImage(ValueError):
    """A document is not the manifest, index or configuration that it should be; the message names the field."""


def _document(content: bytes, what: str, limit: int) -> Json:
    if len(content) > limit:
        raise InvalidImage(f"{what}: {len(content)} bytes, more than the {limit} allowed")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidImage(f"{what}: not a JSON object")
    return value


def _text(value: Json, key: str, where: str, default: str = "") -> str:
    found = value.get(key)
    if found is None:
        return default
    if not isinstance(found, str):
        raise InvalidImage(f"{where}.{key}: not a string")
    return found


def _texts(value: Json, key: str, where: str, limit: int = 65536) -> tuple[str, ...]:
    found = value.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidImage(f"{where}.{key}: not a list of strings")
    if len(found) > limit:
        raise InvalidImage(f"{where}.{key}: {len(found)} entries, more than the {limit} allowed")
    return tuple(found)


def _mapping(value: Json, key: str, where: str) -> dict[str, str]:
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(item, str) for item in found.values()):
        raise InvalidImage(f"{where}.{key}: not an object of strings")
    return found


def _object(value: Json, key: str, where: str) -> Json:
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidImage(f"{where}.{key}: not an object")
    return found


def _objects(value: Json, key: str, where: str, limit: int) -> list[Json]:
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidImage(f"{where}.{key}: not a list of objects")
    if len(found) > limit:
        raise InvalidImage(f"{where}.{key}: {len(found)} entries, more than the {limit} allowed")
    return found


def _digest(value: Json, key: str, where: str) -> Digest:
    try:
        return Digest(_text(value, key, where))
    except InvalidDigest as error:
        raise InvalidImage(f"{where}.{key}: {error}") from None


def dump(value: object) -> bytes:
    """Compact JSON in the order of the keys given, as UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _without_empty(value: Json) -> Json:
    return {key: item for key, item in value.items() if item not in (None, "", (), [], {})}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What points at content: its type, digest and size in bytes (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""
    data: str = ""

    @classmethod
    def of(cls, media_type: str, content: bytes, **rest: Any) -> Descriptor:
        """The descriptor of these bytes."""
        return cls(media_type, Digest.of(content), len(content), **rest)

    @classmethod
    def from_json(cls, value: Json, where: str = "descriptor") -> Descriptor:
        """Raises InvalidImage naming the field below `where`."""
        size = value.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
            raise InvalidImage(f"{where}.size: not a size in bytes")
        platform = value.get("platform")
        return cls(
            media_type=_text(value, "mediaType", where),
            digest=_digest(value, "digest", where),
            size=size,
            urls=_texts(value, "urls", where, 64),
            annotations=_mapping(value, "annotations", where),
            platform=_platform(_object(value, "platform", where), f"{where}.platform") if platform else None,
            artifact_type=_text(value, "artifactType", where),
            data=_text(value, "data", where),
        )

    def to_json(self) -> Json:
        """The JSON object, empty fields left out."""
        return {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
            **_without_empty(
                {
                    "urls": list(self.urls),
                    "annotations": dict(sorted(self.annotations.items())),
                    "data": self.data,
                    "platform": _platform_json(self.platform) if self.platform else None,
                    "artifactType": self.artifact_type,
                }
            ),
        }


def _platform(value: Json, where: str) -> Platform:
    return Platform(
        os=_text(value, "os", where),
        architecture=_text(value, "architecture", where),
        variant=_text(value, "variant", where),
        os_version=_text(value, "os.version", where),
        os_features=_texts(value, "os.features", where, 64),
    )


def _platform_json(platform: Platform) -> Json:
    return {
        "architecture": platform.architecture,
        "os": platform.os,
        **_without_empty(
            {
                "os.version": platform.os_version,
                "os.features": list(platform.os_features),
                "variant": platform.variant,
            }
        ),
    }


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image: its configuration and its layers from the lowest up (manifest.md)."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: dict[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Raises InvalidImage naming the field."""
        value = _document(content, "manifest", MAX_MANIFEST_SIZE)
        _check_schema(value, "manifest", MANIFEST_TYPES)
        if "manifests" in value or "fsLayers" in value:
            raise InvalidImage("manifest: has the fields of another document")
        if not isinstance(value.get("config"), dict):
            raise InvalidImage("manifest.config: missing")
        layers = _objects(value, "layers", "manifest", MAX_LAYERS)
        subject = _object(value, "subject", "manifest")
        return cls(
            config=Descriptor.from_json(value["config"], "manifest.config"),
            layers=tuple(Descriptor.from_json(item, f"manifest.layers[{i}]") for i, item in enumerate(layers)),
            media_type=_text(value, "mediaType", "manifest", OCI_MANIFEST),
            annotations=_mapping(value, "annotations", "manifest"),
            artifact_type=_text(value, "artifactType", "manifest"),
            subject=Descriptor.from_json(subject, "manifest.subject") if subject else None,
        )

    def to_bytes(self) -> bytes:
        """The document, keys in the specification's order."""
        return dump(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                **_without_empty({"artifactType": self.artifact_type}),
                "config": self.config.to_json(),
                "layers": [layer.to_json() for layer in self.layers],
                **_without_empty(
                    {
                        "subject": self.subject.to_json() if self.subject else None,
                        "annotations": dict(sorted(self.annotations.items())),
                    }
                ),
            }
        )


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests for several platforms (image-index.md; Docker's manifest list)."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> Index:
        """Raises InvalidImage naming the field."""
        value = _document(content, "index", MAX_MANIFEST_SIZE)
        _check_schema(value, "index", INDEX_TYPES)
        if "layers" in value or "config" in value or "fsLayers" in value:
            raise InvalidImage("index: has the fields of another document")
        manifests = _objects(value, "manifests", "index", MAX_MANIFESTS)
        return cls(
            manifests=tuple(Descriptor.from_json(item, f"index.manifests[{i}]") for i, item in enumerate(manifests)),
            media_type=_text(value, "mediaType", "index", OCI_INDEX),
            annotations=_mapping(value, "annotations", "index"),
        )

    def to_bytes(self) -> bytes:
        """The document, keys in the specification's order."""
        return dump(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "manifests": [manifest.to_json() for manifest in self.manifests],
                **_without_empty({"annotations": dict(sorted(self.annotations.items()))}),
            }
        )


def _check_schema(value: Json, what: str, types: frozenset[str]) -> None:
    if value.get("schemaVersion") != 2:
        raise InvalidImage(f"{what}.schemaVersion: {value.get('schemaVersion')!r}, expected 2")
    media_type = value.get("mediaType")
    if media_type is not None and media_type not in types:
        raise InvalidImage(f"{what}.mediaType: {media_type!r} is not of {what} type")


@dataclass(frozen=True, slots=True)
class History:
    """One step of an image's making (config.md "history")."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    def to_json(self) -> Json:
        """The JSON object, empty fields left out."""
        return _without_empty(
            {
                "created": self.created,
                "created_by": self.created_by,
                "author": self.author,
                "comment": self.comment,
                "empty_layer": self.empty_layer or None,
            }
        )


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """How to tell that a container works (Docker's extension); durations in nanoseconds."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    def to_json(self) -> Json:
        """The JSON object, empty fields left out."""
        return {
            key: value
            for key, value in (
                ("Test", list(self.test)),
                ("Interval", self.interval),
                ("Timeout", self.timeout),
                ("StartPeriod", self.start_period),
                ("StartInterval", self.start_interval),
                ("Retries", self.retries),
            )
            if value
        }


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """What a container of the image runs by default (config.md "config", with Docker's extensions)."""

    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout: int | None = None
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Json, where: str = "config") -> ExecutionConfig:
        """Raises InvalidImage naming the field below `where`."""
        stop_timeout = value.get("StopTimeout")
        if stop_timeout is not None and not isinstance(stop_timeout, int):
            raise InvalidImage(f"{where}.StopTimeout: not a number")
        health = _object(value, "Healthcheck", where)
        return cls(
            user=_text(value, "User", where),
            exposed_ports=tuple(_object(value, "ExposedPorts", where)),
            env=_texts(value, "Env", where),
            entrypoint=None if value.get("Entrypoint") is None else _texts(value, "Entrypoint", where),
            cmd=None if value.get("Cmd") is None else _texts(value, "Cmd", where),
            volumes=tuple(_object(value, "Volumes", where)),
            working_dir=_text(value, "WorkingDir", where),
            labels=_mapping(value, "Labels", where),
            stop_signal=_text(value, "StopSignal", where),
            stop_timeout=stop_timeout,
            args_escaped=value.get("ArgsEscaped") is True,
            healthcheck=_healthcheck(health, f"{where}.Healthcheck") if health else None,
            on_build=_texts(value, "OnBuild", where),
            shell=_texts(value, "Shell", where),
        )

    def to_json(self) -> Json:
        """The JSON object, empty fields left out."""
        return _without_empty(
            {
                "User": self.user,
                "ExposedPorts": {port: {} for port in sorted(self.exposed_ports)},
                "Env": list(self.env),
                "Entrypoint": list(self.entrypoint) if self.entrypoint is not None else None,
                "Cmd": list(self.cmd) if self.cmd is not None else None,
                "Healthcheck": self.healthcheck.to_json() if self.healthcheck else None,
                "ArgsEscaped": self.args_escaped or None,
                "Volumes": {path: {} for path in sorted(self.volumes)},
                "WorkingDir": self.working_dir,
                "OnBuild": list(self.on_build),
                "Labels": dict(sorted(self.labels.items())),
                "StopSignal": self.stop_signal,
                "StopTimeout": self.stop_timeout,
                "Shell": list(self.shell),
            }
        )


def _healthcheck(value: Json, where: str) -> Healthcheck:
    numbers = {}
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"):
        number = value.get(key) or 0
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidImage(f"{where}.{key}: not a number")
        numbers[key] = number
    return Healthcheck(
        test=_texts(value, "Test", where),
        interval=numbers["Interval"],
        timeout=numbers["Timeout"],
        start_period=numbers["StartPeriod"],
        start_interval=numbers["StartInterval"],
        retries=numbers["Retries"],
    )


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's configuration (config.md; Docker's is the same with more fields, which `extra` keeps)."""

    platform: Platform
    diff_ids: tuple[Digest, ...] = ()
    config: ExecutionConfig = field(default_factory=ExecutionConfig)
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""
    extra: Json = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> ImageConfig:
        """Raises InvalidImage naming the field."""
        value = _document(content, "image config", MAX_CONFIG_SIZE)
        where = "image config"
        rootfs = _object(value, "rootfs", where)
        if rootfs and rootfs.get("type") != "layers":
            raise InvalidImage(f"{where}.rootfs.type: {rootfs.get('type')!r}, expected 'layers'")
        diff_ids = _texts(rootfs, "diff_ids", f"{where}.rootfs", MAX_LAYERS)
        try:
            digests = tuple(Digest(item) for item in diff_ids)
        except InvalidDigest as error:
            raise InvalidImage(f"{where}.rootfs.diff_ids: {error}") from None
        history = _objects(value, "history", where, 65536)
        known = {"architecture", "os", "variant", "os.version", "os.features", "config", "rootfs", "history"}
        return cls(
            platform=_platform(value, where),
            diff_ids=digests,
            config=ExecutionConfig.from_json(_object(value, "config", where), f"{where}.config"),
            history=tuple(_history(item, f"{where}.history[{i}]") for i, item in enumerate(history)),
            created=_text(value, "created", where),
            author=_text(value, "author", where),
            extra={key: item for key, item in value.items() if key not in known | {"created", "author"}},
        )

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The identity of each layer on top of those below it, from the lowest up."""
        return chain_ids(self.diff_ids)

    @property
    def chain_id(self) -> Digest | None:
        """The identity of the whole root file system; None for an image without layers."""
        ids = self.chain_ids
        return ids[-1] if ids else None

    def to_bytes(self) -> bytes:
        """The document, keys in the specification's order."""
        return dump(
            {
                **_without_empty({"created": self.created, "author": self.author}),
                **_platform_json(self.platform),
                "config": self.config.to_json(),
                "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in self.diff_ids]},
                **_without_empty({"history": [step.to_json() for step in self.history]}),
                **dict(sorted(self.extra.items())),
            }
        )


def _history(value: Json, where: str) -> History:
    return History(
        created=_text(value, "created", where),
        created_by=_text(value, "created_by", where),
        author=_text(value, "author", where),
        comment=_text(value, "comment", where),
        empty_layer=value.get("empty_layer") is True,
    )


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """config.md "Layer ChainID": the first is the diff id itself, each next the digest of `chain SPACE diff`."""
    ids: list[Digest] = []
    for diff_id in diff_ids:
        ids.append(Digest.of(f"{ids[-1]} {diff_id}".encode()) if ids else diff_id)
    return tuple(ids)


def document_type(content: bytes) -> str:
    """The media type of a manifest or index that came without one, told by its fields.

    Raises InvalidImage for anything else, by name for Docker's schema 1.
    """
    value = _document(content, "manifest", MAX_MANIFEST_SIZE)
    if value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise InvalidImage("manifest: Docker image manifest version 2, schema 1 is not supported")
    media_type = _text(value, "mediaType", "manifest")
    if "manifests" in value and not ("layers" in value or "config" in value):
        found = media_type or OCI_INDEX
        allowed = INDEX_TYPES
    elif "config" in value and "manifests" not in value:
        found = media_type or OCI_MANIFEST
        allowed = MANIFEST_TYPES
    else:
        raise InvalidImage("manifest: neither a manifest nor an index")
    if found not in allowed:
        raise InvalidImage(f"manifest.mediaType: {found!r} does not fit its fields")
    return found
