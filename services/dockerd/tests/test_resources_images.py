"""The image service and its API over a containerd in memory."""

from __future__ import annotations

import io
import json
import queue
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import pytest
from google.protobuf import any_pb2, empty_pb2

from dockerd import errors
from dockerd.api import create_app
from dockerd.config import Config
from dockerd.images import SCHEMA, ImageService, ImageUse, ImportRequest, parse_reference
from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.contracts.containerd.services.diff.v1 import diff_pb2
from gantry.contracts.containerd.services.images.v1 import images_pb2
from gantry.contracts.containerd.services.leases.v1 import leases_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.types import descriptor_pb2
from gantry.contracts.containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2
from gantry.database import Database
from gantry.oci import image as oci
from gantry.oci.digest import Digest
from gantry.oci.platform import Platform

HERE = Platform("linux", "amd64")
ELSEWHERE = Platform("linux", "s390x")


class Containerd:
    """As much of containerd as the image service uses, in memory. ``calls`` counts what was called."""

    def __init__(self) -> None:
        self.records: dict[str, images_pb2.Image] = {}
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.committed: dict[str, str] = {}
        self.active: dict[str, str] = {}
        self.calls: list[str] = []
        self.leases_open: set[str] = set()
        self.pulls: dict[str, descriptor_pb2.Descriptor | errors.EngineError] = {}
        self.images = SimpleNamespace(
            Get=self._get, List=self._list, Create=self._create, Update=self._update, Delete=self._delete
        )
        self.content = SimpleNamespace(Read=self._read, Write=self._write, Update=self._label, Abort=self._abort)
        self.snapshots = SimpleNamespace(
            Stat=self._stat, Usage=self._usage, Prepare=self._prepare, Commit=self._commit, Remove=self._remove
        )
        self.diff = SimpleNamespace(Apply=self._apply)
        self.leases = SimpleNamespace(Create=self._lease, Delete=self._unlease)
        self.transfer = SimpleNamespace(Transfer=SimpleNamespace(future=self._transfer))
        self.streaming = SimpleNamespace(Stream=self._stream)
        self._streams: dict[str, queue.SimpleQueue[any_pb2.Any | None]] = {}

    def blob(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.blobs[digest] = content
        return digest

    def _get(self, request: images_pb2.GetImageRequest) -> images_pb2.GetImageResponse:
        self.calls.append("Get")
        if request.name not in self.records:
            raise errors.NotFound(f"image {request.name}: not found")
        return images_pb2.GetImageResponse(image=self.records[request.name])

    def _list(self, request: images_pb2.ListImagesRequest) -> images_pb2.ListImagesResponse:
        self.calls.append("List")
        wanted = [one.partition("==")[2] for one in request.filters]
        found = [one for one in self.records.values() if not wanted or one.target.digest in wanted]
        return images_pb2.ListImagesResponse(images=found)

    def _create(self, request: images_pb2.CreateImageRequest, metadata: Any = ()) -> None:
        if request.image.name in self.records:
            raise errors.Conflict("already exists")
        self.records[request.image.name] = request.image

    def _update(self, request: images_pb2.UpdateImageRequest, metadata: Any = ()) -> None:
        self.records[request.image.name].target.CopyFrom(request.image.target)

    def _delete(self, request: images_pb2.DeleteImageRequest) -> None:
        self.calls.append(f"Delete {request.name}" + (" sync" if request.sync else ""))
        if self.records.pop(request.name, None) is None:
            raise errors.NotFound("not found")

    def _read(self, request: content_pb2.ReadContentRequest, timeout: float = 0) -> Iterator[Any]:
        self.calls.append("Read")
        if request.digest not in self.blobs:
            raise errors.NotFound("content not found")
        data = self.blobs[request.digest]
        for start in range(0, len(data), 100):
            yield content_pb2.ReadContentResponse(data=data[start : start + 100])

    def _write(self, requests: Iterator[content_pb2.WriteContentRequest], metadata: Any = ()) -> Iterator[Any]:
        data = b""
        for request in requests:
            data += request.data
            if request.action == content_pb2.COMMIT:
                assert request.expected == Digest.of(data)
                assert dict(metadata)["containerd-lease"] in self.leases_open
                if request.expected in self.blobs:
                    raise errors.Conflict("already exists")
                self.labels[self.blob(data)] = dict(request.labels)
            yield content_pb2.WriteContentResponse()

    def _label(self, request: content_pb2.UpdateRequest, metadata: Any = ()) -> None:
        self.labels.setdefault(request.info.digest, {}).update(request.info.labels)

    def _abort(self, request: content_pb2.AbortRequest) -> None:
        raise errors.NotFound("no such ingest")

    def _stat(self, request: snapshots_pb2.StatSnapshotRequest) -> None:
        if request.key not in self.committed:
            raise errors.NotFound("no such snapshot")

    def _usage(self, request: snapshots_pb2.UsageRequest) -> snapshots_pb2.UsageResponse:
        self.calls.append("Usage")
        self._stat(snapshots_pb2.StatSnapshotRequest(key=request.key))
        return snapshots_pb2.UsageResponse(size=1000)

    def _prepare(self, request: snapshots_pb2.PrepareSnapshotRequest, metadata: Any = ()) -> Any:
        self.active[request.key] = request.parent
        return snapshots_pb2.PrepareSnapshotResponse()

    def _commit(self, request: snapshots_pb2.CommitSnapshotRequest, metadata: Any = ()) -> None:
        self.committed[request.name] = self.active.pop(request.key)

    def _remove(self, request: snapshots_pb2.RemoveSnapshotRequest, metadata: Any = ()) -> None:
        del self.active[request.key]

    def _apply(self, request: diff_pb2.ApplyRequest, metadata: Any = ()) -> diff_pb2.ApplyResponse:
        return diff_pb2.ApplyResponse(applied=request.diff)

    def _lease(self, request: leases_pb2.CreateRequest) -> None:
        self.leases_open.add(request.id)

    def _unlease(self, request: leases_pb2.DeleteRequest) -> None:
        self.leases_open.remove(request.id)

    def _stream(self, requests: Iterator[any_pb2.Any]) -> Any:
        first = next(requests)
        outgoing: queue.SimpleQueue[any_pb2.Any | None] = queue.SimpleQueue()
        self._streams[first.value[2:].decode()] = outgoing
        outgoing.put(any_pb2.Any(type_url="google.protobuf.Empty"))

        class Call:
            def __iter__(self) -> Call:
                return self

            def __next__(self) -> any_pb2.Any:
                value = outgoing.get()
                if value is None:
                    raise StopIteration
                return value

            def cancel(self) -> None:
                outgoing.put(None)

        return Call()

    def _transfer(self, request: Any, metadata: Any = ()) -> Any:
        """Pulls, from ``pulls``."""
        progress = self._streams[request.options.progress_stream]
        destination = imagestore_pb2.ImageStore.FromString(request.destination.value)
        source = registry_pb2.OCIRegistry.FromString(request.source.value)
        assert source.resolver.default_scheme == "https"
        target = self.pulls[destination.name]
        callbacks: list[Any] = []
        if isinstance(target, descriptor_pb2.Descriptor):
            layer = descriptor_pb2.Descriptor(media_type=oci.OCI_LAYER, digest=Digest.of(b"layer"), size=5)
            for event, descriptor in (("fetching image content", target), ("waiting", layer), ("complete", layer)):
                message = progress_pb2.Progress(event=event, desc=descriptor)
                name = message.DESCRIPTOR.full_name
                progress.put(any_pb2.Any(type_url=name, value=message.SerializeToString()))
            self.records[destination.name] = images_pb2.Image(name=destination.name, target=target)

        def result() -> empty_pb2.Empty:
            if isinstance(target, errors.EngineError):
                raise target
            return empty_pb2.Empty()

        def on_end(callback: Any) -> None:
            callbacks.append(callback)
            progress.put(None)
            callback()

        return SimpleNamespace(result=result, cancel=lambda: None, on_end=on_end)


class Events:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, Mapping[str, str]]] = []

    def publish(self, kind: str, action: str, actor: str, attributes: Mapping[str, str]) -> None:
        self.published.append((action, actor, attributes))


