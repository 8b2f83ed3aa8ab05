"""Reading a request as the real engine does: API version, query values, filters, JSON bodies.

Go's JSON decoder takes field names in any letter case and treats null as absent; :class:`Fields` does too, and
refuses a value of the wrong type in Go's words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from email.message import Message
from typing import Any, TypeVar, cast

import flask
import msgspec

from dockerd.api.versions import parse_version
from dockerd.errors import EngineError, InvalidParameter, SystemFailure

__all__ = [
    "MAX_BODY",
    "BodyTooLarge",
    "Fields",
    "api_at_least",
    "encode_json",
    "json_body",
    "json_reply",
    "no_content",
    "parse_fields",
    "query_bool",
    "query_filters",
    "query_int",
    "query_text",
    "query_timestamp",
]

MAX_BODY = 4 << 20
"""The longest JSON body that is read, in bytes."""

Value = TypeVar("Value")

_LATEST = (1 << 63) - 1
"""The last nanosecond that 64 bits count, in the year 2262."""

_GO_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_TIMESTAMP = re.compile(r"(-?[0-9]+)(?:\.([0-9]+))?\Z")


class BodyTooLarge(EngineError):
    """The request's body is longer than the engine reads."""

    status = 413


class Fields(dict[str, Any]):
    """A JSON object. A key that is not there as asked for is looked for in any letter case."""

    def __missing__(self, key: str) -> Any:
        wanted = key.lower()
        for name, value in self.items():
            if name.lower() == wanted:
                return value
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        return isinstance(key, str) and any(name.lower() == key.lower() for name in self)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, ``default`` when it is absent or null."""
        try:
            value = self[key]
        except KeyError:
            return default
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        """A string. Every reader of this kind raises InvalidParameter when the value has another type."""
        return self._typed(key, default, "string", lambda value: isinstance(value, str))

    def integer(self, key: str, default: int = 0) -> int:
        """A whole number (Go's int64)."""
        return self._typed(key, default, "int64", lambda value: isinstance(value, int) and not isinstance(value, bool))

    def optional_integer(self, key: str) -> int | None:
        """A whole number, None when absent."""
        return self.integer(key) if self.get(key) is not None else None

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        return self._typed(key, default, "bool", lambda value: isinstance(value, bool))

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        return self._typed(
            key, [], "[]string", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)
        )

    def text_map(self, key: str) -> dict[str, str]:
        """An object whose values are strings, such as labels."""
        empty: dict[str, str] = {}
        found = self._typed(
            key,
            empty,
            "map[string]string",
            lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
        )
        return dict(found)

    def section(self, key: str) -> Fields:
        """An object, empty when absent."""
        return self._typed(key, Fields(), "object", lambda value: isinstance(value, dict))

    def sections(self, key: str) -> list[Fields]:
        """A list of objects."""
        return self._typed(
            key, [], "[]object", lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value)
        )

    def _typed(self, key: str, default: Value, kind: str, accept: Callable[[Any], bool]) -> Value:
        value = self.get(key)
        if value is None:
            return default
        if not accept(value):
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal {_go_kind(value)} into Go struct field .{key} of type {kind}"
            )
        return cast("Value", value)


