"""Images as values: changes, removal, progress, registries, compressed archives, history."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
from typing import Any

import pytest

from dockerd import errors
from dockerd.images.changes import apply_changes
from dockerd.images.decompress import read_uncompressed
from dockerd.images.history import history
from dockerd.images.listing import matches, parse_until
from dockerd.images.model import Content, Image, ImageUse, Record
from dockerd.images.progress import PullProgress, PushProgress, error_line
from dockerd.images.registries import (
    decode_credentials,
    default_scheme,
    translate_pull_error,
    translate_push_error,
)
from dockerd.images.removal import Removal, plan_removal
from dockerd.images.transfer import Credentials
from gantry.contracts.containerd.types import descriptor_pb2
from gantry.contracts.containerd.types.transfer import progress_pb2
from gantry.oci import image as oci
from gantry.oci import reference as references
from gantry.oci.digest import Digest
from gantry.oci.platform import Platform

LAYER = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def image(
    tags: tuple[str, ...] = ("busybox:latest",),
    digests: tuple[str, ...] = (),
    document: dict[str, Any] | None = None,
    layers: int = 1,
) -> Image:
    content = Content(
        manifest=Digest.of(b"manifest"),
        config_descriptor=oci.Descriptor(oci.OCI_CONFIG, Digest.of(b"config"), 6),
        config=document or {},
        layers=(),
        diff_ids=tuple(Digest.of(bytes([number])) for number in range(layers)),
        platform=Platform("linux", "amd64"),
    )
    target = oci.Descriptor(oci.OCI_MANIFEST, content.manifest, 8)
    records = tuple(Record(str(references.parse(tag)), target) for tag in tags) or (Record("moby-dangling@x", target),)
    return Image(content.image_id, records, content, tags, digests, 0)


def used(image_id: str, *, running: bool) -> ImageUse:
    return ImageUse("c0ffee" * 10, image_id, running)


# Removal: the real engine's words and rows.


def test_the_last_name_takes_the_image_with_it() -> None:
    """Its digests of the same repository go too."""
    found = image(("h:5000/a:1",), ("h:5000/a@" + LAYER,))
    assert plan_removal(found, "h:5000/a:1", [], force=False) == Removal(("h:5000/a:1", "h:5000/a@" + LAYER), True)


def test_one_of_several_names_only_untags() -> None:
    """Also while a container uses the image."""
    found = image(("busybox:1", "busybox:latest"))
    assert plan_removal(found, "busybox", [used(found.id, running=True)], force=False) == Removal(("busybox:latest",))


def test_the_last_name_of_a_used_image() -> None:
    """Refused unless forced; then the image goes if no container runs, and else it stays without a name."""
    found = image()
    with pytest.raises(errors.Conflict) as caught:
        plan_removal(found, "busybox", [used(found.id, running=False)], force=False)
    assert str(caught.value) == (
        'conflict: unable to remove repository reference "busybox" (must force) - container c0ffeec0ffee is using '
        f"its referenced image {found.id[7:19]}"
    )
    assert plan_removal(found, "busybox", [used(found.id, running=False)], force=True).delete
    assert not plan_removal(found, "busybox", [used(found.id, running=True)], force=True).delete


def test_other_images_containers_do_not_count() -> None:
    """Only users of this image stand in its way."""
    assert plan_removal(image(), "busybox", [used(OTHER, running=True)], force=False).delete


def test_by_id() -> None:
    """All names of one repository go; several repositories need force; a running container cannot be forced."""
    short = image().id[7:19]
    assert plan_removal(image(), short, [], force=False) == Removal(("busybox:latest",), True)
    many = image(("busybox:1", "other:1"))
    with pytest.raises(errors.Conflict) as caught:
        plan_removal(many, short, [], force=False)
    assert str(caught.value) == (
        f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
    )
    assert plan_removal(many, short, [], force=True) == Removal(("busybox:1", "other:1"), True)
    with pytest.raises(errors.Conflict, match=r"\(must be forced\) - image is being used by stopped container c0ffee"):
        plan_removal(image(), short, [used(many.id, running=False)], force=False)
    with pytest.raises(errors.Conflict, match=r"\(cannot be forced\) - image is being used by running container"):
        plan_removal(image(), short, [used(many.id, running=True)], force=True)


def test_an_image_without_a_name() -> None:
    """It goes by its id."""
    assert plan_removal(image(tags=()), image().id, [], force=False) == Removal((), True)


# Progress.


def step(event: str, current: int = 0, digest: str = LAYER, media_type: str = oci.OCI_LAYER) -> progress_pb2.Progress:
    descriptor = descriptor_pb2.Descriptor(media_type=media_type, digest=digest, size=100)
    return progress_pb2.Progress(event=event, progress=current, total=100, desc=descriptor)


def said(lines: list[dict[str, Any]]) -> list[str]:
    return [f"{line['id'][:2]} {line['status']}" for line in lines]


def test_a_pull_is_told_layer_by_layer() -> None:
    """The states that clients know, each once and in order, whatever containerd repeats."""
    told = PullProgress()
    events = [("waiting", 0), ("downloading", 10), ("downloading", 10), ("downloading", 60), ("complete", 100)]
    events += [("extracting", 50), ("extracting", 50), ("downloading", 70), ("extracted", 100), ("extracted", 100)]
    lines = [line for event, current in events for line in told.feed(step(event, current))]
    lines += told.finish(up_to_date=False)
    assert said(lines) == [
        "ab Pulling fs layer",
        "ab Downloading",
        "ab Downloading",
        "ab Verifying Checksum",
        "ab Download complete",
        "ab Extracting",
        "ab Pull complete",
    ]
    assert lines[1]["progressDetail"] == {"current": 10, "total": 100}


def test_an_image_that_is_there_says_nothing_of_its_layers() -> None:
    """As the real engine: only digest and status follow."""
    told = PullProgress()
    lines = [*told.feed(step("waiting")), *told.feed(step("already exists")), *told.finish(up_to_date=True)]
    assert lines == []


def test_layers_that_exist_are_told_when_others_do_not() -> None:
    """What was held back comes first."""
    told = PullProgress()
    lines = [line for event in ("waiting", "already exists") for line in told.feed(step(event))]
    assert lines == []
    lines += told.feed(step("downloading", 1, OTHER))
    lines += told.finish(up_to_date=False)
    assert said(lines)[:3] == ["ab Already exists", "cd Pulling fs layer", "cd Downloading"]
    assert said(lines).count("cd Pull complete") == 1
    assert "ab Pull complete" not in said(lines)


def test_only_layers_are_told() -> None:
    """Manifests and configurations are not."""
    assert PullProgress().feed(step("downloading", 1, media_type=oci.OCI_MANIFEST)) == []


def test_a_push_is_told_by_diff_id() -> None:
    """Users know layers by what they are unpacked, not by the blob."""
    told = PushProgress({LAYER: OTHER, OTHER: LAYER})
    lines = told.begin()
    lines += told.feed(step("uploading", 50))
    lines += told.feed(step("complete", 100))
    lines += told.feed(step("already exists", 100, OTHER))
    lines += told.finish()
    assert said(lines) == [
        "cd Preparing",
        "ab Preparing",
        "cd Pushing",
        "cd Pushed",
        "ab Layer already exists",
    ]


def test_an_error_after_the_beginning() -> None:
    """Both forms that clients look for."""
    assert error_line("no") == {"errorDetail": {"message": "no"}, "error": "no"}


# Registries.


@pytest.mark.parametrize(
    ("domain", "scheme"),
    [
        ("docker.io", "https"),
        ("127.0.0.1:5000", "http"),
        ("127.9.9.9", "http"),
        ("localhost:5000", "http"),
        ("[::1]:5000", "http"),
        ("10.1.2.3:5000", "http"),
        ("10.2.0.1:5000", "https"),
        ("plain.example:80", "http"),
        ("plain.example", "https"),
    ],
)
def test_plain_http(domain: str, scheme: str) -> None:
    """Loopback always; others by name and port or by network."""
    assert default_scheme(domain, ["10.1.0.0/16", "plain.example:80"]) == scheme


def header(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_credentials() -> None:
    """Name and password, the older combined form, tokens; an empty object is nothing."""
    assert decode_credentials("") is None
    assert decode_credentials(header({})) is None
    assert decode_credentials(header({"username": "me", "password": "pass"})) == Credentials("me", "pass")
    combined = base64.b64encode(b"me:a:b").decode()
    assert decode_credentials(header({"auth": combined})) == Credentials("me", "a:b")
    assert decode_credentials(header({"identitytoken": "t"})) == Credentials(identity_token="t")


@pytest.mark.parametrize("value", ["%%%", "bm90IGpzb24", header([1]), header({"auth": "%"})])
def test_damaged_credentials(value: str) -> None:
    """Said, rather than tried without."""
    with pytest.raises(errors.InvalidParameter, match="X-Registry-Auth"):
        decode_credentials(value)


def test_pull_errors_in_the_real_engines_words() -> None:
    """Clients match on these texts and statuses."""
    reference = references.parse("127.0.0.1:1/x:2")
    missing = translate_pull_error(
        errors.NotFound("failed to resolve image: 127.0.0.1:1/x:2: not found"), reference, "http"
    )
    assert (missing.status, str(missing)) == (
        404,
        "manifest for 127.0.0.1:1/x:2 not found: manifest unknown: manifest unknown",
    )
    platform = errors.NotFound("no match for platform linux/s390x in manifest sha256:ab: not found")
    assert str(translate_pull_error(platform, reference, "http")) == (
        "no matching manifest for linux/s390x in the manifest list entries"
    )
    blob = translate_pull_error(errors.NotFound("blob sha256:ab: not found"), reference, "http")
    assert str(blob) == "blob sha256:ab: not found"
    text = 'failed to do request: Head "http://127.0.0.1:1/v2/x/manifests/2": Connection refused: unavailable'
    refused = translate_pull_error(errors.Unavailable(text), reference, "http")
    assert (refused.status, str(refused)) == (
        500,
        'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
    )
    denied = translate_pull_error(errors.Unauthorized("no: authorization failed"), reference, "http")
    assert denied.status == 404
    assert str(denied).startswith(
        "pull access denied for 127.0.0.1:1/x, repository does not exist or may require 'docker login': denied: "
    )
    anonymous = translate_pull_error(errors.Unauthorized("127.0.0.1:1: no basic auth credentials"), reference, "http")
    assert str(anonymous) == 'Head "http://127.0.0.1:1/v2/x/manifests/2": no basic auth credentials'
    lacking = translate_pull_error(errors.NotSupported("unknown service"), reference, "http")
    assert "does not offer the transfer service" in str(lacking)


def test_push_errors() -> None:
    """The same for the other way."""
    assert "denied: requested access" in str(translate_push_error(errors.Forbidden("403")))
    other = translate_push_error(errors.SystemFailure("no space left on device: unknown"))
    assert (other.status, str(other)) == (500, "no space left on device")


# Changes.


def test_changes_build_a_configuration() -> None:
    """The instructions that need nothing to be run."""
    config = apply_changes(
        {"Env": ["A=1", "B=2"], "WorkingDir": "/srv"},
        [
            'CMD ["/bin/sh", "-c"]',
            "ENV A=3 C='4 5'",
            "ENV D the rest",
            "LABEL x=1 y='two words'",
            "EXPOSE 80 53/udp",
            'VOLUME ["/data"]',
            "VOLUME /a /b",
            "WORKDIR www",
            "USER nobody\nSTOPSIGNAL SIGINT",
            "ONBUILD RUN true",
        ],
    )
    assert config == {
        "Cmd": ["/bin/sh", "-c"],
        "Env": ["B=2", "A=3", "C=4 5", "D=the rest"],
        "Labels": {"x": "1", "y": "two words"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}, "/a": {}, "/b": {}},
        "WorkingDir": "/srv/www",
        "User": "nobody",
        "StopSignal": "SIGINT",
        "OnBuild": ["RUN true"],
    }


def test_the_shell_form() -> None:
    """A command that is no JSON list runs in the shell, the image's own if it has one."""
    assert apply_changes({}, ["CMD echo hi"])["Cmd"] == ["/bin/sh", "-c", "echo hi"]
    config = apply_changes({}, ['SHELL ["/bin/bash", "-c"]', "ENTRYPOINT run"])
    assert config["Entrypoint"] == ["/bin/bash", "-c", "run"]