def manifest(containerd: Containerd, platform: Platform, layers: int = 1, label: str = "") -> oci.Descriptor:
    """Put an image for one platform into the content store."""
    diffs = [containerd.blob(f"layer {number}".encode()) for number in range(layers)]
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": "2026-01-02T03:04:05.678901234Z",
        "config": {"Cmd": ["sh"], "Labels": {"label": label}},
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": [{"created_by": f"RUN {number}"} for number in range(layers)],
    }
    config = oci.Descriptor.of(oci.OCI_CONFIG, containerd.blob(oci.dump(document)) and oci.dump(document))
    blobs = tuple(oci.Descriptor(oci.OCI_LAYER, diff, 7) for diff in diffs)
    content = oci.Manifest(config=config, layers=blobs).to_bytes()
    containerd.blob(content)
    return oci.Descriptor.of(oci.OCI_MANIFEST, content)


def index(containerd: Containerd, *platforms: Platform) -> oci.Descriptor:
    """Put an image for several platforms there, with an attestation as builders add them."""
    entries = []
    for platform in platforms:
        one = manifest(containerd, platform)
        entries.append(oci.Descriptor(one.media_type, one.digest, one.size, platform=platform))
    entries.append(oci.Descriptor(oci.OCI_MANIFEST, Digest.of(b"gone"), 4, platform=Platform("unknown", "unknown")))
    content = oci.Index(manifests=tuple(entries)).to_bytes()
    containerd.blob(content)
    return oci.Descriptor.of(oci.OCI_INDEX, content)


