"""The stdin, stdout and stderr fields of Create and Exec, understood."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from gantry.stdio import uri as stdio_uri
from gantry.stdio.uri import StdioURI
from shim.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class StdioConfig:
    """The fields as they came; State gives them back like that."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @property
    def empty(self) -> bool:
        """Whether the process gets no stream at all."""
        return not (self.stdin or self.stdout or self.stderr)


@dataclass(frozen=True, slots=True)
class BinaryLogger:
    """A `binary://` URI: a program that takes the output. Its arguments are the query's names and values in turn."""

    path: str
    arguments: tuple[str, ...]


def session_uri(config: StdioConfig) -> StdioURI | None:
    """The gantry-stdio URI of a process, whichever field has it. InvalidArgument when it is malformed, or when the
    fields name different sockets."""
    try:
        found = [
            stdio_uri.parse(text)
            for text in (config.stdout, config.stderr, config.stdin)
            if stdio_uri.is_stdio_uri(text)
        ]
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    if not found:
        return None
    if any(other.socket != found[0].socket for other in found):
        raise InvalidArgument("stdin, stdout and stderr name different gantry-stdio sockets")
    return found[0]


def scheme_of(text: str) -> str:
    """`fifo` for a plain path, else the URI's scheme; InvalidArgument for one that is not known."""
    scheme = urlsplit(text).scheme or "fifo"
    if scheme not in ("fifo", "file", "binary", stdio_uri.SCHEME):
        raise InvalidArgument(f"unknown STDIO scheme {scheme}")
    return scheme


def path_of(text: str) -> str:
    """The path of a FIFO or of a `fifo://` or `file://` URI."""
    return urlsplit(text).path if "://" in text else text


def binary_of(text: str) -> BinaryLogger:
    """The program of a `binary://` URI."""
    parts = urlsplit(text)
    arguments: list[str] = []
    seen = set()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in seen:
            seen.add(name)
            arguments += [name, value]
    return BinaryLogger(parts.path, tuple(arguments))
