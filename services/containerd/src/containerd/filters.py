"""containerd's filter language: ``id==web,labels."com.example/tier"~=|^front|``.

A filter is a list of selectors joined by commas, all of which have to match. A selector is a field path, alone (the
field must be present) or with an operator: ``==``, ``!=`` or ``~=`` (regular expression, searched for anywhere).
Fields and values may be quoted with ``"``; a regular expression also with ``|`` or ``/``. Several filters in one
request are alternatives.

An object is matched through an *adaptor*: a function from the field path to the field's value, None when the object
has no such field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from containerd.errors import InvalidArgument

__all__ = ["Adaptor", "Filter", "label_field", "parse", "select"]

T = TypeVar("T")

Adaptor = Callable[[Sequence[str]], "str | None"]

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'(["/|])((?:\\.|(?!\1)[^\\\n])*)\1')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


@dataclass(frozen=True)
class Selector:
    """One condition: ``operator`` is ``==``, ``!=``, ``~=``, or empty for presence."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def match(self, adaptor: Adaptor) -> bool:
        """Tell whether the adapted object fulfils the condition."""
        field = adaptor(self.path)
        match self.operator:
            case "==":
                return field is not None and field == self.value
            case "!=":
                return (field or "") != self.value
            case "~=":
                return self.pattern is not None and self.pattern.search(field or "") is not None
            case _:
                return field is not None


@dataclass(frozen=True)
class Filter:
    """Alternatives, each a list of selectors that must all match. No alternatives: matches everything."""

    alternatives: tuple[tuple[Selector, ...], ...] = ()

    def match(self, adaptor: Adaptor) -> bool:
        """Tell whether any alternative matches the adapted object."""
        if not self.alternatives:
            return True
        return any(all(selector.match(adaptor) for selector in selectors) for selectors in self.alternatives)

    def __bool__(self) -> bool:
        return bool(self.alternatives)

    def equal_values(self, *path: str) -> frozenset[str] | None:
        """Return the values that ``path`` must be one of, or None when the filter does not pin it.

        A store that has an index on the field looks these up instead of reading everything.
        """
        values = set()
        for selectors in self.alternatives:
            pinned = [s.value for s in selectors if s.path == path and s.operator == "=="]
            if not pinned:
                return None
            values.update(pinned[:1])
        return frozenset(values) if self.alternatives else None


def parse(filters: Iterable[str]) -> Filter:
    """Parse the filters of one request.

    Raises :class:`InvalidArgument` with the place of the mistake.
    """
    texts = list(filters)
    if any(not text for text in texts):
        return Filter()  # an empty alternative matches everything
    return Filter(tuple(_Parser(text).selectors() for text in texts))


def select(matcher: Filter, objects: Iterable[T], field: Callable[[T, Sequence[str]], str | None]) -> list[T]:
    """Return the objects that match; ``field`` gives an object's field by its path."""
    if not matcher:
        return list(objects)
    return [item for item in objects if matcher.match(partial(field, item))]


def label_field(labels: Mapping[str, str], path: Sequence[str]) -> str | None:
    """Return the label that the rest of a field path names: an unquoted key with dots arrives in parts."""
    return labels.get(".".join(path))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while not self._at_end():
            if not self._accept(","):
                raise self._error(f"unexpected input: {self._text[self._position]}")
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._accept("."):
            path.append(self._field())
        self._skip_space()
        if self._at_end() or self._text[self._position] == ",":
            return Selector(tuple(path))
        operator = self._operator()
        value = self._value(regular_expression=operator == "~=")
        return Selector(tuple(path), operator, value, self._compile(value) if operator == "~=" else None)

    def _field(self) -> str:
        self._skip_space()
        if self._position < len(self._text) and self._text[self._position] in '"/|':
            return self._quoted(alternative_quotes=False)
        return self._take(_FIELD, "expected field or quoted")

    def _operator(self) -> str:
        start = self._position
        operator = self._take(_OPERATOR, 'expected an operator ("=="|"!="|"~=")')
        if operator not in ("==", "!=", "~="):
            self._position = start
            raise self._error(f'unsupported operator "{operator}"')
        return operator

    def _value(self, *, regular_expression: bool) -> str:
        self._skip_space()
        if self._position < len(self._text) and self._text[self._position] in '"/|':
            return self._quoted(alternative_quotes=regular_expression)
        return self._take(_VALUE, "expected value or quoted")

    def _quoted(self, *, alternative_quotes: bool) -> str:
        quote = self._text[self._position]
        if quote != '"' and not alternative_quotes:
            raise self._error("invalid quote encountered")
        found = _QUOTED.match(self._text, self._position)
        if found is None:
            raise self._error("quoted literal not terminated")
        value = _ESCAPE.sub(lambda escape: self._unescape(escape, quote), found[2])
        self._position = found.end()
        return value

    def _unescape(self, escape: re.Match[str], quote: str) -> str:
        two, four, eight, octal, simple = escape.groups()
        digits = two or four or eight
        if digits and int(digits, 16) <= 0x10FFFF:
            return chr(int(digits, 16))
        if octal and int(octal, 8) <= 0xFF:
            return chr(int(octal, 8))
        if simple == quote:
            return quote
        if simple in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[simple]
        raise self._error("illegal escape sequence")

    def _compile(self, value: str) -> re.Pattern[str] | None:
        try:
            return re.compile(value)
        except re.error:
            return None  # like the real one: an impossible pattern matches nothing

    def _take(self, pattern: re.Pattern[str], otherwise: str) -> str:
        found = pattern.match(self._text, self._position)
        if found is None:
            raise self._error(otherwise)
        self._position = found.end()
        return found[0]

    def _accept(self, character: str) -> bool:
        self._skip_space()
        if self._text[self._position : self._position + 1] != character:
            return False
        self._position += 1
        return True

    def _at_end(self) -> bool:
        self._skip_space()
        return self._position >= len(self._text)

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._position)
        assert found is not None
        self._position = found.end()

    def _error(self, message: str) -> InvalidArgument:
        text, at = self._text, self._position
        place = f"{text[:at]} >|{text[at]}|< {text[at + 1 :]}" if at < len(text) else text
        return InvalidArgument(f"filters: parse error: [{place}]: {message}: invalid argument")
