"""The real ``ctr`` against the daemon: it pulls, pushes and exports by itself; and a client of the Transfer service."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2

from gantry.contracts.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from gantry.contracts.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from gantry.contracts.containerd.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from gantry.contracts.containerd.types import platform_pb2
from gantry.contracts.containerd.types.transfer import (
    imagestore_pb2,
    importexport_pb2,
    progress_pb2,
    registry_pb2,
)
from gantry.contracts.containerd.types.transfer import (
    streaming_pb2 as transfer_streaming_pb2,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]

NAME = "docker.io/library/test:1"
AMD64 = platform_pb2.Platform(os="linux", architecture="amd64")


@pytest.fixture
def daemon(containerd: Any) -> Any:
    """A running daemon, for which there has to be a ``ctr``."""
    import shutil

    if shutil.which("ctr") is None:
        pytest.skip("needs ctr")
    containerd.start()
    return containerd


@pytest.fixture
def archive(image: Any, tmp_path: Path) -> Path:
    """The image as ``docker save`` writes it."""
    path = tmp_path / "image.tar"
    path.write_bytes(image.docker_archive("test:1"))
    return path


def lines(output: str) -> list[list[str]]:
    """Return the words of each line behind the heading."""
    return [line.split() for line in output.splitlines()[1:]]


def test_import_list_remove(daemon: Any, archive: Path, image: Any) -> None:
    """An image comes, is unpacked, and goes with everything that belongs to it."""
    assert "unpacking" in daemon.ctr("images", "import", str(archive))
    assert [line[0] for line in lines(daemon.ctr("images", "ls"))] == [NAME]
    assert len(lines(daemon.ctr("snapshots", "ls"))) == 2
    assert len(lines(daemon.ctr("content", "ls"))) == 5
    assert "MISSING" not in daemon.ctr("images", "check")
    daemon.ctr("images", "rm", "--sync", NAME)
    assert lines(daemon.ctr("content", "ls")) == []
    assert lines(daemon.ctr("snapshots", "ls")) == []


def test_push_and_pull(daemon: Any, archive: Path, registry: str) -> None:
    """Through a real registry, and all layers come back."""
    daemon.ctr("images", "import", str(archive))
    name = f"{registry}/ctr/test:1"
    daemon.ctr("images", "tag", NAME, name)
    daemon.ctr("images", "push", "--plain-http", name)
    daemon.ctr("images", "rm", "--sync", NAME, name)
    assert lines(daemon.ctr("content", "ls")) == []
    output = daemon.ctr("images", "pull", "--plain-http", name)
    assert "unpacking linux/amd64" in output
    labels = daemon.ctr("content", "ls")
    assert "containerd.io/distribution.source.127.0.0.1=ctr/test" in labels
    assert "containerd.io/gc.ref.snapshot.overlayfs=" in labels
    assert len(lines(daemon.ctr("snapshots", "ls"))) == 2


def test_export_gives_what_tar_reads(daemon: Any, archive: Path, tmp_path: Path) -> None:
    """The archive has the image's blobs."""
    daemon.ctr("images", "import", str(archive))
    out = tmp_path / "out.tar"
    daemon.ctr("images", "export", str(out), NAME)
    with tarfile.open(out) as opened:
        names = opened.getnames()
    assert {"index.json", "oci-layout", "manifest.json"} <= set(names)


def test_content_commands(daemon: Any, image: Any, tmp_path: Path, registry: str, archive: Path) -> None:
    """Ingest, get, label, fetch and delete of single blobs; a second delete names the digest."""
    data = os.urandom(3 << 20)
    file = tmp_path / "blob"
    file.write_bytes(data)
    subprocess.run(
        daemon.argv("content", "ingest", "--expected-size", str(len(data)), "ref"),
        input=data,
        check=True,
        capture_output=True,
    )
    ((digest, *_),) = lines(daemon.ctr("content", "ls"))
    got = subprocess.run(daemon.argv("content", "get", digest), check=True, capture_output=True).stdout
    assert got == data
    daemon.ctr("content", "label", digest, "a=b")
    assert "a=b" in daemon.ctr("content", "ls")
    daemon.ctr("content", "rm", digest)
    assert "not found" in daemon.ctr("content", "get", digest, status=1)
    daemon.ctr("images", "import", str(archive))
    name = f"{registry}/ctr/fetch:1"
    daemon.ctr("images", "tag", NAME, name)
    daemon.ctr("images", "push", "--plain-http", name)
    daemon.ctr("images", "rm", "--sync", NAME, name)
    daemon.ctr("content", "fetch", "--plain-http", name)
    assert len(lines(daemon.ctr("content", "ls"))) == 4


