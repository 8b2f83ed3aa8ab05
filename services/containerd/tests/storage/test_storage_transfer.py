"""Transfers end to end, below the gRPC services: pull, push, import, export, tag, and unpacking."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from containerd.archive.compression import compressor
from containerd.descriptors import DOCKER_MANIFEST_LIST, OCI_INDEX, Descriptor
from containerd.diff.temporary import mounted
from containerd.errors import ContainerdError, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from containerd.images import Image
from containerd.scope import Scope
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import (
    ExportStream,
    ImageReference,
    ImageStoreEndpoint,
    ImportStream,
    OCIRegistry,
    UnpackConfiguration,
)
from containerd.transfer.importer import ArchiveImporter
from containerd.transfer.service import Connections
from containerd.transfer.unpack import chain_ids
from gantry.oci.platform import Platform

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]

AMD64 = Platform("linux", "amd64")
UNPACK = (UnpackConfiguration(AMD64),)
ANY_NAME = (ImageReference("import", is_prefix=True, allow_overwrite=True),)


def transfer(world: Any, source: Any, destination: Any, scope: Scope | None = None, **connections: Any) -> None:
    """Do one transfer."""
    world.transfers.transfer(scope or world.scope, source, destination, Connections(**connections), Cancellation())


def load(world: Any, archive: bytes, scope: Scope | None = None, **options: Any) -> list[str]:
    """Import an archive; returns the names of the images that are there afterwards."""
    destination = ImageStoreEndpoint(**{"extra_references": ANY_NAME, "unpacks": UNPACK, **options})
    pieces = (archive[start : start + 10_000] for start in range(0, len(archive), 10_000))
    transfer(world, ImportStream("s"), destination, scope, received=pieces)
    return [image.name for image in world.images.list(scope or world.scope)]


def save(world: Any, *names: str, **options: Any) -> bytes:
    """Export images."""
    sent: list[bytes] = []
    references = tuple(ImageReference(name) for name in names)
    transfer(world, ImageStoreEndpoint(extra_references=references), ExportStream("s", **options), send=sent.append)
    return b"".join(sent)


def root_files(world: Any, chain_id: str, scope: Scope | None = None) -> dict[str, bytes]:
    """Return the files of an unpacked image."""
    snapshotter = world.snapshotters["overlayfs"]
    mounts = snapshotter.view(scope or world.scope, f"look-{os.urandom(4).hex()}", chain_id)
    with mounted(mounts) as directory:
        return {
            str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
        }


EXPECTED = {"bin/sh": b"#!shell", "etc/motd": b"changed", "new": b"new"}


def test_chain_ids_are_the_specifications() -> None:
    """The example of the image specification: each id covers the ones below."""
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    import hashlib

    expected = "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert chain_ids([first, second]) == [first, expected]
    assert chain_ids([]) == []


def test_docker_archive_becomes_an_unpacked_image(world: Any, image: Any) -> None:
    """What ``docker save`` wrote before version 25 is loaded, unpacked, and survives a collection."""
    assert load(world, image.docker_archive("busybox:1", "other")) == [
        "docker.io/library/busybox:1",
        "docker.io/library/other:latest",
    ]
    top = chain_ids(image.diff_ids)[-1]
    world.collector.collect()
    assert root_files(world, top) == EXPECTED
    assert world.leases.list("test") == []
    info = world.content.info(world.scope, image.diff_ids[0])
    assert info.labels["containerd.io/uncompressed"] == image.diff_ids[0]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_archive_is_recognised(world: Any, image: Any, compression: str) -> None:
    """As files are piped into ``docker load``."""
    packer = compressor(compression)
    assert load(world, packer.compress(image.docker_archive("a:1")) + packer.flush()) == ["docker.io/library/a:1"]


def test_layers_can_be_compressed_on_import(world: Any, image: Any) -> None:
    """With force_compress the stored layers are gzip, and a second import finds them."""
    archive = image.docker_archive("a:1")
    source = ImportStream("s", force_compress=True)
    for _ in range(2):
        destination = ImageStoreEndpoint(extra_references=ANY_NAME, unpacks=UNPACK)
        transfer(world, source, destination, received=[archive])
        target = world.images.get(world.scope, "docker.io/library/a:1").target
        manifest = json.loads(world.content.read(world.scope, target.digest, 1 << 20))
        assert {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]} == {"gzip"}
    assert root_files(world, chain_ids(image.diff_ids)[-1]) == EXPECTED


def test_export_and_import_again(world: Any, image: Any) -> None:
    """An exported archive is an OCI layout and a docker archive in one, and gives the same image elsewhere."""
    load(world, image.docker_archive("busybox:1"))
    name = "docker.io/library/busybox:1"
    archive = save(world, name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        names = opened.getnames()
        manifest = json.load(opened.extractfile("manifest.json"))  # type: ignore[arg-type]
        index = json.load(opened.extractfile("index.json"))  # type: ignore[arg-type]
    assert names == sorted(names)
    assert manifest[0]["RepoTags"] == ["busybox:1"]
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == name
    assert index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == "1"
    assert save(world, name) == archive
    other = Scope("other")
    assert load(world, archive, other) == [name]
    assert world.images.get(other, name).target.digest == world.images.get(world.scope, name).target.digest
    assert root_files(world, chain_ids(image.diff_ids)[-1], other) == EXPECTED


def test_export_without_the_docker_file(world: Any, image: Any) -> None:
    """skip_compatibility_manifest leaves manifest.json out."""
    load(world, image.docker_archive("a:1"))
    with tarfile.open(
        fileobj=io.BytesIO(save(world, "docker.io/library/a:1", skip_compatibility_manifest=True))
    ) as opened:
        assert "manifest.json" not in opened.getnames()


def test_export_of_what_is_not_there(world: Any, image: Any) -> None:
    """An unknown image, and one whose content is gone, are found out before anything is sent."""
    with pytest.raises(NotFound, match='image "x": not found'):
        save(world, "x")
    load(world, image.docker_archive("a:1"))
    world.content.delete(world.scope, image.diff_ids[0])
    sent: list[bytes] = []
    source = ImageStoreEndpoint("docker.io/library/a:1")
    with pytest.raises(NotFound, match=image.diff_ids[0]):
        transfer(world, source, ExportStream("s"), send=sent.append)
    assert sent == []


def test_a_blob_that_rotted_on_the_disk_is_not_exported(world: Any, image: Any) -> None:
    """The exporter verifies what it sends."""
    load(world, image.docker_archive("a:1"))
    path = world.content.files.blob(image.diff_ids[0])
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(600)
        file.write(b"rot")
    with pytest.raises(FailedPrecondition, match="damaged on the disk"):
        save(world, "docker.io/library/a:1")


def _without(archive: bytes, name: str) -> bytes:
    """Return an archive without one of its files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            if member.name != name:
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return buffer.getvalue()


