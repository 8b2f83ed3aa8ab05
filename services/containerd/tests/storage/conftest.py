"""Stores in a temporary directory, layers and images to put into them, and a registry to talk to."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from containerd.content import ContentStore
from containerd.descriptors import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor
from containerd.diff import Applier, Differ
from containerd.gc import Collector
from containerd.images import ImageStore
from containerd.metadata.leases import LeaseStore
from containerd.metadata.schema import MIGRATIONS
from containerd.scope import Scope
from containerd.snapshots import NativeSnapshotter, OverlaySnapshotter, Snapshotter
from containerd.transfer.service import TransferService
from gantry.database import Database


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class World:
    """All stores over one database, and what was said to their observers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = Database(directory / "metadata.db", MIGRATIONS)
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.dirty = 0
        notify: dict[str, Any] = {"publish": self._publish, "dirty": self._dirty}
        self.content = ContentStore(directory / "content", self.database, **notify)
        self.images = ImageStore(self.database, **notify)
        self.leases = LeaseStore(self.database)
        self.snapshotters: dict[str, Snapshotter] = {
            "overlayfs": OverlaySnapshotter(directory / "overlayfs", self.database, **notify),
            "native": NativeSnapshotter(directory / "native", self.database, **notify),
        }
        self.applier = Applier(self.content)
        self.differ = Differ(self.content)
        self.collector = Collector(self.database, self.content, self.snapshotters)
        self.transfers = TransferService(self.content, self.images, self.snapshotters, self.leases, self.applier)
        self.scope = Scope("test")

    def _publish(self, scope: Scope, topic: str, fields: Any) -> None:
        self.events.append((scope.namespace, topic, dict(fields)))

    def _dirty(self) -> None:
        self.dirty += 1

    def put(self, data: bytes, *, scope: Scope | None = None, labels: dict[str, str] | None = None) -> str:
        """Write a blob and return its digest."""
        where = scope or self.scope
        with self.content.writer(where, f"put-{digest_of(data)}") as writer:
            writer.truncate()
            writer.write(data)
            return writer.commit(labels=labels)

    def files(self) -> list[str]:
        """Return the digests of the blobs on the disk."""
        return sorted(self.content.files.digests())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Stores of one's own."""
    made = World(tmp_path)
    yield made
    made.transfers.close()
    made.database.close()


@pytest.fixture
def root() -> None:
    """Only with root's rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def tar(*entries: tuple[str, Any]) -> bytes:
    """Return an archive: (name, content) is a file, (name, None) a directory, and a TarInfo stands for itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            data = content if isinstance(content, bytes) else b""
            if isinstance(content, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Return a symbolic (or hard) link for :func:`tar`."""
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, target
    return info


@dataclass
class ImageFiles:
    """An image as bytes: layers as they are stored, uncompressed layers, configuration, manifest."""

    layers: list[bytes]
    plain: list[bytes]
    config: bytes
    manifest: bytes
    layer_type: str = f"{DOCKER_LAYER}.gzip"

    @property
    def target(self) -> Descriptor:
        """The manifest's descriptor."""
        return Descriptor(DOCKER_MANIFEST, digest_of(self.manifest), len(self.manifest))

    @property
    def blobs(self) -> dict[str, bytes]:
        """Configuration and layers by digest."""
        return {digest_of(data): data for data in (self.config, *self.layers)}

    @property
    def diff_ids(self) -> list[str]:
        """Digests of the uncompressed layers."""
        return [digest_of(layer) for layer in self.plain]

    def docker_archive(self, *tags: str) -> bytes:
        """Return the image as an archive in the form of ``docker save``."""
        entry = {"Config": "config.json", "RepoTags": list(tags), "Layers": []}
        files: list[tuple[str, Any]] = [("config.json", self.config)]
        for number, layer in enumerate(self.plain):
            files.append((f"{number}/layer.tar", layer))
            entry["Layers"].append(f"{number}/layer.tar")  # type: ignore[union-attr,attr-defined]
        files.append(("manifest.json", json.dumps([entry]).encode()))
        return tar(*files)


def make_image(*plain: bytes, compress: str = "gzip", architecture: str = "amd64") -> ImageFiles:
    """Make an image of uncompressed layers."""
    from containerd.archive.compression import compressor

    layers = []
    for layer in plain:
        packer = compressor(compress)
        layers.append(packer.compress(layer) + packer.flush())
    media_type = f"{DOCKER_LAYER}.{compress}" if compress else DOCKER_LAYER
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in plain]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": Descriptor(DOCKER_CONFIG, digest_of(config), len(config)).to_json(),
            "layers": [Descriptor(media_type, digest_of(data), len(data)).to_json() for data in layers],
        }
    ).encode()
    return ImageFiles(layers, list(plain), config, manifest, media_type)


@pytest.fixture
def image() -> ImageFiles:
    """An image of two layers, the second of which changes and deletes files of the first."""
    first = tar(("bin", None), ("bin/sh", b"#!shell"), ("etc", None), ("etc/motd", b"hello"), ("old", b"old"))
    second = tar(("etc", None), ("etc/motd", b"changed"), (".wh.old", b""), ("new", b"new"))
    return make_image(first, second)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on a free port of the loopback; gives its ``host:port``."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry")
    directory = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v2/", process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "docker-registry has ended"
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.02)


@pytest.fixture
def helpers() -> Any:
    """The functions of this file, for tests to make archives and images with."""

    class Helpers:
        digest_of = staticmethod(digest_of)
        tar = staticmethod(tar)
        link = staticmethod(link)
        make_image = staticmethod(make_image)

    return Helpers
