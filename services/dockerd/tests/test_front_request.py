"""Reading requests: bodies, query values, filters, versions."""

from __future__ import annotations

from collections.abc import Iterator

import flask
import pytest

from dockerd.api import request as reading
from dockerd.api.versions import parse_version, split_path
from dockerd.errors import EngineError, InvalidParameter, SystemFailure


@pytest.fixture
def app() -> Iterator[flask.Flask]:
    """A bare application: only its requests matter."""
    return flask.Flask("test")


def read_body(app: flask.Flask, data: bytes, kind: str | None = "application/json", required: bool = True):
    with app.test_request_context("/", method="POST", data=data, content_type=kind):
        return reading.json_body(required)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b'{"a"', "application/json", "invalid JSON: unexpected EOF"),
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"", None, "invalid JSON: got EOF while reading request body"),
        (b"{}{}", "application/json", "unexpected content after JSON"),
        (b"[", "application/json", "invalid JSON: unexpected EOF"),
        (b"}", "application/json", "invalid JSON: invalid character '}' looking for beginning of value"),
        (b"[]", "application/json", "cannot unmarshal array into Go value"),
        (b"NaN", "application/json", "invalid JSON: invalid character 'N' looking for beginning of value"),
        (b'{"a":"\xff"}', "application/json", "invalid JSON: the body is not UTF-8"),
        (b"{}", "nonsense", "malformed Content-Type header (nonsense)"),
        (b'{"a":' * 100_000, "application/json", "invalid JSON"),
    ],
)
def test_bad_bodies_are_refused_in_the_real_engines_words(
    app: flask.Flask, data: bytes, kind: str | None, message: str
) -> None:
    """Each text is what the real engine answers to the same bytes, as far as clients could match on it."""
    with pytest.raises(InvalidParameter) as raised:
        read_body(app, data, kind)
    assert message in str(raised.value)


def test_an_oversized_body_is_refused(app: flask.Flask) -> None:
    """The engine does not read what no client of the API sends."""
    with pytest.raises(EngineError) as raised:
        read_body(app, b'{"a":"' + b"x" * reading.MAX_BODY + b'"}')
    assert raised.value.status == 413


def test_an_empty_body_may_be_allowed(app: flask.Flask) -> None:
    """Old clients start containers without a body."""
    assert read_body(app, b"", None, required=False) == {}


def test_fields_are_found_in_any_letter_case(app: flask.Flask) -> None:
    """As Go's decoder does, nested ones too."""
    body = read_body(
        app, b'{"image":"x","HOSTCONFIG":{"autoremove":true},"Labels":{"a":"b"}}', "application/json; charset=utf-8"
    )
    assert body.text("Image") == "x"
    assert body.section("HostConfig").flag("AutoRemove") is True
    assert body.text_map("Labels") == {"a": "b"}
    assert "Image" in body
    assert "Cmd" not in body


def test_null_is_absent(app: flask.Flask) -> None:
    """Go leaves a field at its zero value for null."""
    body = read_body(app, b'{"Cmd":null,"N":null}')
    assert body.texts("Cmd") == []
    assert body.optional_integer("N") is None


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda body: body.text("A"), "cannot unmarshal number into Go struct field .A of type string"),
        (lambda body: body.integer("S"), "cannot unmarshal string into Go struct field .S of type int64"),
        (lambda body: body.flag("A"), "cannot unmarshal number into Go struct field .A of type bool"),
        (lambda body: body.integer("T"), "cannot unmarshal bool into Go struct field .T of type int64"),
        (lambda body: body.section("S"), "cannot unmarshal string into Go struct field .S of type object"),
    ],
)
def test_wrong_types_name_the_field(app: flask.Flask, read, message: str) -> None:
    """The message says which field has which type."""
    body = read_body(app, b'{"A":3,"S":"x","T":true}')
    with pytest.raises(InvalidParameter, match=message):
        read(body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", False), ("0", False), ("no", False), ("false", False), ("None", False), ("1", True), ("x", True)],
)
def test_booleans_are_read_as_the_real_engine_reads_them(app: flask.Flask, value: str, expected: bool) -> None:
    """Anything but five words is true."""
    with app.test_request_context(f"/?all={value}"):
        assert reading.query_bool("all") is expected


def test_numbers_and_times(app: flask.Flask) -> None:
    """Times have up to nine decimals and end where 64 bits of nanoseconds do."""
    with app.test_request_context("/?n=-5&t=12.5&far=99999999999&bad=x"):
        assert reading.query_int("n") == -5
        assert reading.query_timestamp("t") == 12_500_000_000
        assert reading.query_timestamp("far") == (1 << 63) - 1
        assert reading.query_timestamp("none") is None
        with pytest.raises(SystemFailure, match=r'strconv\.Atoi: parsing "x": invalid syntax'):
            reading.query_int("bad")
        with pytest.raises(SystemFailure, match=r'strconv\.ParseInt: parsing "x": invalid syntax'):
            reading.query_timestamp("bad")


@pytest.mark.parametrize("text", ['{"label":["a","b"]}', '{"label":{"a":true,"b":true,"c":false}}'])
def test_both_forms_of_filters_are_read(app: flask.Flask, text: str) -> None:
    """Clients of before API 1.22 send maps."""
    with app.test_request_context("/", query_string={"filters": text}):
        assert reading.query_filters({"label"}) == {"label": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xx", "invalid filter"),
        ("[]", "invalid filter"),
        ('{"a":1}', "invalid filter"),
        ('{"foo":["a"]}', "invalid filter 'foo'"),
    ],
)
def test_bad_filters_are_refused(app: flask.Flask, text: str, message: str) -> None:
    """A key that is not known is named."""
    with app.test_request_context("/", query_string={"filters": text}), pytest.raises(InvalidParameter) as raised:
        reading.query_filters({"label"})
    assert str(raised.value) == message


def test_versions_are_taken_off_the_path() -> None:
    """Only what looks like a version is one."""
    assert split_path("/v1.42/containers/json") == ("1.42", "/containers/json")
    assert split_path("/version") == (None, "/version")
    assert split_path("/vfoo/version") == (None, "/vfoo/version")
    assert split_path("/v1.42") == (None, "/v1.42")
    assert parse_version("1.9") < parse_version("1.24")