def wire(target: oci.Descriptor) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)


def name(containerd: Containerd, full: str, target: oci.Descriptor) -> None:
    containerd.records[full] = images_pb2.Image(name=full, target=wire(target))


@pytest.fixture(autouse=True)
def platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that the tests are about."""
    monkeypatch.setattr("gantry.oci.platform.default", lambda: HERE)


@pytest.fixture
def containerd() -> Containerd:
    return Containerd()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def images(tmp_path: Path, containerd: Containerd, events: Events) -> ImageService:
    config = Config(data_root=str(tmp_path))
    database = Database(tmp_path / "engine.db", [SCHEMA])
    return ImageService(config, database, containerd, events)  # type: ignore[arg-type]


@pytest.fixture
def client(images: ImageService) -> Any:
    engine = SimpleNamespace(images=images, config=Config())
    return create_app(engine, ["images"]).test_client()  # type: ignore[arg-type]


def message(response: Any) -> tuple[int, str]:
    return response.status_code, response.get_json()["message"]


def test_an_image_is_found_by_all_its_names(containerd: Containerd, images: ImageService) -> None:
    """Short and full names, ids and their beginnings, digests."""
    target = manifest(containerd, HERE)
    name(containerd, "docker.io/library/busybox:latest", target)
    found = images.resolve("busybox")
    assert found.repo_tags == ("busybox:latest",)
    assert found.manifest_digest == target.digest
    for reference in (
        "busybox:latest",
        "docker.io/library/busybox",
        found.id,
        found.id[7:],
        found.id[7:19],
        found.id[:15],
        f"busybox@{target.digest}",
    ):
        assert images.resolve(reference).id == found.id, reference


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("nope", "No such image: nope:latest"),
        ("nope:1", "No such image: nope:1"),
        ("h:5000/a/b", "No such image: h:5000/a/b:latest"),
        ("sha256:" + "0" * 64, "No such image: sha256:" + "0" * 64),
        ("0" * 64, "No such image: sha256:" + "0" * 64),
        ("nope@sha256:" + "0" * 64, "No such image: nope@sha256:" + "0" * 64),
    ],
)
def test_an_unknown_image(images: ImageService, reference: str, text: str) -> None:
    """In the real engine's words."""
    with pytest.raises(errors.NotFound) as caught:
        images.resolve(reference)
    assert str(caught.value) == text


def test_what_is_no_reference(images: ImageService) -> None:
    """Said as such."""
    with pytest.raises(errors.InvalidParameter, match=r"repository name .* must be lowercase"):
        images.resolve("Busybox")
    with pytest.raises(errors.InvalidParameter, match="invalid reference format"):
        images.resolve("a//b")


