"""Resolving, fetching and pushing at a registry (OCI distribution specification)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from containerd.descriptors import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    DOCKER_SCHEMA1,
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    is_index,
    is_manifest,
)
from containerd.errors import (
    ContainerdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unknown,
)
from containerd.observers import nobody
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.registry.auth import Credentials
from containerd.transfer.registry.connection import Connection
from containerd.transfer.registry.hosts import Host
from gantry.oci.digest import Digest, InvalidDigest
from gantry.oci.reference import Reference

if TYPE_CHECKING:
    import requests

__all__ = ["RegistryClient"]

_MANIFEST_TYPES = ", ".join((DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))
_READ_SIZE = 256 << 10
_RESUMES = 5
"""How often in a row a download may break off without a new byte before it is given up."""
_MAX_ERROR_BODY = 16 << 10


class RegistryClient:
    """One repository at its registry and the registry's mirrors. Safe for threads; has to be closed.

    ``credentials`` is asked with a host's name when that host wants to know who we are.
    """

    def __init__(
        self,
        reference: Reference,
        hosts: Sequence[Host],
        cancellation: Cancellation,
        credentials: Callable[[str], Credentials | None] = nobody,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.reference = reference
        self._cancellation = cancellation
        self._connections = [Connection(host, credentials, headers or {}, cancellation) for host in hosts]

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def resolve(self) -> Descriptor:
        """Return what the reference stands for at this moment.

        Raises :class:`NotFound`, :class:`Unauthenticated`, :class:`PermissionDenied`, :class:`Unavailable`, all naming
        the reference or the host; :class:`InvalidArgument` for an image format that nobody writes any more.
        """
        digest = self.reference.digest
        wanted = digest or self.reference.tag
        if not wanted:
            raise InvalidArgument(f"object required in reference {self.reference}: invalid argument")
        capability = "pull" if digest else "resolve"
        first: ContainerdError | None = None
        for connection in self._capable(capability):
            try:
                return self._resolve_at(connection, str(wanted), digest)
            except (NotFound, Unavailable, Unauthenticated, PermissionDenied) as error:
                # What came furthest says most: a mirror that has not got the image hides no real refusal.
                if first is None or isinstance(first, NotFound | Unavailable):
                    first = error
        if first is None:
            raise NotFound(f"no resolve hosts for {self.reference}: not found")
        raise first

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """Yield content from ``offset`` on, resuming where a connection breaks; size and digest are for the caller.

        Raises as :meth:`resolve`; :class:`Unavailable` when it breaks off again and again.
        """
        kinds = ("manifests",) if is_manifest(descriptor.media_type) or is_index(descriptor.media_type) else ("blobs",)
        first: ContainerdError | None = None
        for connection in self._capable("pull"):
            for kind in kinds:
                path = f"/{self.reference.path}/{kind}/{descriptor.digest}"
                try:
                    response = self._get(connection, path, offset, descriptor)
                except (NotFound, Unavailable, Unauthenticated, PermissionDenied) as error:
                    if first is None or isinstance(first, NotFound | Unavailable):
                        first = error
                    continue
                yield from self._resuming(connection, path, response, descriptor, offset)
                return
        raise first or NotFound(f"no pull hosts for {self.reference}: not found")

    def exists(self, descriptor: Descriptor) -> bool:
        """Whether the registry that is pushed to has this content (for a manifest: under the reference's tag)."""
        if is_manifest(descriptor.media_type) or is_index(descriptor.media_type):
            path = f"/{self.reference.path}/manifests/{self.reference.tag or descriptor.digest}"
            headers = {"Accept": f"{descriptor.media_type}, */*"}
        else:
            path, headers = f"/{self.reference.path}/blobs/{descriptor.digest}", {}
        with self._push_host().request("HEAD", path, self._scopes("pull,push"), headers=headers) as response:
            if response.status_code == 200:
                digest = response.headers.get("Docker-Content-Digest", "")
                return digest == descriptor.digest if "/manifests/" in path else True
            if response.status_code == 404:
                return False
            raise self._refusal(response, "push", descriptor.digest)

    def push_blob(
        self,
        descriptor: Descriptor,
        content: Callable[[], Iterable[bytes]],
        mount_from: str = "",
    ) -> bool:
        """Upload a blob in one request; with ``mount_from`` first ask for it to be taken from that repository.

        Returns False when the mount made the upload unnecessary. Raises as :meth:`resolve`.
        """
        connection = self._push_host()
        scopes = self._scopes("pull,push")
        path = f"/{self.reference.path}/blobs/uploads/"
        if mount_from:
            scopes = (*scopes, f"repository:{mount_from}:pull")
            path += f"?mount={descriptor.digest}&from={mount_from}"
        with connection.request("POST", path, scopes, headers={"Content-Length": "0"}) as response:
            if response.status_code == 201:
                return False
            if response.status_code != 202:
                if mount_from:  # not allowed to read there, or no mounts: then the ordinary way
                    return self.push_blob(descriptor, content)
                raise self._refusal(response, "push", descriptor.digest)
            location = response.headers.get("Location", "")
        if not location:
            raise Unknown(f"{connection.host.name} gave no upload location for {descriptor.digest}")
        url = _with_query(urljoin(connection.url(path), location), f"digest={descriptor.digest}")
        headers = {"Content-Type": "application/octet-stream"}
        with connection.request(
            "PUT", url, scopes, headers=headers, body=content, size=descriptor.size, attempts=1
        ) as response:
            if response.status_code not in (200, 201, 204):
                raise self._refusal(response, "push", descriptor.digest)
            self._check_answer(response, descriptor)
        return True

    def push_manifest(self, descriptor: Descriptor, content: bytes, tag: str = "") -> None:
        """Put a manifest or index, under ``tag`` or else its digest. Raises as :meth:`resolve`."""
        path = f"/{self.reference.path}/manifests/{tag or descriptor.digest}"
        headers = {"Content-Type": descriptor.media_type}
        with self._push_host().request(
            "PUT", path, self._scopes("pull,push"), headers=headers, body=lambda: content, size=len(content)
        ) as response:
            if response.status_code not in (200, 201, 204):
                raise self._refusal(response, "push", descriptor.digest)
            self._check_answer(response, descriptor)

    def _capable(self, capability: str) -> list[Connection]:
        return [connection for connection in self._connections if capability in connection.host.capabilities]

    def _push_host(self) -> Connection:
        for connection in self._capable("push"):
            if not connection.host.mirror:
                return connection
        raise NotFound(f"no push hosts for {self.reference}: not found")

    def _scopes(self, actions: str) -> tuple[str, ...]:
        return (f"repository:{self.reference.path}:{actions}",)

    def _query(self, connection: Connection) -> str:
        """A mirror is told whose image is wanted (containerd's ``ns`` parameter)."""
        return f"?ns={self.reference.domain}" if connection.host.mirror else ""

    def _resolve_at(self, connection: Connection, wanted: str, digest: Digest | None) -> Descriptor:
        path = f"/{self.reference.path}/manifests/{wanted}{self._query(connection)}"
        headers = {"Accept": _MANIFEST_TYPES}
        with connection.request("HEAD", path, self._scopes("pull"), headers=headers) as response:
            if response.status_code not in (200, 405):
                raise self._refusal(response, "pull")
            found = response.headers.get("Docker-Content-Digest", "") if response.status_code == 200 else ""
            length = response.headers.get("Content-Length", "") if response.status_code == 200 else ""
            media_type = _media_type(response)
        if length.isdigit() and int(length) > 0 and (digest or found) and media_type:
            size, name = int(length), str(digest or _checked(found, str(self.reference)))
        else:
            media_type, size, name = self._resolve_by_content(connection, path, headers, digest)
        if size > MAX_MANIFEST_SIZE:
            raise InvalidArgument(f"rejecting {size} byte manifest for {self.reference}: invalid argument")
        if media_type == DOCKER_SCHEMA1 or media_type == DOCKER_SCHEMA1.replace("prettyjws", "json"):
            raise InvalidArgument("schema 1 image manifests are no longer supported: invalid argument")
        return Descriptor(media_type, name, size)

    def _resolve_by_content(
        self, connection: Connection, path: str, headers: Mapping[str, str], digest: Digest | None
    ) -> tuple[str, int, str]:
        """Fetch a manifest to know its digest and size, from a registry that does not tell them."""
        with connection.request("GET", path, self._scopes("pull"), headers=headers) as response:
            if response.status_code != 200:
                raise self._refusal(response, "pull")
            content = response.raw.read(MAX_MANIFEST_SIZE + 1, decode_content=True)
            return (
                _media_type(response),
                len(content),
                str(digest or "") or f"sha256:{hashlib.sha256(content).hexdigest()}",
            )

    def _get(self, connection: Connection, path: str, offset: int, descriptor: Descriptor) -> requests.Response:
        headers = {"Accept": f"{descriptor.media_type or '*/*'}, */*", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        response = connection.request("GET", path + self._query(connection), self._scopes("pull"), headers=headers)
        if response.status_code in (200, 206):
            return response
        with response:
            if response.status_code == 404:
                raise NotFound(
                    f"could not fetch content descriptor {descriptor.digest} ({descriptor.media_type}) "
                    f"from remote {connection.host.name}: not found"
                )
            raise self._refusal(response, "pull", descriptor.digest)

    def _resuming(
        self, connection: Connection, path: str, response: requests.Response, descriptor: Descriptor, offset: int
    ) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        failures = 0
        while True:
            try:
                for piece in self._body(response, offset):
                    yield piece
                    offset += len(piece)
                    failures = 0
                if offset >= descriptor.size:
                    return
                reason = f"connection closed after {offset} of {descriptor.size} bytes"
            except (HTTPError, OSError) as error:
                reason = str(error)
            finally:
                response.close()
            failures += 1
            if failures > _RESUMES:
                raise Unavailable(
                    f"failed to fetch {descriptor.digest} from {connection.host.name}: {reason}: unavailable"
                )
            self._cancellation.sleep(0.1 * 2**failures if failures > 1 else 0)
            response = self._get(connection, path, offset, descriptor)

    def _body(self, response: requests.Response, offset: int) -> Iterator[bytes]:
        """Yield the body from ``offset`` of the content on, also when the server has ignored the range."""
        skip = 0
        if response.status_code == 200:
            skip = offset
        elif not response.headers.get("Content-Range", f"bytes {offset}-").startswith(f"bytes {offset}-"):
            raise Unavailable(f"unhandled content range in response: {response.headers['Content-Range'][:80]}")
        while piece := response.raw.read1(_READ_SIZE, decode_content=True):
            self._cancellation.check()
            if skip:
                dropped = min(skip, len(piece))
                skip -= dropped
                piece = piece[dropped:]
            if piece:
                yield piece

    def _check_answer(self, response: requests.Response, descriptor: Descriptor) -> None:
        answered = response.headers.get("Docker-Content-Digest", "")
        if answered and answered != descriptor.digest:
            raise FailedPrecondition(f"got digest {answered[:200]}, expected {descriptor.digest}: failed precondition")

    def _refusal(self, response: requests.Response, verb: str, digest: str = "") -> ContainerdError:
        """Return the error for a reply that is none of the wanted ones."""
        status = response.status_code
        details = _server_message(response)
        said = f": server message: {details}" if details else ""
        if status == 401:
            return Unauthenticated(
                f"{verb} access denied, repository does not exist or may require authorization: "
                f"{self.reference}{said}: authorization failed"
            )
        if status == 403:
            return PermissionDenied(
                f"{verb} access to {self.reference} is forbidden{said}: "
                f"unexpected status from {_request_line(response)}: 403 Forbidden"
            )
        if status == 404:
            return NotFound(f"{self.reference}: not found" if verb == "pull" else f"{self.reference}{said}: not found")
        if status == 429:
            return ResourceExhausted(f"{urlsplit(response.url).netloc}: toomanyrequests{said}: resource exhausted")
        text = f"unexpected status from {_request_line(response)}: {status} {response.reason}{said}"
        if digest:
            text = f"{digest}: {text}"
        return Unavailable(text) if status >= 500 else Unknown(text)


def _request_line(response: requests.Response) -> str:
    address = urlsplit(response.url)._replace(query="").geturl()
    return f"{response.request.method} request to {address}"


def _media_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


def _checked(digest: str, reference: str) -> Digest:
    try:
        return Digest(digest)
    except InvalidDigest as error:
        raise InvalidArgument(f"{reference}: registry answered with an invalid digest: {error}") from error


def _server_message(response: requests.Response) -> str:
    """Return what the registry says about its refusal (distribution specification, "Error Codes")."""
    from urllib3.exceptions import HTTPError

    if response.request.method == "HEAD":
        return ""
    try:
        body = response.raw.read(_MAX_ERROR_BODY, decode_content=True)
        errors = json.loads(body.decode("utf-8", "replace")).get("errors", [])
        texts = [f"{item.get('code', '')}: {item.get('message', '')}".strip(": ") for item in errors[:3]]
    except (ValueError, AttributeError, TypeError, HTTPError, OSError):
        return ""
    return "; ".join(text for text in texts if text)[:500]


def _with_query(url: str, query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=f"{parts.query}&{query}" if parts.query else query).geturl()