def test_snapshot_commands(daemon: Any, archive: Path) -> None:
    """Prepare, mounts, diff, commit, usage, tree and removal, in the order that parents allow."""
    daemon.ctr("images", "import", str(archive))
    ((top, *_),) = [line for line in lines(daemon.ctr("snapshots", "ls")) if len(line) == 3]
    assert "lowerdir=" in daemon.ctr("snapshots", "prepare", "--mounts", "active", top)
    assert "mount -t overlay overlay" in daemon.ctr("snapshots", "mounts", "/mnt", "active")
    upper = next(
        option.removeprefix("upperdir=")
        for option in daemon.ctr("snapshots", "mounts", "/mnt", "active").replace(" ", ",").split(",")
        if option.startswith("upperdir=")
    )
    Path(upper, "added").write_text("1")
    layer = subprocess.run(daemon.argv("snapshots", "diff", "active"), check=True, capture_output=True).stdout
    assert layer.startswith(b"\x1f\x8b")
    assert "failed precondition" in daemon.ctr("snapshots", "rm", top, status=1)
    daemon.ctr("snapshots", "commit", "committed", "active")
    assert "Committed" in daemon.ctr("snapshots", "info", "committed")
    assert len(lines(daemon.ctr("snapshots", "usage"))) == 3
    daemon.ctr("snapshots", "view", "look", "committed")
    assert "does not exist" in daemon.ctr("snapshots", "info", "none", status=1)
    daemon.ctr("snapshots", "rm", "look")
    daemon.ctr("snapshots", "rm", "committed")


def test_errors_in_the_words_that_clients_know(daemon: Any, registry: str) -> None:
    """ctr prints what the daemon said."""
    digest = "sha256:" + "0" * 64
    assert f"content digest {digest}: not found" in daemon.ctr("content", "get", digest, status=1)
    assert 'image "x": not found' in daemon.ctr("images", "tag", "x", "y", status=1)
    assert f"{registry}/none:1: not found" in daemon.ctr(
        "images", "pull", "--plain-http", f"{registry}/none:1", status=1
    )