def test_a_beginning_that_fits_two_images(containerd: Containerd, images: ImageService) -> None:
    """It means neither."""
    firsts: set[str] = set()
    for number in range(17):  # one more than there are digits
        name(containerd, f"docker.io/library/i{number}:1", manifest(containerd, HERE, label=str(number)))
        first = images.resolve(f"i{number}:1").id[7]
        if first in firsts:
            break
        firsts.add(first)
    with pytest.raises(errors.NotFound, match=f"No such image: {first}:latest"):
        images.resolve(first)


def test_an_image_of_several_platforms(containerd: Containerd, images: ImageService) -> None:
    """This machine's is meant, or the one asked for; what has none that is here is not listed."""
    name(containerd, "docker.io/library/multi:1", index(containerd, ELSEWHERE, HERE))
    assert images.resolve("multi:1").architecture == "amd64"
    assert images.resolve("multi:1", ELSEWHERE).architecture == "s390x"
    with pytest.raises(errors.NotFound, match="platform linux/arm64"):
        images.resolve("multi:1", Platform("linux", "arm64"))
    absent = oci.Descriptor(oci.OCI_MANIFEST, Digest.of(b"absent"), 6)
    name(containerd, "docker.io/library/broken:1", absent)
    assert [image.repo_tags for image in images.list()] == [("multi:1",)]


def test_content_that_was_altered(containerd: Containerd, images: ImageService) -> None:
    """A document that does not have its digest is not believed."""
    target = manifest(containerd, HERE)
    name(containerd, "docker.io/library/evil:1", target)
    containerd.blobs[target.digest] += b" "
    with pytest.raises(errors.SystemFailure, match="content has digest"):
        images.resolve("evil:1")


def test_a_listing_is_one_call(containerd: Containerd, images: ImageService) -> None:
    """What the documents say is remembered."""
    for number in range(20):
        name(containerd, f"docker.io/library/i{number}:1", manifest(containerd, HERE, label=str(number)))
        images.ensure_unpacked(images.resolve(f"i{number}:1"))
    assert len(images.list()) == 20
    del containerd.calls[:]
    assert len(images.list()) == 20
    assert containerd.calls == ["List"]


def test_a_name_costs_the_same_among_many(containerd: Containerd, images: ImageService) -> None:
    """Only the image's own records are read, and all its names are known, also those that mean it by an index."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE))
    name(containerd, "docker.io/library/a:2", index(containerd, HERE, ELSEWHERE))
    name(containerd, "docker.io/library/b:1", manifest(containerd, HERE, label="b"))
    images.list()
    del containerd.calls[:]
    read = containerd.images.List
    containerd.images.List = lambda request: read(request) if request.filters else pytest.fail("all were listed")
    assert images.resolve("a:2").repo_tags == ("a:1", "a:2")
    assert images.resolve("b:1").repo_tags == ("b:1",)
    assert [call for call in containerd.calls if call != "Usage"] == ["Get", "List", "Get", "List"]


def test_unpacking(containerd: Containerd, images: ImageService) -> None:
    """One snapshot on top of the other, kept by the configuration; a second time nothing is done."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE, layers=3))
    image = images.resolve("a:1")
    images.ensure_unpacked(image)
    chain = [str(one) for one in image.content.chain_ids]
    assert containerd.committed == {chain[0]: "", chain[1]: chain[0], chain[2]: chain[1]}
    assert containerd.labels[image.id] == {"containerd.io/gc.ref.snapshot.overlayfs": image.chain_id}
    assert containerd.leases_open == set()
    containerd.diff.Apply = None
    images.ensure_unpacked(image)
    assert images.resolve("a:1").size == 3000


