"""Docker's json-file log: one JSON object a line.

    {"log":"text\\n","stream":"stdout","attrs":{...},"time":"2006-01-02T15:04:05.999999999Z"}

A record is one line of output with its newline. A line of more than 16 KiB is cut into records of 16 KiB, of which only
the last ends in a newline; all carry the time of the first. Text is escaped as Go's encoding/json does: `<`, `>`, `&`,
U+2028 and U+2029 as \\u escapes, and each byte that is not UTF-8 as \\ufffd.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_LINE: Final = 16 << 10
"""Most bytes of output in one record."""

_SURROGATE: Final = "\udcff"  # what an invalid byte is while the text is being escaped; valid UTF-8 never holds it
_CONTROL: Final = bytes(code for code in range(0x20) if code != 0x0A)
_ESCAPES: Final = {
    0x0D: b"\\r",
    **{code: b"\\u%04x" % code for code in range(0x20) if code not in (0x0A, 0x0D)},
}
_MARKUP: Final = ((b'"', b'\\"'), (b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026"))
_MARKUP_BYTES: Final = b'"<>&\\'


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _SURROGATE * (error.end - error.start), error.end


codecs.register_error("gantry.stdio.go", _replace_each_byte)


def escape(data: bytes) -> bytes:
    """The inside of a JSON string, but for newlines, which stay."""
    if len(data.translate(None, _MARKUP_BYTES)) != len(data):
        data = data.replace(b"\\", b"\\\\")
        for plain, escaped in _MARKUP:
            data = data.replace(plain, escaped)
    if len(data.translate(None, _CONTROL)) != len(data):
        for code in set(data).intersection(_CONTROL):
            data = data.replace(bytes((code,)), _ESCAPES[code])
    if not data.isascii():
        text = data.decode("utf-8", "gantry.stdio.go")
        text = text.replace(_SURROGATE, "\\ufffd").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        data = text.encode()
    return data


def timestamp(nanoseconds: int) -> str:
    """A moment since the epoch as RFC 3339 in UTC, with as many decimals as it needs (Go's RFC3339Nano)."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    moment = time.gmtime(seconds)
    text = (
        f"{moment.tm_year:04d}-{moment.tm_mon:02d}-{moment.tm_mday:02d}"
        f"T{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d}"
    )
    if fraction:
        text += f".{fraction:09d}".rstrip("0")
    return text + "Z"


class Encoder:
    """Turns one stream of a process into records; holds the line that is not complete yet."""

    def __init__(self, stream: str, attrs: Mapping[str, str] | None = None) -> None:
        self._middle = f'","stream":"{stream}",'.encode()
        if attrs:
            pairs = json.dumps(dict(sorted(attrs.items())), separators=(",", ":"), ensure_ascii=False)
            self._middle += b'"attrs":' + _escape_markup(pairs) + b","
        self._pending = b""
        self._partial_since = 0

    def feed(self, data: bytes, now: int) -> bytes:
        """The records that are complete with `data`, read at `now` (ns since the epoch)."""
        last = data.rfind(b"\n")
        if last < 0:
            self._pending += data
            return self._cut_long(now) if len(self._pending) >= MAX_LINE else b""
        lines = self._pending + data[: last + 1]
        self._pending = data[last + 1 :]
        records = self._records(lines, now)
        return records + self._cut_long(now) if len(self._pending) >= MAX_LINE else records

    def finish(self, now: int) -> bytes:
        """The record of an unfinished last line, at the stream's end."""
        line, self._pending = self._pending, b""
        if not line:
            return b""
        since, self._partial_since = self._partial_since or now, 0
        return self._record(line, since)

    def _records(self, lines: bytes, now: int) -> bytes:
        """`lines` ends in a newline. One replace makes all records that need no care."""
        out = []
        if self._partial_since:
            end = lines.index(b"\n")
            if end < MAX_LINE:
                since, self._partial_since = self._partial_since, 0
                out.append(self._record(lines[: end + 1], since))
                lines = lines[end + 1 :]
        begin = position = 0
        while len(lines) - position > MAX_LINE:
            end = lines.rfind(b"\n", position, position + MAX_LINE)
            if end >= 0:
                position = end + 1
                continue
            out.append(self._plain(lines[begin:position], now))
            position = begin = self._long(lines, position, now, out)
        out.append(self._plain(lines[begin:], now))
        return b"".join(out)

    def _long(self, lines: bytes, position: int, now: int, out: list[bytes]) -> int:
        """Records of a line longer than MAX_LINE that begins at `position`; returns where the next line begins."""
        end = lines.index(b"\n", position)
        since, self._partial_since = self._partial_since or now, 0
        while end - position >= MAX_LINE:
            out.append(self._record(lines[position : position + MAX_LINE], since))
            position += MAX_LINE
        out.append(self._record(lines[position : end + 1], since))
        return end + 1

    def _cut_long(self, now: int) -> bytes:
        out = []
        self._partial_since = self._partial_since or now
        while len(self._pending) >= MAX_LINE:
            out.append(self._record(self._pending[:MAX_LINE], self._partial_since))
            self._pending = self._pending[MAX_LINE:]
        return b"".join(out)

    def _plain(self, lines: bytes, now: int) -> bytes:
        if not lines:
            return b""
        tail = self._tail(now)
        return b'{"log":"' + escape(lines[:-1]).replace(b"\n", b"\\n" + tail + b'{"log":"') + b"\\n" + tail

    def _record(self, line: bytes, when: int) -> bytes:
        return b'{"log":"' + escape(line).replace(b"\n", b"\\n") + self._tail(when)

    def _tail(self, when: int) -> bytes:
        return self._middle + b'"time":"' + timestamp(when).encode() + b'"}\n'


def _escape_markup(text: str) -> bytes:
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace")


class LogFile:
    """The file that records are appended to; rotated when it has reached its size.

    With a `max_size` in bytes, the record after the one that reaches it begins a new file; the old one becomes `.1`,
    that one `.2`, up to `max_file` files with the current one. With one file the old one is removed. 0 is unlimited.
    """

    def __init__(self, path: str, max_size: int = 0, max_file: int = 1, mode: int = 0o640) -> None:
        self.path = path
        self._max_size = max_size
        self._max_file = max_file
        self._mode = mode
        self._descriptor = self._open(os.O_APPEND)
        self._size = os.fstat(self._descriptor).st_size

    def _open(self, flags: int) -> int:
        return os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND | flags, self._mode
        )

    def write(self, records: bytes) -> None:
        """Appends whole records, with one write(2) for all that go into one file.

        OSError when the disk is full or the file cannot be written: the records that did not fit are dropped, and no
        part of one is left in the file.
        """
        while records:
            if not self._max_size:
                self._append(records)
                return
            if self._size >= self._max_size:
                self._rotate()
            end = records.find(b"\n", self._max_size - self._size - 1) + 1 or len(records)
            self._append(records[:end])
            records = records[end:]

    def _append(self, records: bytes) -> None:
        written = os.write(self._descriptor, records)
        if written == len(records):
            self._size += written
            return
        whole = records.rfind(b"\n", 0, written) + 1
        os.ftruncate(self._descriptor, self._size + whole)
        self._size += whole
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._append(records[whole:])

    def _rotate(self) -> None:
        if self._max_file < 2:
            _ignoring_absence(os.unlink, self.path)
        else:
            for number in range(self._max_file - 1, 1, -1):
                _ignoring_absence(os.rename, f"{self.path}.{number - 1}", f"{self.path}.{number}")
            _ignoring_absence(os.rename, self.path, f"{self.path}.1")
        descriptor = self._open(os.O_TRUNC)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = 0

    def close(self) -> None:
        """Closes the file; closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _ignoring_absence(call: object, *paths: str) -> None:
    assert callable(call)
    try:
        call(*paths)
    except FileNotFoundError:
        return


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read. `time` is RFC 3339 text, which sorts by time within one precision."""

    log: bytes
    stream: str
    time: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse(line: bytes) -> Record:
    """Reads one line of the file. ValueError when it is not a record (a torn write)."""
    value = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value.get("log", ""), str):
        raise ValueError("not a json-file record")
    return Record(
        value.get("log", "").encode("utf-8", "replace"),
        str(value.get("stream", "")),
        str(value.get("time", "")),
        value.get("attrs") or {},
    )


class Reader:
    """Cuts what is read from a file into records; a line without its newline is held back until the rest comes."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Record]:
        """The records that are complete with `data`. Lines that are no records are passed over."""
        lines = (self._pending + data).split(b"\n")
        self._pending = lines.pop()
        records = []
        for line in lines:
            try:
                records.append(parse(line))
            except ValueError:
                continue
        return records
