"""The gantry-stdio URI, which stands in the stdin, stdout and stderr fields of a task.

    gantry-stdio:///ABSOLUTE/PATH/attach.sock?driver=json-file&path=/ABS/ID-json.log&max-size=BYTES&max-file=N&attrs=JSON

It says where the shim listens for sessions (gantry.stdio.v1) and what it does with the output besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

SCHEME: Final = "gantry-stdio"
DRIVERS: Final = ("none", "json-file")


@dataclass(frozen=True, slots=True)
class StdioURI:
    """One parsed URI. `max_size` in bytes, 0 for unlimited; `max_file` counts the current file too."""

    socket: str
    driver: str = "none"
    path: str = ""
    max_size: int = 0
    max_file: int = 1
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.socket.startswith("/") or self.socket.endswith("/"):
            raise ValueError(f"{SCHEME} URI: socket {self.socket!r} is not the absolute path of a file")
        if self.driver not in DRIVERS:
            raise ValueError(f"{SCHEME} URI: unknown driver {self.driver!r}")
        if self.driver == "json-file" and not self.path.startswith("/"):
            raise ValueError(f"{SCHEME} URI: path {self.path!r} is not absolute")
        if "\0" in self.socket or "\0" in self.path:
            raise ValueError(f"{SCHEME} URI: a path with a NUL byte")
        if self.max_size < 0:
            raise ValueError(f"{SCHEME} URI: max-size {self.max_size} is negative")
        if self.max_file < 1:
            raise ValueError(f"{SCHEME} URI: max-file cannot be less than 1")

    def build(self) -> str:
        """As text. What has its default value is left out."""
        query = []
        if self.driver != "none":
            query.append(f"driver={self.driver}")
        if self.path:
            query.append(f"path={quote(self.path)}")
        if self.max_size:
            query.append(f"max-size={self.max_size}")
        if self.max_file != 1:
            query.append(f"max-file={self.max_file}")
        if self.attrs:
            text = json.dumps(dict(self.attrs), separators=(",", ":"), sort_keys=True)
            query.append(f"attrs={quote(text, safe='')}")
        return f"{SCHEME}://{quote(self.socket)}" + ("?" + "&".join(query) if query else "")

    def __str__(self) -> str:
        return self.build()


def is_stdio_uri(text: str) -> bool:
    """Whether a field's text is of this scheme."""
    return text.startswith(f"{SCHEME}://")


def parse(text: str) -> StdioURI:
    """The parts of a URI. ValueError names what is wrong; a parameter that is not known is wrong too."""
    if not is_stdio_uri(text):
        raise ValueError(f"{text!r} is not a {SCHEME} URI")
    location, _, query = text.removeprefix(f"{SCHEME}://").partition("?")
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if name not in ("driver", "path", "max-size", "max-file", "attrs"):
            raise ValueError(f"{SCHEME} URI: unknown parameter {name!r}")
        if name in values:
            raise ValueError(f"{SCHEME} URI: parameter {name!r} is given twice")
        values[name] = value
    return StdioURI(
        socket=unquote(location, errors="surrogateescape"),
        driver=values.get("driver") or "none",
        path=values.get("path", ""),
        max_size=_number("max-size", values.get("max-size") or "0"),
        max_file=_number("max-file", values.get("max-file") or "1"),
        attrs=_attrs(values.get("attrs", "")),
    )


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{SCHEME} URI: {name} {text!r} is not a number") from None


def _attrs(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{SCHEME} URI: attrs is not JSON: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{SCHEME} URI: attrs is not an object of strings")
    return value