def test_a_layer_that_is_not_what_it_says(containerd: Containerd, images: ImageService) -> None:
    """The snapshot is removed, and the error names both digests."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE))
    other = Digest.of(b"other")
    containerd.diff.Apply = lambda request, metadata: diff_pb2.ApplyResponse(
        applied=descriptor_pb2.Descriptor(digest=other)
    )
    with pytest.raises(errors.SystemFailure, match=f"unpacks to {other}"):
        images.ensure_unpacked(images.resolve("a:1"))
    assert (containerd.active, containerd.committed, containerd.leases_open) == ({}, {}, set())


def test_a_moved_tag_leaves_its_image(containerd: Containerd, images: ImageService) -> None:
    """It is listed without a name, until it is removed or gets one."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE, label="old"))
    name(containerd, "docker.io/library/b:1", manifest(containerd, HERE, label="new"))
    old = images.resolve("a:1").id
    images.tag("b:1", "a:1")
    assert images.resolve("a:1").id == images.resolve("b:1").id != old
    assert images.resolve(old).dangling
    assert [image.id for image in images.list({"dangling": ["true"]})] == [old]
    images.tag(old, "c:1")
    assert images.resolve(old).repo_tags == ("c:1",)
    assert not [full for full in containerd.records if "dangling" in full]


def test_removal(containerd: Containerd, images: ImageService, events: Events) -> None:
    """Names first; with the last one the image, and the layers that no other image has."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE, layers=1))
    name(containerd, "docker.io/library/b:1", manifest(containerd, HERE, layers=3))
    images.tag("b:1", "b:2")
    both = images.resolve("b:1")
    assert images.remove("b:2").rows == (("Untagged", "b:2"),)
    chain = [str(one) for one in both.content.chain_ids]
    assert images.remove("b:1").rows == (
        ("Untagged", "b:1"),
        ("Deleted", both.id),
        ("Deleted", chain[2]),
        ("Deleted", chain[1]),
    )
    assert containerd.calls[-1] == "Delete docker.io/library/b:1 sync"
    assert [action for action, _, _ in events.published] == ["tag", "untag", "untag", "delete"]
    with pytest.raises(errors.NotFound, match="No such image: b:1"):
        images.remove("b:1")


def test_an_image_in_use_loses_only_its_name(containerd: Containerd, images: ImageService) -> None:
    """Forced while a container runs, the image stays, without a name."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE))
    found = images.resolve("a:1")
    images.on_usage(lambda: [ImageUse("c1", found.id, True)])
    with pytest.raises(errors.Conflict, match="must force"):
        images.remove("a:1")
    assert images.remove("a:1", force=True).rows == (("Untagged", "a:1"),)
    assert images.resolve(found.id).dangling
    with pytest.raises(errors.Conflict, match="cannot be forced"):
        images.remove(found.id, force=True)


def test_prune(containerd: Containerd, images: ImageService) -> None:
    """Without a name by default, all that nobody uses with dangling=false."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE, label="a"))
    name(containerd, "docker.io/library/b:1", manifest(containerd, HERE, label="b"))
    images.tag("a:1", "a:2")
    images.remove("b:1", force=True)
    name(containerd, f"moby-dangling@{Digest.of(b'x')}", manifest(containerd, HERE, label="c"))
    (loose,) = images.list({"dangling": ["true"]})
    assert images.prune().rows[0] == ("Deleted", loose.id)
    used = images.resolve("a:1").id
    images.on_usage(lambda: [ImageUse("c1", used, False)])
    assert images.prune({"dangling": ["false"]}).rows == ()
    images.on_usage(tuple)
    assert images.prune({"dangling": ["false"]}).rows[:3] == (
        ("Untagged", "a:1"),
        ("Untagged", "a:2"),
        ("Deleted", used),
    )
    assert containerd.records == {}


def test_import(containerd: Containerd, images: ImageService, events: Events) -> None:
    """An archive becomes layer, configuration and manifest that refer to each other, unpacked and named."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    archive.seek(0)
    image = images.import_archive(archive, "mine:1", ImportRequest(('CMD ["sh"]',), "by hand"))
    assert image.repo_tags == ("mine:1",)
    assert image.config == {"Cmd": ["sh"]}
    assert image.content.config["history"][0]["comment"] == "by hand"
    (layer,) = image.content.layers
    assert layer.digest == image.content.diff_ids[0]
    assert containerd.labels[image.manifest_digest] == {
        "containerd.io/gc.ref.content.config": image.id,
        "containerd.io/gc.ref.content.l.0": layer.digest,
    }
    assert image.chain_id in containerd.committed
    assert containerd.leases_open == set()
    assert events.published == [("import", image.id, {"name": image.id})]
    again = images.import_archive(io.BytesIO(b"other" * 1000), "", ImportRequest())
    assert again.dangling