def _go_kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    for kind, name in ((str, "string"), ((int, float), "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def api_at_least(version: str) -> bool:
    """Whether the client speaks at least this API version, e.g. ``"1.42"``."""
    return cast("tuple[int, ...]", flask.g.api_version) >= parse_version(version)


def query_text(name: str, default: str = "") -> str:
    """The first value of a query parameter."""
    return flask.request.args.get(name, default)


def query_bool(name: str, default: bool = False) -> bool:
    """True for anything but nothing, ``0``, ``no``, ``false`` and ``none``."""
    value = flask.request.args.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def query_int(name: str, default: int = 0) -> int:
    """A whole number. Raises SystemFailure otherwise: that is what the real engine answers."""
    value = flask.request.args.get(name, "")
    if not value:
        return default
    if not _GO_INTEGER.match(value):
        raise SystemFailure(f'strconv.Atoi: parsing "{value}": invalid syntax')
    return int(value)


def query_timestamp(name: str) -> int | None:
    """A time as ``SECONDS[.NANOSECONDS]``, in nanoseconds since 1970; None when absent or empty."""
    value = flask.request.args.get(name, "")
    if not value:
        return None
    match = _TIMESTAMP.match(value)
    if match is None:
        raise SystemFailure(f'strconv.ParseInt: parsing "{value}": invalid syntax')
    moment = int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0")[:9])
    return max(-_LATEST, min(moment, _LATEST))


def query_filters(accepted: Collection[str] | None = None) -> dict[str, list[str]]:
    """The ``filters`` parameter, ``{"label": ["a", "b"]}`` or the older ``{"label": {"a": true}}``.

    Raises InvalidParameter for anything else and, when ``accepted`` is given, for a key that is not in it.
    """
    text = flask.request.args.get("filters", "")
    if not text:
        return {}
    try:
        raw = json.loads(text)
    except ValueError:
        raise InvalidParameter("invalid filter") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InvalidParameter("invalid filter")
    filters: dict[str, list[str]] = {}
    for key, values in raw.items():
        if isinstance(values, dict) and all(isinstance(one, bool) for one in values.values()):
            filters[key] = [name for name, wanted in values.items() if wanted]
        elif isinstance(values, list) and all(isinstance(one, str) for one in values):
            filters[key] = values
        else:
            raise InvalidParameter("invalid filter")
        if accepted is not None and key not in accepted:
            raise InvalidParameter(f"invalid filter '{key}'")
    return filters


def json_body(required: bool = True) -> Fields:
    """The request's body as a JSON object.

    An empty body is an empty object, or an error when ``required``. Raises InvalidParameter in the real engine's
    words for a wrong Content-Type and for malformed JSON, BodyTooLarge beyond :data:`MAX_BODY`.
    """
    request = flask.request
    kind = request.headers.get("Content-Type", "")
    length = request.content_length
    chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
    empty = not chunked and not length
    if kind or not empty:
        _require_json(kind)
    if length is not None and length > MAX_BODY:
        raise BodyTooLarge(f"request body is too large: {length} bytes, the limit is {MAX_BODY}")
    data = b"" if empty else request.stream.read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        raise BodyTooLarge(f"request body is too large: the limit is {MAX_BODY} bytes")
    if not data.strip():
        if required or not empty:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        return Fields()
    return parse_fields(data)


def parse_fields(data: bytes) -> Fields:
    """Decode a JSON object. Raises InvalidParameter, worded as Go's decoder words it."""
    try:
        text = data.decode()
        decoder = json.JSONDecoder(object_pairs_hook=Fields, parse_constant=_refuse_constant)
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = decoder.raw_decode(text, start)
    except UnicodeDecodeError:
        raise InvalidParameter("invalid JSON: the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidParameter(f"invalid JSON: {_go_syntax_error(text, error)}") from None
    except RecursionError:
        raise InvalidParameter("invalid JSON: exceeded max depth") from None
    if text[end:].strip(" \t\r\n"):
        raise InvalidParameter("unexpected content after JSON")
    if value is None:
        return Fields()
    if not isinstance(value, Fields):
        raise InvalidParameter(f"invalid JSON: json: cannot unmarshal {_go_kind(value)} into Go value of type object")
    return value


def _refuse_constant(name: str) -> None:
    raise InvalidParameter(f"invalid JSON: invalid character '{name[0]}' looking for beginning of value")


def _go_syntax_error(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    expecting = {
        "Expecting ',' delimiter": "after object key:value pair",
        "Expecting ':' delimiter": "after object key",
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    }
    return f"invalid character '{text[error.pos]}' {expecting.get(error.msg, 'looking for beginning of value')}"


def _require_json(kind: str) -> None:
    message = Message()
    message["Content-Type"] = kind
    if "/" not in kind:
        raise InvalidParameter(f"malformed Content-Type header ({kind}): mime: no media type")
    if message.get_content_type() != "application/json":
        raise InvalidParameter(f"unsupported Content-Type header ({kind}): must be 'application/json'")


def encode_json(value: object) -> bytes:
    """JSON as the real engine writes it: compact, and ending in a newline."""
    return msgspec.json.encode(value) + b"\n"


def json_reply(value: object, status: int = 200) -> flask.Response:
    """Answer with a JSON body."""
    return flask.Response(encode_json(value), status=status, content_type="application/json")


def no_content() -> flask.Response:
    """Done, nothing to say: 204."""
    return flask.Response(status=204)