def test_archives_that_are_none(world: Any, image: Any, helpers: Any) -> None:
    """Each mistake is named; no image, ingest or lease is left."""
    docker = image.docker_archive("a:1")
    manifest = [{"Config": "c", "RepoTags": ["a:1"], "Layers": []}]

    def with_manifest(*files: tuple[str, bytes], **fields: Any) -> bytes:
        return bytes(helpers.tar(*files, ("manifest.json", json.dumps([{**manifest[0], **fields}]).encode())))

    digest = "0" * 64
    cases: dict[str, bytes] = {
        "unrecognized image format": helpers.tar(("a", b"1")),
        "layer '0/layer.tar' not found": _without(docker, "0/layer.tar"),
        "image config 'config.json' not found": _without(docker, "config.json"),
        "manifest.json is not JSON": helpers.tar(("manifest.json", b"{")),
        "manifest.json is not a JSON list": helpers.tar(("manifest.json", b"{}")),
        "an entry is not an object": helpers.tar(("manifest.json", b"[1]")),
        "image config is not named": with_manifest(Config=None),
        "Layers is not a list": with_manifest(("c", b"{}"), Layers="x"),
        "RepoTags is not a list": with_manifest(("c", b"{}"), RepoTags="x"),
        "image config .* is not JSON": with_manifest(("c", b"{")),
        "rootfs.diff_ids": with_manifest(("c", b'{"rootfs":{"diff_ids":["../x"]}}')),
        "normalize image ref 'A:B:C'": with_manifest(("c", b"{}"), RepoTags=["A:B:C"]),
        "unsupported OCI version '9'": helpers.tar(("oci-layout", b'{"imageLayoutVersion":"9"}')),
        "missing index.json": helpers.tar(("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')),
        "another content than its name says|unexpected commit digest": helpers.tar(
            (f"blobs/sha256/{digest}", b"x"), ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        ),
        "unexpected end of archive": docker[: len(docker) // 3],
        "number of layers and diffIDs don't match": with_manifest(
            ("c", b'{"os":"linux","architecture":"amd64"}'), ("l", b"x"), Layers=["l"]
        ),
        "invalid tar header": b"x" * 2048,
    }
    for message, archive in cases.items():
        with pytest.raises((InvalidArgument, FailedPrecondition), match=message):
            load(world, archive)
        assert world.images.list(world.scope) == []
        assert world.leases.list("test") == []
        world.collector.collect()
        assert world.files() == [], message
        assert world.content.statuses(world.scope) == [], message
        assert world.content.locked() == set(), message


def test_links_between_layers_are_followed_but_not_for_ever(world: Any, image: Any, helpers: Any) -> None:
    """Old archives link equal layers; a circle of links is refused."""
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [image.diff_ids[0]] * 2}}
    ).encode()
    layer = image.plain[0]
    manifest = json.dumps([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}]).encode()
    files = [("c", config), ("x/layer.tar", layer), ("y/layer.tar", helpers.link("../x/layer.tar"))]
    assert load(world, helpers.tar(*files, ("manifest.json", manifest))) == ["docker.io/library/a:1"]
    files = [
        ("c", config),
        ("x/layer.tar", helpers.link("../y/layer.tar")),
        ("y/layer.tar", helpers.link("../x/layer.tar")),
    ]
    with pytest.raises(InvalidArgument, match=r"layer 'x/layer.tar' not found"):
        load(world, helpers.tar(*files, ("manifest.json", manifest)))