@pytest.mark.parametrize(
    ("content", "text"), [(b"", "the archive is empty"), (b"\x1f\x8b\x08broken", "compression is damaged")]
)
def test_a_bad_archive(containerd: Containerd, images: ImageService, content: bytes, text: str) -> None:
    """Nothing is left of it."""
    with pytest.raises(errors.InvalidParameter, match=text):
        images.import_archive(io.BytesIO(content), "mine:1", ImportRequest())
    assert (containerd.records, containerd.blobs, containerd.leases_open) == ({}, {}, set())


def test_a_pull(containerd: Containerd, images: ImageService, events: Events) -> None:
    """The lines that clients show, the digest that the registry has, and the second time that nothing is new."""
    target = manifest(containerd, HERE)
    containerd.pulls["docker.io/library/busybox:1"] = wire(target)
    lines = list(images.exchange.pull(parse_reference("busybox:1"), None, None))
    assert lines[0] == {"status": "Pulling from library/busybox", "id": "1"}
    assert lines[-2:] == [
        {"status": f"Digest: {target.digest}"},
        {"status": "Status: Downloaded newer image for busybox:1"},
    ]
    assert images.resolve("busybox:1").repo_digests == (f"busybox@{target.digest}",)
    assert events.published == [("pull", "busybox:1", {"label": "", "name": "busybox"})]
    lines = list(images.exchange.pull(parse_reference("busybox:1"), None, None))
    assert lines[-1] == {"status": "Status: Image is up to date for busybox:1"}
    assert list(containerd.records) == ["docker.io/library/busybox:1"]


def test_a_pull_of_something_newer(containerd: Containerd, images: ImageService) -> None:
    """The old image stays without a name."""
    old, new = manifest(containerd, HERE, label="old"), manifest(containerd, HERE, label="new")
    containerd.pulls["docker.io/library/busybox:1"] = wire(old)
    list(images.exchange.pull(parse_reference("busybox:1"), None, None))
    containerd.pulls["docker.io/library/busybox:1"] = wire(new)
    list(images.exchange.pull(parse_reference("busybox:1"), None, None))
    assert len(images.list()) == 2
    assert len(images.list({"dangling": ["true"]})) == 1


def test_a_pull_that_fails(containerd: Containerd, images: ImageService) -> None:
    """What was there stays as it was."""
    name(containerd, "docker.io/library/busybox:1", manifest(containerd, HERE))
    containerd.pulls["docker.io/library/busybox:1"] = errors.NotFound("failed to resolve image: not found")
    with pytest.raises(errors.NotFound, match="manifest for busybox:1 not found: manifest unknown"):
        list(images.exchange.pull(parse_reference("busybox:1"), None, None))
    assert list(containerd.records) == ["docker.io/library/busybox:1"]


# The API.


def lines_of(response: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.data.splitlines()]


