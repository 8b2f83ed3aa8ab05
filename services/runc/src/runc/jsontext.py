"""JSON for a program whose start-up is counted: the interpreter's own scanner without `json`, which imports `re`.

Where the accelerator is missing, the standard module does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Bound now, not when it is needed: a process that has entered a container loads no code any more.
try:
    import _json
except ImportError:  # an interpreter without the accelerator
    from json import JSONDecoder
    from json.encoder import encode_basestring_ascii

    scanner: Any = None
    make_encoder: Any = None
else:
    encode_basestring_ascii = _json.encode_basestring_ascii
    scanner = _json.make_scanner
    make_encoder = _json.make_encoder


class _Context:
    """What the scanner asks of a decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError(f"invalid number {name}")


def loads(text: bytes) -> Any:
    """The value of one JSON document in UTF-8. Raises ValueError with the place of the error."""
    document = text.decode("utf-8")
    if scanner is None:
        return JSONDecoder().decode(document)
    start = len(document) - len(document.lstrip(" \t\n\r"))
    try:
        value, end = scanner(_Context)(document, start)
    except (StopIteration, SystemError):
        # The scanner alone can not say what is wrong: the whole module can.
        import json

        return json.loads(document)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    rest = document[end:].strip(" \t\n\r")
    if rest:
        raise ValueError(f"unexpected text at offset {end}")
    return value


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    return _refuse(value)


def dumps(value: object, indent: int | str = 0) -> str:
    """The JSON text of a value: compact, or with `indent` (a number of spaces, or the text itself) one item a line."""
    step = " " * indent if isinstance(indent, int) else indent
    if not step and make_encoder is not None:
        encoder = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
        return "".join(encoder(value, 0))
    return _write(value, step, "\n" if step else "")


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _write(value: object, step: str, line: str) -> str:
    inner = line + step if line else ""
    comma = "," + inner
    if isinstance(value, dict):
        if not value:
            return "{}"
        colon = ": " if line else ":"
        items = [f"{_scalar(str(key))}{colon}{_write(item, step, inner)}" for key, item in value.items()]
        return "{" + inner + comma.join(items) + line + "}"
    if isinstance(value, (list, tuple)):
        if not value:
            return "[]"
        return "[" + inner + comma.join([_write(item, step, inner) for item in value]) + line + "]"
    return _scalar(value)
