from __future__ import annotations

from collections.abc import Sequence

import pytest

from containerd import filters
from containerd.errors import InvalidArgument

LABELS = {"foo": "bar", "com.example/tier": "front", "empty": "", 'quo"te': "x"}


def _field(path: Sequence[str]) -> str | None:
    match path[0]:
        case "name":
            return "web.1"
        case "other":
            return "omg"
        case "parent":
            return ""
        case "labels":
            return filters.label_field(LABELS, path[1:])
        case _:
            return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("name==web.1", True),
        ("name == web.1", True),
        (" name==web.1 , other==omg ", True),
        ("name==web.1,other==nope", False),
        ("name!=web.1", False),
        ("missing!=x", True),
        ("missing==", None),
        ("name", True),
        ("missing", False),
        ("parent", True),
        ("parent!=x", True),
        ('parent==""', True),
        ("name~=^web", True),
        ("name~=b\\.", True),
        ("name~=|^web\\\\.[0-9]+$|", True),
        ("name~=/^WEB/", False),
        ("name~=[", False),
        ("labels.foo", True),
        ("labels.foo==bar", True),
        ('labels."com.example/tier"==front', True),
        ('labels."com.example/tier"~=|^(front|back)$|', None),
        ('labels."com.example/tier"~=/^(front|back)$/', True),
        ("labels.com.example", False),
        ('labels."quo\\"te"==x', True),
        ('labels.foo=="\\x62ar"', True),
        ('labels.foo=="b\\141r"', True),
        ('labels.foo=="\\u0062ar"', True),
        ("labels.foo==|bar|", None),
        ("name=web.1", None),
        ("name===web.1", None),
        ("name==", None),
        ("==web", None),
        ("name==a b", None),
        ("name==a,", None),
        ('name=="unterminated', None),
        ('name=="\\q"', None),
        ('"name"==web.1', True),
    ],
)
def test_one_filter(text: str, expected: bool | None) -> None:
    """A filter matches as containerd's does; None marks one that cannot be parsed."""
    if expected is None:
        with pytest.raises(InvalidArgument, match="parse error"):
            filters.parse([text])
    else:
        assert filters.parse([text]).match(_field) is expected


def test_filters_are_alternatives() -> None:
    """Any of several filters is enough, none at all matches everything, and so does an empty one."""
    assert filters.parse(["name==x", "other==omg"]).match(_field)
    assert not filters.parse(["name==x", "other==y"]).match(_field)
    assert filters.parse([]).match(_field)
    assert filters.parse(["name==x", ""]).match(_field)


def test_the_error_shows_the_place() -> None:
    """The message marks the character that cannot be understood."""
    with pytest.raises(InvalidArgument, match=r"\[name >\|\^\|< a\]"):
        filters.parse(["name^a"])


def test_an_equality_on_a_key_can_be_looked_up() -> None:
    """A store learns which keys to read, and only when every alternative names one."""
    assert filters.parse(["name==a,labels.x", "name==b"]).equal_values("name") == {"a", "b"}
    assert filters.parse(["name==a", "labels.x"]).equal_values("name") is None
    assert filters.parse([]).equal_values("name") is None
    assert filters.parse(["name!=a"]).equal_values("name") is None


def test_selecting_keeps_the_order() -> None:
    """Objects come back in the order in which they were given."""
    found = filters.select(filters.parse(["id~=^a"]), ["b", "a2", "a1"], lambda item, path: item)
    assert found == ["a2", "a1"]