@pytest.mark.parametrize("change", ["RUN true", "COPY a b", "CMD", "ENV A", "EXPOSE x", "SHELL sh", "LABEL 'a", "{}"])
def test_bad_changes(change: str) -> None:
    """Refused, naming what is wrong."""
    with pytest.raises(errors.InvalidParameter):
        apply_changes({}, [change])


# Archives.

PAYLOAD = bytes(range(256)) * 5000


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_archives_are_read_uncompressed(compress: Any) -> None:
    """The kind is told by the first bytes."""
    assert b"".join(read_uncompressed(io.BytesIO(compress(PAYLOAD)))) == PAYLOAD


def test_several_compressed_streams() -> None:
    """Concatenated gzip files are one archive; zeros after the end are padding."""
    data = gzip.compress(PAYLOAD) + gzip.compress(b"more") + b"\0" * 512
    assert b"".join(read_uncompressed(io.BytesIO(data))) == PAYLOAD + b"more"


def test_pieces_are_bounded() -> None:
    """A bomb is read piece by piece."""
    bomb = gzip.compress(b"\0" * (64 << 20))
    assert max(map(len, read_uncompressed(io.BytesIO(bomb)))) <= 1 << 20


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_archives(compress: Any) -> None:
    """Truncated or altered input is an error."""
    data = compress(PAYLOAD)
    with pytest.raises(errors.InvalidParameter, match="compression is damaged"):
        list(read_uncompressed(io.BytesIO(data[:-20])))
    with pytest.raises(errors.InvalidParameter, match="compression is damaged"):
        list(read_uncompressed(io.BytesIO(data[:100] + b"\xff" * 100 + data[200:])))


