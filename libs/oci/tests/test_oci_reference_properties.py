"""What holds for every image reference."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gantry.oci.digest import Digest
from gantry.oci.reference import InvalidReference, Reference, parse, parse_canonical

COMPONENTS = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
DOMAINS = st.from_regex(r"([a-z0-9]{1,6}\.[a-z]{2,5}|localhost|\[::1\])(:[0-9]{1,5})?", fullmatch=True)
TAGS = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", fullmatch=True)
DIGESTS = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True).map(Digest)
REFERENCES = st.builds(
    Reference,
    DOMAINS | st.just("docker.io"),
    st.lists(COMPONENTS, min_size=2, max_size=4).map("/".join),
    TAGS,
    DIGESTS,
)


@given(REFERENCES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_printed_is_parsed(reference: Reference) -> None:
    """The whole form and the familiar one mean the reference that they were made of."""
    assert parse_canonical(str(reference)) == reference
    assert parse(str(reference)) == reference
    if not _looks_like_a_host(reference):
        assert parse(reference.familiar) == reference


def _looks_like_a_host(reference: Reference) -> bool:
    """The familiar form of ``docker.io/a.b/c`` is ``a.b/c``, which means another registry: so it is everywhere."""
    first = reference.path.partition("/")[0]
    return reference.domain == "docker.io" and ("." in first or first == "localhost")


@given(st.text(alphabet="aA0/:@.-_[]\u00e9 ", max_size=30) | st.text(max_size=30))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    """Never another error; what is accepted stays itself when it is printed and read again."""
    try:
        reference = parse(text)
    except InvalidReference:
        return
    assert parse(str(reference)) == reference
    assert _looks_like_a_host(reference) or parse(reference.familiar) == reference
