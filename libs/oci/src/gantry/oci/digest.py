"""Content digests: `algorithm:hex` (image-spec descriptor.md "Digests")."""

from __future__ import annotations

import hashlib
from typing import IO

ALGORITHMS: dict[str, int] = {"sha256": 64, "sha512": 128}
"""Supported algorithms and the length of their hexadecimal form."""

_HEX = frozenset("0123456789abcdef")


class InvalidDigest(ValueError):
    """A text is no digest, or names an algorithm that is not supported."""


class DigestMismatch(ValueError):
    """Content has another digest or size than promised."""


class Digest(str):
    """A digest that is known to be well formed; equal to its text."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Raises InvalidDigest."""
        algorithm, colon, encoded = text.partition(":")
        if not colon:
            raise InvalidDigest(f"invalid checksum digest format: {text!r}")
        length = ALGORITHMS.get(algorithm)
        if length is None:
            raise InvalidDigest(f"unsupported digest algorithm: {text!r}")
        if len(encoded) != length:
            raise InvalidDigest(f"invalid checksum digest length: {text!r}")
        if not _HEX.issuperset(encoded):
            raise InvalidDigest(f"invalid checksum digest format: {text!r}")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The algorithm's name, e.g. `sha256`."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of these bytes."""
        return cls(f"{algorithm}:{_new(algorithm, content).hexdigest()}")

    def verify(self, content: bytes) -> None:
        """Raises DigestMismatch when the content is another."""
        actual = Digest.of(content, self.algorithm)
        if actual != self:
            raise DigestMismatch(f"content has digest {actual}, expected {self}")


def _new(algorithm: str, content: bytes = b"") -> hashlib._Hash:
    if algorithm not in ALGORITHMS:
        raise InvalidDigest(f"unsupported digest algorithm: {algorithm!r}")
    return hashlib.new(algorithm, content)


def parse(text: str) -> Digest:
    """Check a digest's form. Raises InvalidDigest."""
    return Digest(text)


def is_digest(text: str) -> bool:
    """Is the text a digest of a supported algorithm?"""
    try:
        Digest(text)
    except InvalidDigest:
        return False
    return True


class Hasher:
    """Takes content in pieces and gives its digest and size."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self._hash = _new(algorithm)
        self._algorithm = algorithm
        self.size = 0

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(piece)
        self.size += memoryview(piece).nbytes

    @property
    def digest(self) -> Digest:
        """The digest of what was taken so far."""
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def verify(self, expected: Digest, size: int | None = None) -> None:
        """Raises DigestMismatch when digest or size (in bytes) differ from what was promised."""
        if size is not None and self.size != size:
            raise DigestMismatch(f"content has {self.size} bytes, expected {size} ({expected})")
        if self.digest != expected:
            raise DigestMismatch(f"content has digest {self.digest}, expected {expected}")


class HashingReader:
    """A binary stream that hashes what is read through it; read to the end, `verify` tells whether it was right."""

    def __init__(self, stream: IO[bytes], algorithm: str = "sha256") -> None:
        self._stream = stream
        self._hasher = Hasher(algorithm)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes (all when negative), and hash them."""
        piece = self._stream.read(size)
        self._hasher.update(piece)
        return piece

    @property
    def digest(self) -> Digest:
        """The digest of what was read so far."""
        return self._hasher.digest

    @property
    def size(self) -> int:
        """How many bytes were read so far."""
        return self._hasher.size

    def verify(self, expected: Digest, size: int | None = None) -> None:
        """Raises DigestMismatch when digest or size (in bytes) differ from what was promised."""
        self._hasher.verify(expected, size)
