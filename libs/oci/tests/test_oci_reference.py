from __future__ import annotations

import pytest

from gantry.oci.digest import Digest
from gantry.oci.reference import InvalidReference, parse, parse_any, parse_canonical

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/user/app:t", "docker.io/user/app:t", "user/app:t"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("UPPER/app", "UPPER/app", "UPPER/app"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"busybox:t@{DIGEST}", f"docker.io/library/busybox:t@{DIGEST}", f"busybox:t@{DIGEST}"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
    ],
)
def test_references_are_normalised(text: str, canonical: str, familiar: str) -> None:
    """Domain and `library/` are added; the familiar form drops them again."""
    reference = parse(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar
    assert parse_canonical(canonical) == reference
    assert parse(familiar) == reference


def test_default_tag_and_canonical_form() -> None:
    """`latest` is added to a bare name; a digest wins over a tag."""
    assert str(parse("a").with_default_tag()) == "docker.io/library/a:latest"
    assert str(parse(f"a:t@{DIGEST}").canonical()) == f"docker.io/library/a@{DIGEST}"
    assert str(parse(f"a@{DIGEST}").with_default_tag()) == f"docker.io/library/a@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        (":", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("../etc", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a:t\n", "invalid reference format"),
        ("a:é", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("Busybox", r"invalid reference format: repository name \(library/Busybox\) must be lowercase"),
        ("ab" * 32, "cannot specify 64-byte hexadecimal strings"),
        ("a/" * 130 + "b", "repository name must not be more than 255 characters"),
        ("a:" + "t" * 129, "invalid reference format"),
    ],
)
def test_bad_references_are_refused_in_dockers_words(text: str, message: str) -> None:
    """Clients match on these texts."""
    with pytest.raises(InvalidReference, match=message):
        parse(text)


def test_ids_are_told_from_names() -> None:
    """64 hexadecimal digits, with or without algorithm, are an id."""
    assert parse_any("ab" * 32) == Digest(DIGEST)
    assert parse_any(DIGEST) == Digest(DIGEST)
    assert str(parse_any("busybox")) == "docker.io/library/busybox"


def test_a_bad_tag_is_refused() -> None:
    """with_tag checks its argument."""
    with pytest.raises(InvalidReference, match="invalid tag format"):
        parse("a").with_tag("no tag")
