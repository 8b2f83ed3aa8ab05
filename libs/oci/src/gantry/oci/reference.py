"""Image references as users write them and as the engine stores them.

The grammar, the defaults (`docker.io`, `library/`, `latest`) and the error texts are those that clients know from
the `distribution/reference` grammar: name [":" tag] ["@" digest].
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gantry.oci.digest import Digest, InvalidDigest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
NAME_LENGTH_MAX = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"((?:{_DOMAIN}/)?{_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?")
_NAME = re.compile(rf"(?:({_DOMAIN})/)?({_PATH})")
_TAG_ONLY = re.compile(_TAG)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class InvalidReference(ValueError):
    """A text is no image reference; the message is the one that clients know."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: it always has a domain; tag and digest may be missing."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """Domain and path: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as users write it: `busybox`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(_OFFICIAL)
        return self.path if "/" in rest else rest

    @property
    def familiar(self) -> str:
        """The whole reference as users write it: `busybox:1.36`."""
        return self.familiar_name + self._suffix()

    @property
    def is_name_only(self) -> bool:
        """Has it neither tag nor digest?"""
        return self.tag is None and self.digest is None

    def with_default_tag(self) -> Reference:
        """The same with tag `latest` when it has neither tag nor digest."""
        return replace(self, tag=DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Reference:
        """The same with this tag. Raises InvalidReference."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidReference("invalid tag format")
        return replace(self, tag=tag)

    def with_digest(self, digest: Digest) -> Reference:
        """The same pinned to this digest."""
        return replace(self, digest=digest)

    def without_tag(self) -> Reference:
        """The same without a tag."""
        return replace(self, tag=None)

    def canonical(self) -> Reference:
        """What a store files it under: digest without tag when it has both, else tag, `latest` by default."""
        return replace(self, tag=None) if self.digest else self.with_default_tag()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL + text
    if first == _LEGACY_DOMAIN:
        domain, remote = DEFAULT_DOMAIN, rest
    elif first == "localhost" or "." in first or ":" in first or first.lower() != first:
        domain, remote = first, rest
    else:
        domain, remote = DEFAULT_DOMAIN, text
    if domain == DEFAULT_DOMAIN and "/" not in remote:
        remote = _OFFICIAL + remote
    return domain, remote


def parse(text: str) -> Reference:
    """Parse what a user typed (`busybox`, `host:5000/a/b:tag@sha256:...`). Raises InvalidReference."""
    if _IDENTIFIER.fullmatch(text):
        raise InvalidReference(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(text)
    remote = remainder.partition(":")[0]
    if remote.lower() != remote:
        raise InvalidReference(f"invalid reference format: repository name ({remote}) must be lowercase")
    return parse_canonical(f"{domain}/{remainder}")


def parse_canonical(text: str) -> Reference:
    """Parse a reference that must name its domain; nothing is added to it. Raises InvalidReference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        if text and _REFERENCE.fullmatch(text.lower()):
            raise InvalidReference("repository name must be lowercase")
        raise InvalidReference("invalid reference format")
    name = _NAME.fullmatch(match[1])
    if name is None or not name[1]:
        raise InvalidReference("repository name must be canonical")
    if len(name[2]) > NAME_LENGTH_MAX:
        raise InvalidReference(f"repository name must not be more than {NAME_LENGTH_MAX} characters")
    try:
        digest = Digest(match[3]) if match[3] else None
    except InvalidDigest as error:
        raise InvalidReference(f"invalid reference format: {error}") from None
    return Reference(name[1], name[2], match[2], digest)


def parse_any(text: str) -> Reference | Digest:
    """Parse a reference, or an image's id: 64 hexadecimal digits or a digest. Raises InvalidReference."""
    if _IDENTIFIER.fullmatch(text):
        return Digest(f"sha256:{text}")
    try:
        return Digest(text)
    except InvalidDigest:
        return parse(text)
