"""The registry client against servers that misbehave in every way that real ones do."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from containerd.descriptors import DOCKER_MANIFEST, DOCKER_SCHEMA1, Descriptor
from containerd.errors import (
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import ImageStoreEndpoint, OCIRegistry
from containerd.transfer.registry import Credentials, Host, RegistryClient, connection, hosts_for
from containerd.transfer.registry.auth import parse_challenges
from containerd.transfer.registry.hosts import is_loopback
from containerd.transfer.service import Connections
from gantry.oci.reference import parse_canonical


class FakeRegistry:
    """A registry with one image. ``answer`` may take over any request by returning (status, headers, body)."""

    def __init__(self, image: Any) -> None:
        self.image = image
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answer: Callable[[FakeRegistry, str, str, dict[str, str]], Any] = lambda *_: None
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def _serve(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                length = int(headers.get("content-length", 0))
                if length:
                    self.rfile.read(length)
                owner.requests.append((self.command, self.path, headers))
                status, extra, body, *cut = owner.reply(self.command, self.path, headers)
                self.send_response(status)
                for key, value in extra.items():
                    self.send_header(key, value)
                if "Content-Length" not in extra:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                if cut:
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815 (the names that the base class calls)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def reply(self, method: str, path: str, headers: dict[str, str]) -> Any:
        """Answer a request as it should be answered, unless ``answer`` does it otherwise."""
        given = self.answer(self, method, path, headers)
        return given if given is not None else self.right(path, headers)

    def right(self, path: str, headers: dict[str, str]) -> Any:
        """Return the right answer to a request for content."""
        name = urlsplit(path).path.rpartition("/")[2]
        if "/manifests/" in path and name in ("1", self.image.target.digest):
            extra = {"Content-Type": DOCKER_MANIFEST, "Docker-Content-Digest": self.image.target.digest}
            return 200, extra, self.image.manifest
        data = self.image.blobs.get(name)
        if data is None:
            return 404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
        start = headers.get("range", "")
        if start:
            offset = int(start.removeprefix("bytes=").rstrip("-"))
            return 206, {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"}, data[offset:]
        return 200, {"Content-Type": "application/octet-stream"}, data

    def asked(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        """Return the headers of the requests whose path contains ``part``."""
        return [headers for verb, path, headers in self.requests if verb == method and part in path]


@pytest.fixture
def fake(image: Any) -> Iterator[FakeRegistry]:
    """A registry that can be made to misbehave."""
    made = FakeRegistry(image)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(connection, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(connection, "_LONGEST_DELAY", 0.002)


def pull(world: Any, fake: FakeRegistry, *, credentials: Credentials | None = None, **options: Any) -> list[Any]:
    """Pull the image without unpacking it; returns the progress reports."""
    source = OCIRegistry(f"{fake.address}/some/repo:1", **options)
    reports: list[Any] = []
    connections = Connections(progress=reports.append, credentials=lambda host, reference: credentials)
    world.transfers.transfer(world.scope, source, ImageStoreEndpoint("name"), connections, Cancellation())
    return reports


def assert_nothing_is_left(world: Any) -> None:
    """Neither an image, nor a lease, nor a file that is not what its name says; garbage goes with a collection."""
    assert world.images.list(world.scope) == []
    assert world.leases.list("test") == []
    world.collector.collect()
    assert world.files() == []
    with world.database.write() as change:
        change.execute("UPDATE ingest SET expires_at = 1 WHERE expires_at > 0")
    world.collector.collect()
    assert list(world.content.files.ingest_ids()) == []


def test_a_pull_brings_everything_and_says_how_far_it_is(world: Any, fake: FakeRegistry) -> None:
    """Content, labels, image and progress are those of the real daemon."""
    reports = pull(world, fake)
    image = fake.image
    target = world.images.get(world.scope, "name").target
    assert (target.digest, target.media_type, target.size) == (
        image.target.digest, DOCKER_MANIFEST, len(image.manifest)
    )  # fmt: skip
    for digest, data in image.blobs.items():
        assert world.content.read(world.scope, digest, 1 << 20) == data
    labels = world.content.info(world.scope, target.digest).labels
    assert labels["containerd.io/gc.ref.content.config"] in image.blobs
    assert labels["containerd.io/gc.ref.content.l.0"] == list(image.blobs)[1]
    assert labels["containerd.io/gc.ref.content.l.1"] == list(image.blobs)[2]
    assert labels["containerd.io/distribution.source.127.0.0.1"] == "some/repo"
    assert world.leases.list("test") == []
    world.collector.collect()
    assert len(world.files()) == 4
    events = [report.event for report in reports]
    assert events[0] == f"Resolving from OCI Registry ({fake.address}/some/repo:1)"
    assert events[-1] == f"Completed pull from OCI Registry ({fake.address}/some/repo:1)"
    layer = list(image.blobs)[1]
    of_layer = [report for report in reports if report.descriptor and report.descriptor.digest == layer]
    assert [report.event for report in of_layer][:1] == ["waiting"]
    assert [report.event for report in of_layer][-1:] == ["complete"]
    assert of_layer[0].name == f"layer-{layer}"
    assert of_layer[0].parents == (f"manifest-{image.target.digest}",)
    assert (of_layer[-1].progress, of_layer[-1].total) == (len(image.blobs[layer]),) * 2


def test_a_second_pull_fetches_nothing(world: Any, fake: FakeRegistry) -> None:
    """What is here is not asked for."""
    pull(world, fake)
    fake.requests.clear()
    reports = pull(world, fake)
    assert [method for method, _, _ in fake.requests] == ["HEAD"]
    assert [report.event for report in reports].count("already exists") == 4


def test_a_wrong_digest_is_found_out(world: Any, fake: FakeRegistry) -> None:
    """Content that is not what its name says is dropped, with both digests in the message."""
    layer = list(fake.image.blobs)[1]
    size = len(fake.image.blobs[layer])
    fake.answer = lambda self, method, path, headers: (200, {}, b"x" * size) if layer in path else None
    with pytest.raises(FailedPrecondition) as raised:
        pull(world, fake)
    text = str(raised.value)
    assert text.startswith(f'failed commit on ref "layer-{layer}": unexpected commit digest sha256:')
    assert text.endswith(f", expected {layer}: failed precondition")
    assert f"layer-{layer}" not in [status.ref for status in world.content.statuses(world.scope)]
    assert_nothing_is_left(world)


def test_a_wrong_manifest_is_found_out(world: Any, fake: FakeRegistry) -> None:
    """Also the manifest is checked against what the registry said it would be."""
    fake.answer = lambda self, method, path, headers: (
        (200, {"Content-Type": DOCKER_MANIFEST}, self.image.manifest.replace(b"2", b"3"))
        if "/manifests/sha256:" in path
        else None
    )
    with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
        pull(world, fake)
    assert_nothing_is_left(world)


def test_more_than_promised_is_not_stored(world: Any, fake: FakeRegistry) -> None:
    """A body that does not end is cut off where the descriptor ends."""
    layer = list(fake.image.blobs)[1]
    fake.answer = lambda self, method, path, headers: (
        (200, {}, self.image.blobs[layer] + b"more" * 1000) if layer in path else None
    )
    with pytest.raises(FailedPrecondition, match="unexpected commit size"):
        pull(world, fake)
    assert_nothing_is_left(world)


def test_a_broken_connection_is_resumed_by_range(world: Any, fake: FakeRegistry) -> None:
    """The second request asks for the rest, and what came first is kept."""
    layer = list(fake.image.blobs)[1]
    data = fake.image.blobs[layer]

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if layer in path and "range" not in headers:
            return 200, {"Content-Length": str(len(data))}, data[:100], "cut"
        return None

    fake.answer = answer
    pull(world, fake)
    assert [headers.get("range") for headers in fake.asked(layer)] == [None, "bytes=100-"]
    assert world.content.read(world.scope, layer, 1 << 20) == data


def test_a_server_without_ranges_is_read_from_the_start(world: Any, fake: FakeRegistry) -> None:
    """Where the range is ignored, what is known already is skipped."""
    layer = list(fake.image.blobs)[1]
    data = fake.image.blobs[layer]

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if layer in path:
            cut = ("cut",) if "range" not in headers else ()
            return 200, {"Content-Length": str(len(data))}, data[:100] if cut else data, *cut
        return None

    fake.answer = answer
    pull(world, fake)
    assert world.content.read(world.scope, layer, 1 << 20) == data


def test_a_connection_that_always_breaks_is_given_up(world: Any, fake: FakeRegistry, monkeypatch: Any) -> None:
    """The message names the content, the host and how far it came; the next pull goes on from there."""
    layer = list(fake.image.blobs)[1]
    data = fake.image.blobs[layer]
    monkeypatch.setattr(Cancellation, "sleep", lambda self, seconds: self.check())

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if layer in path:
            start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            body = data[start:100]
            extra = {"Content-Length": str(len(data) - start), "Content-Range": f"bytes {start}-"}
            return 206 if start else 200, extra, body, "cut"
        return None

    fake.answer = answer
    with pytest.raises(Unavailable, match=f"failed to fetch {layer} from {fake.address}"):
        pull(world, fake)
    assert world.images.list(world.scope) == []
    assert world.leases.list("test") == []


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(world: Any, fake: FakeRegistry, status: int) -> None:
    """Too many requests and server errors pass."""
    left = {"manifests": 2, "blobs": 2}

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        kind = "manifests" if "/manifests/" in path else "blobs"
        if left[kind]:
            left[kind] -= 1
            return status, {"Retry-After": "0"}, b""
        return None

    fake.answer = answer
    pull(world, fake)
    assert world.images.get(world.scope, "name")


def test_a_server_that_stays_busy(world: Any, fake: FakeRegistry) -> None:
    """After some attempts its answer is the error: a limit is not the same as an outage."""
    fake.answer = lambda *_: (429, {}, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}')
    with pytest.raises(ResourceExhausted, match="toomanyrequests"):
        pull(world, fake)
    fake.answer = lambda *_: (503, {}, b"")
    with pytest.raises(Unavailable, match=f"{fake.address}/v2/some/repo/manifests/1: 503"):
        pull(world, fake)
    assert len(fake.requests) == 2 * connection.ATTEMPTS
    assert_nothing_is_left(world)


def test_an_unknown_image(world: Any, fake: FakeRegistry) -> None:
    """NOT_FOUND with the whole reference in it."""
    source = OCIRegistry(f"{fake.address}/some/repo:none")
    with pytest.raises(NotFound, match=f"failed to resolve image: {fake.address}/some/repo:none: not found"):
        world.transfers.transfer(world.scope, source, ImageStoreEndpoint("name"), Connections(), Cancellation())
    assert_nothing_is_left(world)


def test_nobody_listens(world: Any, fake: FakeRegistry) -> None:
    """UNAVAILABLE with the address and the kernel's word for it."""
    address = fake.address
    fake.close()
    source = OCIRegistry(f"{address}/some/repo:1")
    with pytest.raises(Unavailable, match=f'failed to do request: Head "http://{address}/.*": Connection refused'):
        world.transfers.transfer(world.scope, source, ImageStoreEndpoint("name"), Connections(), Cancellation())
    fake.server.server_close = fake.server.shutdown = lambda: None  # type: ignore[method-assign]


