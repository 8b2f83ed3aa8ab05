from __future__ import annotations

import pytest

from gantry.oci import platform
from gantry.oci.platform import InvalidPlatform, Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("macos/arm64", Platform("darwin", "arm64")),
    ],
)
def test_platforms_are_normalised(text: str, expected: Platform) -> None:
    """Aliases and default variants become one word."""
    assert platform.parse(text) == expected


def test_a_single_word_is_a_system_or_an_architecture() -> None:
    """The other part is the host's."""
    host = platform.default()
    assert platform.parse("linux").architecture == host.architecture
    assert platform.parse("s390x") == Platform("linux", "s390x")


@pytest.mark.parametrize("text", ["", "linux/", "linux/amd64/v2/x", "linux/am d", "nonsense", "linux/*"])
def test_bad_platforms_are_refused(text: str) -> None:
    """The error is of the vocabulary."""
    with pytest.raises(InvalidPlatform, match="invalid platform"):
        platform.parse(text)


def test_the_best_offer_is_taken() -> None:
    """Exact before compatible; nothing where nothing runs."""
    offers = [Platform("linux", "386"), Platform("linux", "arm", "v6"), Platform("linux", "amd64")]
    assert platform.best_match(offers, Platform("linux", "amd64")) == 2
    assert platform.best_match(offers[:2], Platform("linux", "amd64")) == 0
    assert platform.best_match(offers, Platform("linux", "arm64", "v8")) == 1
    assert platform.best_match(offers, Platform("linux", "s390x")) is None
    assert platform.best_match([Platform("linux", "arm64", "v8")], Platform("linux", "arm64")) == 0
