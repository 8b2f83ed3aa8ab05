from __future__ import annotations

import io

import pytest

from gantry.oci.digest import Digest, DigestMismatch, Hasher, HashingReader, InvalidDigest, is_digest, parse

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_digest_knows_its_parts() -> None:
    """Algorithm and hexadecimal part are told apart; the digest equals its text."""
    digest = parse(EMPTY)
    assert digest == EMPTY
    assert digest.algorithm == "sha256"
    assert digest.encoded == EMPTY[7:]
    assert Digest.of(b"") == digest
    assert len(Digest.of(b"", "sha512").encoded) == 128


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", "sha256:xyz", "md5:" + "0" * 32, EMPTY.upper(), EMPTY + "\n", EMPTY[:-1], "../" + EMPTY],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """Nothing malformed becomes a Digest: it may be used as a file name."""
    with pytest.raises(InvalidDigest):
        parse(text)
    assert not is_digest(text)


def test_a_reader_hashes_what_passes_through() -> None:
    """Content read in pieces verifies; other content or another size does not."""
    reader = HashingReader(io.BytesIO(b"hello"))
    assert reader.read(2) == b"he"
    assert reader.read() == b"llo"
    reader.verify(Digest.of(b"hello"), 5)
    with pytest.raises(DigestMismatch, match="expected 6"):
        reader.verify(Digest.of(b"hello"), 6)
    with pytest.raises(DigestMismatch):
        reader.verify(Digest.of(b"hello!"))


def test_sizes_are_bytes_whatever_the_buffer() -> None:
    """A memoryview of wide items counts bytes."""
    hasher = Hasher()
    hasher.update(memoryview(b"\0" * 8).cast("Q"))
    assert hasher.size == 8


def test_verify_names_both_digests() -> None:
    """The error tells what came and what was expected."""
    with pytest.raises(DigestMismatch, match=EMPTY):
        Digest(EMPTY).verify(b"x")