def test_forbidden_and_denied_can_be_told_apart(world: Any, fake: FakeRegistry) -> None:
    """403 is PERMISSION_DENIED, 401 without a way in is UNAUTHENTICATED; both name the repository."""
    fake.answer = lambda *_: (403, {}, b"")
    with pytest.raises(PermissionDenied, match="some/repo:1"):
        pull(world, fake)
    fake.answer = lambda *_: (401, {}, b"")
    with pytest.raises(Unauthenticated, match="pull access denied, repository does not exist or may require auth"):
        pull(world, fake)
    fake.answer = lambda *_: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")
    with pytest.raises(Unauthenticated, match="no basic auth credentials"):
        pull(world, fake)
    assert_nothing_is_left(world)


def test_basic_authentication(world: Any, fake: FakeRegistry) -> None:
    """Credentials go out only when they are asked for, and then with every request."""
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if headers.get("authorization") != wanted:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        return None

    fake.answer = answer
    pull(world, fake, credentials=Credentials("me", "secret"))
    assert "authorization" not in fake.requests[0][2]
    assert all(headers.get("authorization") == wanted for _, _, headers in fake.requests[1:])
    with pytest.raises(Unauthenticated):
        pull(world, fake, credentials=Credentials("me", "wrong"))


class TokenServer:
    """Answers of a registry whose token server it is, too."""

    def __init__(self, fake: FakeRegistry, credentials: str = "") -> None:
        self.fake = fake
        self.credentials = credentials
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.tokens = 0
        self.valid = ""

    def __call__(self, fake: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        parts = urlsplit(path)
        if parts.path == "/token":
            self.asked.append((method, parse_qs(parts.query), headers))
            if self.credentials and headers.get("authorization") != self.credentials and method == "GET":
                return 401, {}, b"{}"
            self.tokens += 1
            self.valid = f"t{self.tokens}"
            return 200, {}, json.dumps({"token": self.valid, "expires_in": 300}).encode()
        if headers.get("authorization") != f"Bearer {self.valid}" or not self.valid:
            challenge = f'Bearer realm="http://{fake.address}/token",service="reg",scope="repository:some/repo:pull"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return None


def test_an_anonymous_token(world: Any, fake: FakeRegistry) -> None:
    """One token, for the scope of this repository, serves the whole pull."""
    server = fake.answer = TokenServer(fake)
    pull(world, fake)
    assert [query for _, query, _ in server.asked] == [{"service": ["reg"], "scope": ["repository:some/repo:pull"]}]
    assert "authorization" not in server.asked[0][2]


def test_a_token_for_credentials(world: Any, fake: FakeRegistry) -> None:
    """The password goes to the token server only, never to the registry."""
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    server = fake.answer = TokenServer(fake, basic)
    pull(world, fake, credentials=Credentials("me", "secret"))
    assert server.asked[0][2]["authorization"] == basic
    assert not [
        headers for _, path, headers in fake.requests if "/v2/" in path and headers.get("authorization") == basic
    ]
    with pytest.raises(Unauthenticated, match=r"token server http://.* answered 401"):
        pull(world, fake, credentials=Credentials("me", "wrong"))


def test_a_refresh_token_is_posted(world: Any, fake: FakeRegistry) -> None:
    """An identity token buys access tokens (OAuth2)."""
    server = fake.answer = TokenServer(fake, "Basic nobody")
    pull(world, fake, credentials=Credentials(secret="refresh"))
    assert [method for method, _, _ in server.asked] == ["POST"]


def test_a_ready_made_header(world: Any, fake: FakeRegistry) -> None:
    """A client that has a registry token of its own needs no token server."""
    server = fake.answer = TokenServer(fake)
    server.valid = "own"
    pull(world, fake, credentials=Credentials(header="Bearer own"))
    assert server.asked == []


def test_an_expired_token_is_replaced(world: Any, fake: FakeRegistry) -> None:
    """A token that stops working in the middle is bought anew."""
    server = TokenServer(fake)
    seen: list[str] = []

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if "/blobs/" in path and not seen:
            seen.append(path)
            challenge = f'Bearer realm="http://{fake.address}/token",service="reg",error="invalid_token"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return server(self, method, path, headers)

    fake.answer = answer
    pull(world, fake)
    assert server.tokens == 2


def test_credentials_are_not_sent_in_the_clear(world: Any, fake: FakeRegistry) -> None:
    """A registry with TLS cannot have the password sent to a server without."""
    from containerd.transfer.registry.auth import Authorizer, Challenge

    authorizer = Authorizer("r.example", None, lambda: Credentials("me", "s"), lambda url: {})  # type: ignore[arg-type]
    authorizer._challenge = Challenge("bearer", {"realm": "http://elsewhere.example/token"})
    with pytest.raises(Unauthenticated, match="refusing to send credentials to http://elsewhere"):
        authorizer.header(("s",), secure=True)


def test_challenges_are_parsed() -> None:
    """Several schemes in one header, quoted commas, and nonsense."""
    found = parse_challenges('Bearer realm="https://a/b?x=1,2",service="s\\"q", Basic realm="r", Negotiate')
    assert [(item.scheme, item.parameters) for item in found] == [
        ("bearer", {"realm": "https://a/b?x=1,2", "service": 's"q'}),
        ("basic", {"realm": "r"}),
        ("negotiate", {}),
    ]
    assert parse_challenges("") == []
    assert parse_challenges("=;=") == []


def test_headers_of_the_client_are_sent(world: Any, fake: FakeRegistry) -> None:
    """The resolver's headers go with every request."""
    pull(world, fake, headers={"X-Meta": "a"})
    assert all(headers["x-meta"] == "a" for _, _, headers in fake.requests)


def test_a_registry_that_does_not_tell_the_digest(world: Any, fake: FakeRegistry) -> None:
    """Without the header, and without HEAD, the manifest itself says."""

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if "/manifests/1" in path:
            return (405, {}, b"") if method == "HEAD" else (200, {"Content-Type": DOCKER_MANIFEST}, self.image.manifest)
        return None

    fake.answer = answer
    pull(world, fake)
    assert world.images.get(world.scope, "name").target.digest == fake.image.target.digest


def test_manifests_that_are_refused(world: Any, fake: FakeRegistry) -> None:
    """Too large, of a format that is gone, or with an invalid digest: each in words."""
    digest = fake.image.target.digest
    answers = {
        "rejecting 9999999999 byte manifest": {"Content-Length": "9999999999", "Content-Type": DOCKER_MANIFEST},
        "schema 1 image manifests are no longer supported": {"Content-Length": "10", "Content-Type": DOCKER_SCHEMA1},
    }
    for message, extra in answers.items():
        fake.answer = lambda self, method, path, headers, extra=extra: (
            200, {"Docker-Content-Digest": digest, **extra}, b""
        )  # fmt: skip
        with pytest.raises(InvalidArgument, match=message):
            pull(world, fake)
    fake.answer = lambda *_: (
        200, {"Docker-Content-Digest": "sha256:nonsense", "Content-Length": "10", "Content-Type": DOCKER_MANIFEST}, b""
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match="invalid digest"):
        pull(world, fake)


def test_a_manifest_with_nonsense_in_it(world: Any, fake: FakeRegistry, helpers: Any) -> None:
    """The message names the field; nothing is kept."""
    for document, message in (
        (b"[]", "is not a JSON object"),
        (b"{", "is not JSON"),
        (b'{"config":{"digest":"x","size":1}}', "unsupported|invalid"),
        (b'{"config":{"digest":"sha256:%s","size":-1}}' % (b"0" * 64), "invalid size -1"),
        (b'{"config":5}', "descriptor is not an object"),
        (b'{"layers":5,"config":{"digest":"sha256:%s","size":1}}' % (b"0" * 64), "layers: not a list"),
        (b'{"manifests":[],"config":{}}', "expected manifest but found index"),
    ):
        broken = type(fake.image)(fake.image.layers, fake.image.plain, fake.image.config, document)
        fake.image = broken
        with pytest.raises(InvalidArgument, match=message):
            pull(world, fake)
        assert_nothing_is_left(world)


def test_a_cancelled_pull_stops(world: Any, fake: FakeRegistry) -> None:
    """When the client goes away, so do the downloads."""
    cancellation = Cancellation()

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if "/blobs/" in path:
            cancellation.cancel()
        return None

    fake.answer = answer
    source = OCIRegistry(f"{fake.address}/some/repo:1")
    with pytest.raises(Cancelled):
        world.transfers.transfer(world.scope, source, ImageStoreEndpoint("name"), Connections(), cancellation)
    assert_nothing_is_left(world)


def test_a_mirror_that_has_it_not_does_not_matter(world: Any, fake: FakeRegistry, tmp_path: Path, image: Any) -> None:
    """Mirrors are asked first, are told whose image is wanted, and never hide the registry's answer."""
    mirror = FakeRegistry(image)
    try:
        folder = tmp_path / "hosts" / fake.address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(
            f'server = "http://{fake.address}"\n[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        pull(world, fake, host_dir=str(tmp_path / "hosts"))
        assert fake.requests == []
        assert f"ns={fake.address}" in mirror.requests[0][1]
        mirror.answer = lambda *_: (404, {}, b"")
        world.images.delete(world.scope, "name")
        world.collector.collect()
        pull(world, fake, host_dir=str(tmp_path / "hosts"))
        assert fake.requests
    finally:
        mirror.close()


def test_plain_http_is_for_loopback_only() -> None:
    """Every other registry is spoken to with TLS unless the client says otherwise."""
    assert hosts_for("127.0.0.1:5000") == [Host("127.0.0.1:5000", "", verify=False)]
    assert hosts_for("localhost")[0].scheme == ""
    assert hosts_for("r.example:5000") == [Host("r.example:5000", "https")]
    assert hosts_for("r.example", default_scheme="http")[0].scheme == "http"
    assert hosts_for("docker.io")[0].name == "registry-1.docker.io"
    with pytest.raises(InvalidArgument, match="ftp"):
        hosts_for("r.example", default_scheme="ftp")
    assert [is_loopback(name) for name in ("127.1.2.3:5", "[::1]:5", "localhost:1", "10.0.0.1", "localhost.evil")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_hosts_toml(tmp_path: Path) -> None:
    """Order, capabilities, certificates, headers and paths are read; mistakes name the file."""
    folder = tmp_path / "r.example"
    folder.mkdir()
    file = folder / "hosts.toml"
    file.write_text(
        'server = "https://r.example"\n'
        '[host."https://mirror.example/path"]\ncapabilities = ["pull"]\nca = "ca.pem"\noverride_path = true\n'
        'client = [["c.pem", "k.pem"]]\n[host."https://mirror.example/path".header]\nx = ["1"]\n'
        '[host."http://second.example"]\nskip_verify = true\n'
    )
    first, second, last = hosts_for("r.example", str(tmp_path))
    assert (first.name, first.scheme, first.path, first.mirror) == ("mirror.example", "https", "/path", True)
    assert first.capabilities == frozenset({"pull"})
    assert first.authorities == (f"{folder}/ca.pem",)
    assert first.certificates == ((f"{folder}/c.pem", f"{folder}/k.pem"),)
    assert first.headers == {"x": "1"}
    assert (second.scheme, second.path, second.verify) == ("http", "/v2", False)
    assert (last.name, last.mirror) == ("r.example", False)
    for text, message in (("host = 5", "host is not a table"), ("x = [", "failed to load registry hosts")):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=message):
            hosts_for("r.example", str(tmp_path))
    file.write_text('[host."https://m"]\ncapabilities = ["fly"]\n')
    with pytest.raises(InvalidArgument, match="unknown capability"):
        hosts_for("r.example", str(tmp_path))


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ('"both.pem"', [("both.pem", "both.pem")]),
        ('["a.pem", "b.pem"]', [("a.pem", "a.pem"), ("b.pem", "b.pem")]),
        ('[["a.pem", "a.key"], ["/b.pem", ""]]', [("a.pem", "a.key"), ("/b.pem", "/b.pem")]),
    ],
)
def test_client_certificates_of_hosts_toml(tmp_path: Path, value: str, pairs: list[tuple[str, str]]) -> None:
    """One file, files, or pairs of files; relative to the folder; and so several authorities."""
    folder = tmp_path / "r.example"
    folder.mkdir()
    (folder / "hosts.toml").write_text(f'client = {value}\nca = ["one.pem", "/two.pem"]\ndial_timeout = "1500ms"\n')
    (host,) = hosts_for("r.example", f"{tmp_path}/missing:{tmp_path}")
    assert host.certificates == tuple((str(folder / one), str(folder / two)) for one, two in pairs)
    assert host.authorities == (f"{folder}/one.pem", "/two.pem")
    assert (host.scheme, host.timeout) == ("https", 1.5)