def test_too_many_entries(world: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive cannot make the daemon store endless small files."""
    import containerd.transfer.importer as module

    monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    with pytest.raises(InvalidArgument, match="more than 5 entries"):
        ArchiveImporter(world.content, world.scope).run([helpers.tar(*((f"f{n}", b"") for n in range(7)))])


def test_names_from_an_archive(world: Any, image: Any, helpers: Any) -> None:
    """Prefix, overwrite and digest decide which names an import makes, as for the real daemon."""
    load(world, image.docker_archive("busybox:1"))
    archive = save(world, "docker.io/library/busybox:1")
    digest = world.images.get(world.scope, "docker.io/library/busybox:1").target.digest
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        index = helpers.digest_of(opened.extractfile("index.json").read())  # type: ignore[union-attr]

    def names(namespace: str, **reference: Any) -> list[str]:
        references = (ImageReference(is_prefix=True, **reference),)
        return load(world, archive, Scope(namespace), extra_references=references, unpacks=())

    assert names("a", name="docker.io/library/busybox") == ["docker.io/library/busybox:1"]
    assert names("b", name="docker.io/library/busy") == []
    assert names("c", name="x", allow_overwrite=True) == ["docker.io/library/busybox:1"]
    of_index, of_image = (f"docker.io/library/busybox@{item}" for item in (index, digest))
    assert names("d", name="docker.io/library/busybox", add_digest=True) == [
        "docker.io/library/busybox:1",
        *sorted((of_index, of_image)),
    ]
    assert names("e", name="docker.io/library/busybox", add_digest=True, skip_named_digest=True) == [
        "docker.io/library/busybox:1",
        of_index,
    ]


def test_push_and_pull_through_a_real_registry(world: Any, image: Any, registry: str) -> None:
    """What is pushed can be pulled elsewhere, unpacked; pushing again sends nothing."""
    load(world, image.docker_archive("busybox:1"))
    target = f"{registry}/some/busybox:1"
    transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(target))
    reports: list[Any] = []
    transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(target), progress=reports.append)
    events = [report.event for report in reports]
    assert events.count("already exists") == 4
    assert events[-1] == f"Completed push to OCI Registry ({target})"
    assert "complete" not in events
    other = Scope("elsewhere")
    reports.clear()
    transfer(
        world,
        OCIRegistry(target),
        ImageStoreEndpoint(target, platforms=(AMD64,), unpacks=UNPACK),
        other,
        progress=reports.append,
    )
    assert root_files(world, chain_ids(image.diff_ids)[-1], other) == EXPECTED
    digest = world.images.get(world.scope, "docker.io/library/busybox:1").target.digest
    assert world.images.get(other, target).target.digest == digest
    by_digest = OCIRegistry(f"{registry}/some/busybox@{digest}")
    transfer(world, by_digest, ImageStoreEndpoint("pinned"), Scope("third"))
    assert world.images.get(Scope("third"), "pinned").target.digest == digest


def test_a_blob_is_mounted_from_another_repository(world: Any, image: Any, registry: str) -> None:
    """A registry that has the layer elsewhere is not sent it again."""
    load(world, image.docker_archive("busybox:1"))
    name = f"{registry}/one/repo:1"
    transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(name))
    scope = Scope("m")
    transfer(world, OCIRegistry(name), ImageStoreEndpoint(name), scope)
    reports: list[Any] = []
    transfer(world, ImageStoreEndpoint(name), OCIRegistry(f"{registry}/two/repo:1"), scope, progress=reports.append)
    events = [report.event for report in reports if report.descriptor and report.name.startswith("layer-")]
    assert events == ["waiting", "waiting", "already exists", "already exists"] or set(events) == {
        "waiting",
        "already exists",
    }


def _index(world: Any, scope: Scope, *images: tuple[Any, str], media_type: str = OCI_INDEX) -> Descriptor:
    """Store images and an index of them; the strings are architectures."""
    manifests = []
    for made, architecture in images:
        for data in (*made.layers, made.config, made.manifest):
            try:
                world.put(data, scope=scope)
            except ContainerdError:
                continue
        entry = made.target.to_json()
        entry["platform"] = {"os": "linux", "architecture": architecture}
        manifests.append(entry)
    data = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()
    return Descriptor(media_type, world.put(data, scope=scope), len(data))


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_MANIFEST_LIST])
def test_the_right_platform_of_an_index_is_pulled(
    world: Any, image: Any, helpers: Any, registry: str, media_type: str
) -> None:
    """Only what runs here is fetched; another platform can be asked for; one that is missing is an error."""
    arm = helpers.make_image(helpers.tar(("arm", b"1")), architecture="arm64")
    name = f"{registry}/multi/{media_type.partition('.')[2][:3]}:1"
    builder = Scope("builder")
    target = _index(world, builder, (arm, "arm64"), (image, "amd64"), media_type=media_type)
    world.images.create(builder, Image("multi", target))
    transfer(world, ImageStoreEndpoint("multi"), OCIRegistry(name), builder)
    endpoint = ImageStoreEndpoint(name, platforms=(AMD64,), unpacks=UNPACK)
    transfer(world, OCIRegistry(name), endpoint)
    assert root_files(world, chain_ids(image.diff_ids)[-1]) == EXPECTED
    with pytest.raises(NotFound):
        world.content.info(world.scope, arm.target.digest)
    world.collector.collect()
    assert world.images.get(world.scope, name).target.digest == target.digest
    with pytest.raises(NotFound, match="no match for platform linux/s390x in manifest"):
        transfer(world, OCIRegistry(name), ImageStoreEndpoint("x", platforms=(Platform("linux", "s390x"),)))
    archive = save(world, name)
    fresh = Scope(f"fresh-{media_type[-6]}")
    assert load(world, archive, fresh) == [name]


def test_an_image_for_another_machine_is_not_unpacked(world: Any, helpers: Any, registry: str) -> None:
    """It is stored, for whoever wants to push it on."""
    arm = helpers.make_image(helpers.tar(("arm", b"1")), architecture="arm64")
    load(world, arm.docker_archive("arm:1"))
    assert world.images.get(world.scope, "docker.io/library/arm:1")
    assert world.snapshotters["overlayfs"].list(world.scope) == []


def test_a_layer_that_lies_about_its_diff_id(world: Any, image: Any, helpers: Any, registry: str) -> None:
    """What is unpacked is verified again: no snapshot under a wrong name."""
    lying = json.loads(image.config)
    lying["rootfs"]["diff_ids"][1] = helpers.digest_of(b"something else")
    bad = type(image)(image.layers, image.plain, json.dumps(lying).encode(), image.manifest)
    with pytest.raises(FailedPrecondition, match="wrong diff id"):
        load(world, bad.docker_archive("a:1"))
    assert [info.key for info in world.snapshotters["overlayfs"].list(world.scope)] == [image.diff_ids[0]]
    assert world.images.list(world.scope) == []
    world.collector.collect()
    assert world.snapshotters["overlayfs"].list(world.scope) == []
    assert list(world.snapshotters["overlayfs"].directory.iterdir()) == []


def test_many_pulls_of_one_image_at_once(world: Any, image: Any, registry: str) -> None:
    """Every one of them succeeds, and each layer is fetched and unpacked once."""
    load(world, image.docker_archive("busybox:1"), Scope("source"))
    name = f"{registry}/crowd:1"
    transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(name), Scope("source"))
    reports: list[Any] = []
    failures: list[BaseException] = []

    def pull(number: int) -> None:
        try:
            endpoint = ImageStoreEndpoint(f"copy-{number}", unpacks=UNPACK)
            transfer(world, OCIRegistry(name), endpoint, progress=reports.append)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(world.images.list(world.scope)) == 6
    top = chain_ids(image.diff_ids)
    assert sorted(info.key for info in world.snapshotters["overlayfs"].list(world.scope)) == sorted(top)
    events = [report.event for report in reports]
    assert events.count("extracted") == 2
    assert events.count("complete") == 4


def test_transfers_do_not_pile_up_connections(world: Any, image: Any, registry: str) -> None:
    """Threads are shared, and with them their connections to the database; no descriptor is left open."""
    load(world, image.docker_archive("busybox:1"))
    name = f"{registry}/pile:1"

    def once() -> int:
        transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(name))
        transfer(world, OCIRegistry(name), ImageStoreEndpoint(name, unpacks=UNPACK), Scope("again"))
        world.images.delete(Scope("again"), name)
        world.collector.collect()
        return len(os.listdir("/proc/self/fd"))

    most, steady = once(), 0
    for _ in range(100):  # pools of threads grow to their size first; a leak would grow in every round
        now = once()
        steady = steady + 1 if now <= most else 0
        most = max(most, now)
        if steady == 10:
            return
    raise AssertionError(f"{most} descriptors, and more in every round")


def test_tag(world: Any, image: Any) -> None:
    """One image under another name; an existing name is moved."""
    load(world, image.docker_archive("a:1"))
    transfer(world, ImageStoreEndpoint("docker.io/library/a:1"), ImageStoreEndpoint("b"))
    transfer(world, ImageStoreEndpoint("docker.io/library/a:1"), ImageStoreEndpoint("b"))
    assert world.images.get(world.scope, "b").target.digest == (
        world.images.get(world.scope, "docker.io/library/a:1").target.digest
    )
    with pytest.raises(NotFound):
        transfer(world, ImageStoreEndpoint("none"), ImageStoreEndpoint("b"))


def test_a_transfer_without_meaning(world: Any) -> None:
    """Source and destination are named."""
    with pytest.raises(Unimplemented, match=r"unable to transfer from OCI Registry \(x\) to OCI Registry \(y\)"):
        transfer(world, OCIRegistry("x"), OCIRegistry("y"))
    with pytest.raises(InvalidArgument, match="NOT A REF"):
        transfer(world, OCIRegistry("NOT A REF"), ImageStoreEndpoint("y"))


def test_a_full_disk_during_a_pull(world: Any, image: Any, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, and the half layer does not keep the disk full."""
    import errno

    from containerd.errors import ResourceExhausted

    load(world, image.docker_archive("busybox:1"), Scope("source"))
    name = f"{registry}/full:1"
    transfer(world, ImageStoreEndpoint("docker.io/library/busybox:1"), OCIRegistry(name), Scope("source"))
    world.images.delete(Scope("source"), "docker.io/library/busybox:1")
    world.collector.collect()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(ResourceExhausted, match="No space left on device"):
        transfer(world, OCIRegistry(name), ImageStoreEndpoint(name, unpacks=UNPACK))
    assert world.content.statuses(world.scope) == []
    assert list(world.content.files.ingest_ids()) == []
    assert world.files() == []