def test_api_list(containerd: Containerd, client: Any) -> None:
    """The fields of the API, and what older clients are told."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE, label="x"))
    (row,) = client.get("/v1.50/images/json").get_json()
    identity = row.pop("Id")
    assert row == {
        "Containers": -1,
        "Created": 1767323045,
        "Labels": {"label": "x"},
        "ParentId": "",
        "RepoDigests": [],
        "RepoTags": ["a:1"],
        "SharedSize": -1,
        "Size": 7,
    }
    (row,) = client.get("/v1.42/images/json").get_json()
    assert row["VirtualSize"] == 7
    assert row["RepoDigests"] == ["<none>@<none>"]
    assert client.get('/images/json?filters={"reference":["b*"]}').get_json() == []
    assert message(client.get('/images/json?filters={"foo":["b*"]}')) == (400, "invalid filter 'foo'")
    details = client.get(f"/images/{identity[7:19]}/json").get_json()
    assert (details["Id"], details["RepoTags"], details["Os"]) == (identity, ["a:1"], "linux")
    assert details["Config"]["Cmd"] == ["sh"]
    assert details["Config"]["Env"] is None
    assert details["RootFS"]["Layers"] == [Digest.of(b"layer 0")]
    (step,) = client.get("/images/a:1/history").get_json()
    assert (step["CreatedBy"], step["Tags"], step["Created"]) == ("RUN 0", ["a:1"], 1767323045)


def test_api_errors(containerd: Containerd, client: Any) -> None:
    """Statuses and words of the real engine."""
    for method, path in (
        ("GET", "/images/nope/json"),
        ("GET", "/images/nope/history"),
        ("DELETE", "/images/nope"),
        ("POST", "/images/nope/tag?repo=x&tag=1"),
        ("GET", "/images/nope/get"),
        ("GET", "/images/get?names=nope"),
    ):
        assert message(client.open(path, method=method)) == (404, "No such image: nope:latest"), path
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE))
    assert message(client.post("/images/a:1/tag?repo=RES&tag=3")) == (
        400,
        "invalid reference format: repository name (library/RES) must be lowercase",
    )
    assert message(client.post("/images/a:1/tag?repo=res&tag=_-3%20")) == (400, "invalid tag format")
    assert message(client.get("/images/search?term=x"))[0] == 501
    assert message(client.get("/distribution/a:1/json"))[0] == 501
    assert message(client.post("/images/create"))[0] == 400
    assert message(client.post("/images/create?fromSrc=http://x/y"))[0] == 501
    assert message(client.post("/images/create?fromImage=a&platform=a/b/c/d"))[0] == 400


def test_api_names_with_slashes(containerd: Containerd, client: Any) -> None:
    """A name is everything between /images/ and the verb."""
    name(containerd, "127.0.0.1:5000/team/app:1", manifest(containerd, HERE))
    assert client.get("/v1.50/images/127.0.0.1:5000/team/app:1/json").status_code == 200
    assert client.post("/v1.50/images/127.0.0.1:5000/team/app:1/tag?repo=b&tag=2").status_code == 201
    assert client.delete("/v1.50/images/127.0.0.1:5000/team/app:1").get_json() == [
        {"Untagged": "127.0.0.1:5000/team/app:1"}
    ]


def test_api_pull_and_import(containerd: Containerd, client: Any) -> None:
    """JSON lines; an error before the first has a status."""
    containerd.pulls["docker.io/library/a:1"] = wire(manifest(containerd, HERE))
    lines = lines_of(client.post("/v1.50/images/create?fromImage=a&tag=1"))
    assert lines[-1] == {"status": "Status: Downloaded newer image for a:1"}
    containerd.pulls["docker.io/library/a:2"] = errors.NotFound("failed to resolve image: x: not found")
    assert message(client.post("/v1.50/images/create?fromImage=a&tag=2")) == (
        404,
        "manifest for a:2 not found: manifest unknown: manifest unknown",
    )
    response = client.post("/images/create?fromSrc=-&repo=b&tag=1&changes=USER+me&message=m", data=b"tar" * 500)
    (line,) = lines_of(response)
    details = client.get(f"/images/{line['status']}/json").get_json()
    assert (details["RepoTags"], details["Config"]["User"], details["Comment"]) == (["b:1"], "me", "m")


def test_api_push_of_an_unknown_image(client: Any) -> None:
    """The response has begun, so the error is its last line."""
    response = client.post("/images/127.0.0.1:5000/a/push?tag=1")
    text = "An image does not exist locally with the tag: 127.0.0.1:5000/a"
    assert lines_of(response) == [
        {"status": "The push refers to repository [127.0.0.1:5000/a]"},
        {"errorDetail": {"message": text}, "error": text},
    ]


def test_api_remove_and_prune(containerd: Containerd, client: Any) -> None:
    """Rows as clients print them."""
    name(containerd, "docker.io/library/a:1", manifest(containerd, HERE))
    rows = client.delete("/images/a:1").get_json()
    assert [list(row) for row in rows] == [["Untagged"], ["Deleted"], ["Deleted"]]
    assert client.post("/images/prune").get_json() == {"ImagesDeleted": None, "SpaceReclaimed": 0}


def test_api_in_a_request_context() -> None:
    """The blueprint is named as the composition expects."""
    from dockerd.api import images as module

    assert isinstance(module.blueprint, flask.Blueprint)