@pytest.mark.parametrize(
    "text",
    ["ca = 5", "client = [[1]]", 'dial_timeout = "soon"', "skip_verify = 1", "header = {x = 1}", "host = {a = 1}"],
)
def test_mistakes_in_hosts_toml_are_refused(tmp_path: Path, text: str) -> None:
    """The message names the file."""
    (tmp_path / "r.example").mkdir()
    (tmp_path / "r.example" / "hosts.toml").write_text(text)
    with pytest.raises(InvalidArgument, match=r"hosts\.toml"):
        hosts_for("r.example", str(tmp_path))


def test_docker_certificates(tmp_path: Path) -> None:
    """Where there is no hosts.toml, the files of certs.d are used; a certificate needs its key."""
    folder = tmp_path / "r.example_5000_"
    folder.mkdir()
    for name in ("ca.crt", "client.cert", "client.key"):
        (folder / name).touch()
    (host,) = hosts_for("r.example:5000", str(tmp_path))
    assert host.authorities == (f"{folder}/ca.crt",)
    assert host.certificates == ((f"{folder}/client.cert", f"{folder}/client.key"),)
    (folder / "client.key").unlink()
    with pytest.raises(InvalidArgument, match="missing key"):
        hosts_for("r.example:5000", str(tmp_path))


def test_push_reports_a_registry_that_stored_something_else(fake: FakeRegistry, helpers: Any) -> None:
    """A digest in the answer that is not ours is an error."""
    reference = parse_canonical(f"{fake.address}/some/repo:1")
    other = helpers.digest_of(b"other")

    def answer(self: FakeRegistry, method: str, path: str, headers: dict[str, str]) -> Any:
        if method == "POST":
            return 202, {"Location": "/upload/1?state=x"}, b""
        return 201, {"Docker-Content-Digest": other}, b""

    fake.answer = answer
    blob = Descriptor("application/octet-stream", helpers.digest_of(b"data"), 4)
    with RegistryClient(reference, hosts_for(fake.address), Cancellation()) as client:
        with pytest.raises(FailedPrecondition, match=f"got digest {other}"):
            client.push_blob(blob, lambda: iter([b"data"]))
    (put,) = [path for method, path, _ in fake.requests if method == "PUT"]
    assert put == f"/upload/1?state=x&digest={blob.digest}"
    assert fake.asked("/upload", "PUT")[0]["content-length"] == "4"