def test_zstd_is_refused_by_name() -> None:
    """Python has no decoder for it before 3.14."""
    with pytest.raises(errors.NotSupported, match="zstd"):
        list(read_uncompressed(io.BytesIO(b"\x28\xb5\x2f\xfd" + b"\0" * 20)))


# History and filters.


def test_history_matches_steps_to_layers() -> None:
    """Steps without a layer have no size; only the newest has the image's id and tags."""
    document = {
        "created": "2026-01-01T00:00:00Z",
        "history": [
            {"created_by": "ADD", "created": "2025-01-01T00:00:00Z"},
            {"created_by": "CMD", "empty_layer": True},
            {"created_by": "RUN", "comment": "c"},
        ],
    }
    steps = history(image(document=document, layers=2), lambda index: 100 + index)
    assert [(one.created_by, one.size) for one in steps] == [("RUN", 101), ("CMD", 0), ("ADD", 100)]
    assert steps[0].tags == ("busybox:latest",)
    assert [one.id for one in steps[1:]] == ["<missing>", "<missing>"]


def test_layers_without_a_history() -> None:
    """They are steps too."""
    assert [one.size for one in history(image(layers=2), lambda index: index + 1)] == [2, 1]


def test_reference_filter() -> None:
    """Patterns are matched as users write names; a star stops at a slash."""

    def fits(name: str, pattern: str) -> bool:
        return matches(image((name,)), {"reference": [pattern]}, lambda _: image())

    assert fits("busybox:1.36", "busybox")
    assert fits("busybox:1.36", "busy*")
    assert fits("busybox:1.36", "busybox:1.*")
    assert fits("h:5000/a/b:1", "h:5000/a/*")
    assert not fits("h:5000/a/b:1", "h:5000/*")
    assert not fits("busybox:1.36", "busybox:1")


def test_until() -> None:
    """A duration, a date or seconds."""
    assert parse_until("1700000000") == 1700000000
    assert parse_until("2026-01-01T00:00:00Z") == 1767225600
    assert parse_until("1h30m") < parse_until("1h")
    with pytest.raises(errors.InvalidParameter, match="invalid filter 'until=soon'"):
        parse_until("soon")