def test_a_run_from_an_image(containerd: Any, tmp_path: Path, helpers: Any) -> None:
    """Image, snapshot, container, task: everything together, with the real shim and runtime below."""
    busybox = Path("/usr/bin/busybox")
    if not busybox.exists():
        pytest.skip("needs busybox")
    containerd.use("/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc")
    containerd.start()
    program = tarfile.TarInfo("bin/busybox")
    program.mode = 0o755
    data = busybox.read_bytes()
    program.size = len(data)
    import io

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        made.addfile(program, io.BytesIO(data))
        for name in ("proc", "sys", "dev", "tmp", "etc"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            made.addfile(directory)
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        made.addfile(link)
    path = tmp_path / "busybox.tar"
    path.write_bytes(helpers.make_image(buffer.getvalue()).docker_archive("test:1"))
    containerd.ctr("images", "import", str(path))
    assert "from inside" in containerd.ctr(
        "run", "--rm", NAME, "one", "/bin/sh", "-c", "echo from inside; touch /tmp/x"
    )
    assert len(lines(containerd.ctr("snapshots", "ls"))) == 1
    assert "from native" in containerd.ctr(
        "run", "--rm", "--snapshotter", "native", NAME, "two", "/bin/sh", "-c", "echo from native"
    )


class Client:
    """What dockerd uses: the Transfer service and its streams."""

    def __init__(self, daemon: Any) -> None:
        self.channel = daemon.channel()
        self.metadata = (("containerd-namespace", daemon.namespace),)
        self.images = images_pb2_grpc.ImagesStub(self.channel)
        self.content = content_pb2_grpc.ContentStub(self.channel)
        self.snapshots = snapshots_pb2_grpc.SnapshotsStub(self.channel)
        self._transfers = transfer_pb2_grpc.TransferStub(self.channel)
        self._streams = streaming_pb2_grpc.StreamingStub(self.channel)
        self._pool = ThreadPoolExecutor(4)

    def open_stream(self, name: str, requests: Any) -> Any:
        """Open a stream whose messages to the daemon are what ``requests`` yields; returns the daemon's."""

        def messages() -> Iterator[any_pb2.Any]:
            yield packed(streaming_pb2.StreamInit(id=name))
            yield from requests

        answers = self._streams.Stream(messages(), metadata=self.metadata)
        next(answers)
        return answers

    def transfer(self, source: Any, destination: Any, progress: bool = True) -> list[progress_pb2.Progress]:
        """Do a transfer and return its progress."""
        name, done = f"progress-{time.time_ns()}", threading.Event()
        reports: list[progress_pb2.Progress] = []

        def wait() -> Iterator[any_pb2.Any]:
            done.wait()
            return
            yield

        answers = self.open_stream(name, wait())

        def read() -> None:
            for value in answers:
                assert value.type_url == "containerd.types.transfer.Progress"
                reports.append(progress_pb2.Progress.FromString(value.value))

        reading = self._pool.submit(read)
        request = transfer_pb2.TransferRequest(
            source=packed(source),
            destination=packed(destination),
            options=transfer_pb2.TransferOptions(progress_stream=name),
        )
        try:
            self._transfers.Transfer(request, metadata=self.metadata)
        finally:
            done.set()
            reading.result(10)
        return reports

    def send_archive(self, name: str, data: bytes, piece: int = 32 << 10) -> Any:
        """Open a stream and send an archive on it, as the real client does: never more than the window allows."""
        window = threading.Condition()
        allowed = [0]

        def requests() -> Iterator[any_pb2.Any]:
            position = 0
            while position < len(data):
                with window:
                    window.wait_for(lambda: allowed[0] > 0, timeout=20)
                    size = min(piece, allowed[0], len(data) - position)
                    allowed[0] -= size
                yield packed(transfer_streaming_pb2.Data(data=data[position : position + size]))
                position += size

        answers = self.open_stream(name, requests())

        def read() -> None:
            for value in answers:
                with window:
                    allowed[0] += transfer_streaming_pb2.WindowUpdate.FromString(value.value).update
                    window.notify()

        return self._pool.submit(read)

    def receive_archive(self, name: str, step: int = 64 << 10) -> Any:
        """Open a stream and collect an archive from it, opening a small window at a time; returns a future of it."""
        window = threading.Condition()
        pending = [step]

        def requests() -> Iterator[any_pb2.Any]:
            while True:
                with window:
                    window.wait_for(lambda: pending[0] != 0, timeout=20)
                    update, pending[0] = pending[0], 0
                if update < 0:
                    return
                yield packed(transfer_streaming_pb2.WindowUpdate(update=update))

        answers = self.open_stream(name, requests())

        def read() -> bytes:
            received = bytearray()
            for value in answers:
                data = transfer_streaming_pb2.Data.FromString(value.value).data
                received += data
                with window:
                    pending[0] += len(data)
                    window.notify()
            with window:
                pending[0] = -1
                window.notify()
            return bytes(received)

        return self._pool.submit(read)

    def close(self) -> None:
        """Close the connection."""
        self._pool.shutdown()
        self.channel.close()


def packed(message: Any) -> any_pb2.Any:
    """Wrap a message as Go's typeurl does."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.fixture
def client(daemon: Any) -> Iterator[Client]:
    """A client of the daemon."""
    made = Client(daemon)
    yield made
    made.close()


def import_image(client: Client, data: bytes, **options: Any) -> list[progress_pb2.Progress]:
    """Import an archive under its own names, unpacked."""
    sending = client.send_archive("import-1", data)
    store = imagestore_pb2.ImageStore(
        extra_references=[imagestore_pb2.ImageReference(name="x", is_prefix=True, allow_overwrite=True)],
        unpacks=[imagestore_pb2.UnpackConfiguration(platform=AMD64)],
    )
    try:
        return client.transfer(importexport_pb2.ImageImportStream(stream="import-1", **options), store)
    finally:
        sending.result(10)


def test_transfer_import_and_export(client: Client, image: Any) -> None:
    """An archive goes in and comes out through streams, with progress beside it."""
    reports = import_image(client, image.docker_archive("test:1"))
    assert reports[0].event == "Importing"
    assert reports[-1].event == "Completed import"
    saved = [report for report in reports if report.event == "saved"]
    assert [report.name for report in saved] == [NAME]
    receiving = client.receive_archive("export-1")
    export = importexport_pb2.ImageExportStream(stream="export-1")
    client.transfer(imagestore_pb2.ImageStore(name=NAME), export)
    archive = receiving.result(10)
    with tarfile.open(fileobj=__import__("io").BytesIO(archive)) as opened:
        manifest = json.load(opened.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert manifest[0]["RepoTags"] == ["test:1"]


def test_transfer_of_a_large_archive(client: Client, helpers: Any) -> None:
    """More than any window or message: 30 MB through the stream, both ways."""
    data = os.urandom(30 << 20)
    large = helpers.make_image(helpers.tar(("data", data)), compress="")
    import_image(client, large.docker_archive("test:1"))
    receiving = client.receive_archive("export-1", step=1 << 20)
    client.transfer(imagestore_pb2.ImageStore(name=NAME), importexport_pb2.ImageExportStream(stream="export-1"))
    assert data[:1000] in receiving.result(20)


def test_transfer_push_and_pull(client: Client, image: Any, registry: str) -> None:
    """With progress that names every piece, and an image that can be prepared for a container at the end."""
    import_image(client, image.docker_archive("test:1"))
    name = f"{registry}/transfer/test:1"
    remote = registry_pb2.OCIRegistry(reference=name)
    reports = client.transfer(imagestore_pb2.ImageStore(name=NAME), remote)
    assert reports[-1].event == f"Completed push to OCI Registry ({name})"
    client.images.Delete(images_pb2.DeleteImageRequest(name=NAME, sync=True), metadata=client.metadata)
    listed = list(client.content.List(content_pb2.ListContentRequest(), metadata=client.metadata))
    assert listed == []
    store = imagestore_pb2.ImageStore(
        name=name, platforms=[AMD64], unpacks=[imagestore_pb2.UnpackConfiguration(platform=AMD64)]
    )
    reports = client.transfer(remote, store)
    events = {report.event for report in reports}
    assert {"waiting", "complete", "extracted", "saved"} <= events
    stored = client.images.Get(images_pb2.GetImageRequest(name=name), metadata=client.metadata).image
    assert stored.target.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    snapshots = list(
        client.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs"), metadata=client.metadata)
    )
    top = next(
        info.name for page in snapshots for info in page.info if info.parent and info.kind == snapshots_pb2.COMMITTED
    )
    prepared = client.snapshots.Prepare(
        snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="c", parent=top), metadata=client.metadata
    )
    assert prepared.mounts[0].type == "overlay"


def test_transfer_asks_for_credentials(client: Client, image: Any, registry: str) -> None:
    """A registry that wants to know who we are gets what the client answers on its stream."""
    asked: list[registry_pb2.AuthRequest] = []
    answers: Any = None
    ready, over = threading.Event(), threading.Event()

    def reply() -> Iterator[any_pb2.Any]:
        ready.wait(10)
        for value in answers:
            asked.append(registry_pb2.AuthRequest.FromString(value.value))
            yield packed(registry_pb2.AuthResponse(authType=registry_pb2.CREDENTIALS, username="me", secret="secret"))
        over.set()

    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return

        def do_HEAD(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(404 if seen[-1] else 401)
            if not seen[-1]:
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        name = f"127.0.0.1:{server.server_address[1]}/private/test:1"
        answers = client.open_stream("auth-1", reply())
        ready.set()
        source = registry_pb2.OCIRegistry(reference=name, resolver=registry_pb2.RegistryResolver(auth_stream="auth-1"))
        with pytest.raises(grpc.RpcError) as raised:
            client.transfer(source, imagestore_pb2.ImageStore(name=name))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert over.wait(10)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [(item.host, item.reference) for item in asked] == [(name.partition("/")[0], name)]
    assert seen == ["", "Basic bWU6c2VjcmV0"]


def test_transfer_errors_have_codes(client: Client, registry: str) -> None:
    """A broken archive, an unknown image, an unknown stream, a destination that means nothing."""
    cases: list[tuple[Any, Any, grpc.StatusCode]] = [
        (
            registry_pb2.OCIRegistry(reference=f"{registry}/none:1"),
            imagestore_pb2.ImageStore(name="x"),
            grpc.StatusCode.NOT_FOUND,
        ),
        (imagestore_pb2.ImageStore(name="x"), imagestore_pb2.ImageStore(name="y"), grpc.StatusCode.NOT_FOUND),
        (
            importexport_pb2.ImageImportStream(stream="unknown"),
            imagestore_pb2.ImageStore(name="y"),
            grpc.StatusCode.NOT_FOUND,
        ),
        (
            registry_pb2.OCIRegistry(reference="127.0.0.1:1/x:1"),
            imagestore_pb2.ImageStore(name="y"),
            grpc.StatusCode.UNAVAILABLE,
        ),
        (imagestore_pb2.ImageStore(name="x"), streaming_pb2.StreamInit(), grpc.StatusCode.UNIMPLEMENTED),
        (
            registry_pb2.OCIRegistry(
                reference="127.0.0.1:1/x:1", resolver=registry_pb2.RegistryResolver(http_debug=registry_pb2.DEBUG)
            ),
            imagestore_pb2.ImageStore(name="y"),
            grpc.StatusCode.UNIMPLEMENTED,
        ),
    ]
    for source, destination, code in cases:
        with pytest.raises(grpc.RpcError) as raised:
            client.transfer(source, destination)
        assert raised.value.code() is code, raised.value.details()
    with pytest.raises(grpc.RpcError) as raised:
        import_image(client, b"no archive" * 1000)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_import_that_is_broken_off(client: Client, image: Any, daemon: Any) -> None:
    """A client that closes its side too early gets an error, and nothing is left."""
    data = image.docker_archive("test:1")
    with pytest.raises(grpc.RpcError, match="unexpected end of archive"):
        import_image(client, data[: len(data) // 2])
    statuses = client.content.ListStatuses(content_pb2.ListStatusesRequest(), metadata=client.metadata)
    assert list(statuses.statuses) == []
    assert lines(daemon.ctr("leases", "ls")) == []


def test_a_write_that_is_cancelled_unlocks_its_reference(client: Client) -> None:
    """A client that vanishes in the middle of a write does not block the reference, and its bytes are kept."""
    hold = threading.Event()

    def requests(wait: bool) -> Iterator[content_pb2.WriteContentRequest]:
        yield content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", total=8, data=b"half")
        if wait:
            hold.wait(10)

    call = client.content.Write(requests(True), metadata=client.metadata)
    assert next(call).offset == 4
    with pytest.raises(grpc.RpcError) as raised:
        list(client.content.Write(requests(False), metadata=client.metadata))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    call.cancel()
    hold.set()
    deadline = time.monotonic() + 10
    while True:
        stat = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r")
        try:
            (answer,) = client.content.Write(iter([stat]), metadata=client.metadata)
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline
    assert answer.offset == 4


def test_killed_in_the_middle(daemon: Any, archive: Path) -> None:
    """After SIGKILL and a start everything is as it was, and what was half made is gone."""
    import signal

    daemon.ctr("images", "import", str(archive))
    snapshots = Path(daemon.root, "io.containerd.snapshotter.v1.overlayfs", "snapshots")
    before = sorted(path.name for path in snapshots.iterdir())
    daemon.stop(signal.SIGKILL)
    (snapshots / "new-half").mkdir()
    (snapshots / "9999").mkdir()
    blobs = Path(daemon.root, "io.containerd.content.v1.content", "blobs", "sha256")
    (blobs / ("f" * 64)).write_text("never committed")
    daemon.start()
    assert sorted(path.name for path in snapshots.iterdir()) == before
    assert not (blobs / ("f" * 64)).exists()
    assert [line[0] for line in lines(daemon.ctr("images", "ls"))] == [NAME]
    assert "MISSING" not in daemon.ctr("images", "check")
