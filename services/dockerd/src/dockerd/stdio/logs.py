"""Reading json-file logs: the end without the beginning, a span of time without what is before it, and what comes next.

A log is ``PATH`` and, once rotated, ``PATH.1`` (the one before), ``PATH.2`` and so on. Whoever writes it appends
whole records and renames files; this module only reads, and tolerates a record that is torn at the end of a file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote_plus

import msgspec

from gantry.stdio import framing, jsonfile

__all__ = ["LogQuery", "LogReader"]

BLOCK = 256 << 10
"""Bytes read at a time."""

# A frame is made for each run of records of one stream; clients read whole frames into memory.
MAX_FRAME = 64 << 10


@dataclass(frozen=True)
class LogQuery:
    """What to show. Times are nanoseconds since 1970; ``tail`` None is everything.

    Without ``follow`` a pass ends where the log ended at its beginning.
    """

    stdout: bool = True
    stderr: bool = True
    since: int | None = None
    until: int | None = None
    tail: int | None = None
    timestamps: bool = False
    details: bool = False
    multiplexed: bool = True
    follow: bool = False


class _Record(msgspec.Struct):
    log: str = ""
    stream: str = ""
    time: str = ""
    attrs: Mapping[str, str] | None = None


_decoder = msgspec.json.Decoder(_Record)


class LogReader:
    """One pass over a log, for one client. Not for use by two threads at a time."""

    def __init__(self, path: str, query: LogQuery) -> None:
        self._path = path
        self._query = query
        self._since = _fixed_time(jsonfile.timestamp(query.since)) if query.since else ""
        self._until = _fixed_time(jsonfile.timestamp(query.until)) if query.until else ""
        self._files = _open_all(path)
        self._offset = 0
        self._newest = self._files[-1] if self._files and not query.follow else -1
        self._end = os.fstat(self._newest).st_size if self._newest >= 0 else 0
        self._torn = b""
        self.ended = False
        """Whether nothing more can match: the log has passed ``until``."""
        if query.tail is not None:
            self._skip_to_tail(query.tail)
        elif self._since:
            self._skip_to_time(self._since)

    def close(self) -> None:
        """Close the files; closing twice is allowed."""
        while self._files:
            os.close(self._files.popleft())

    def read(self) -> bytes | None:
        """The next piece for the client, None when there is none now (when following, there may be one later)."""
        while not self.ended:
            block = self._read_block()
            if not block:
                return None
            piece = self._format(self._decode(block))
            if piece:
                return piece
        return None

    def _read_block(self) -> bytes:
        """Whole lines from where the pass stands; nothing when all that is written was read."""
        while True:
            if not self._files:
                if not self._query.follow:
                    return b""
                self._files.extend(_open_all(self._path))
                self._offset = 0
                if not self._files:
                    return b""
            last = self._files[0] == self._newest
            data = os.pread(self._files[0], min(BLOCK, self._end - self._offset) if last else BLOCK, self._offset)
            if data:
                self._offset += len(data)
                end = data.rfind(b"\n") + 1
                if not end:
                    self._torn += data
                    continue
                lines, self._torn = self._torn + data[:end], data[end:]
                return lines
            if not self._next_file():
                return b""

    def _next_file(self) -> bool:
        """At the end of a file: go on with the one that was written after it, when there is one."""
        if self._files[0] == self._newest:
            return False
        if len(self._files) == 1:
            self._files.extend(_opened_after(self._path, self._files[0]))
            if len(self._files) == 1:
                return False
            # A record may have been written between the last read and the rotation.
            if os.fstat(self._files[0]).st_size > self._offset:
                return True
        os.close(self._files.popleft())
        self._offset = 0
        self._torn = b""  # the writer never continues a record in the next file
        return True

    @staticmethod
    def _decode(block: bytes) -> list[_Record]:
        try:
            records: list[_Record] = _decoder.decode_lines(block)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            records = []
            for line in block.split(b"\n"):
                try:
                    records.append(_decoder.decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue  # torn, or not a record
        return records

    def _format(self, records: list[_Record]) -> bytes:
        query = self._query
        if self._since or self._until:
            records = self._within(records)
        if not (query.stdout and query.stderr):
            wanted = "stdout" if query.stdout else "stderr"
            records = [record for record in records if record.stream == wanted]
        if query.timestamps or query.details:
            texts = [self._prefix(record) + record.log for record in records]
        else:
            texts = [record.log for record in records]
        if not query.multiplexed:
            return "".join(texts).encode()
        return _frames(records, texts)

    def _within(self, records: list[_Record]) -> list[_Record]:
        chosen = []
        for record in records:
            when = _fixed_time(record.time)
            if self._until and when > self._until:
                self.ended = True
                break
            if when >= self._since:
                chosen.append(record)
        return chosen

    def _prefix(self, record: _Record) -> str:
        text = f"{_fixed_time(record.time)} " if self._query.timestamps else ""
        if self._query.details:
            attributes = sorted((record.attrs or {}).items())
            text += ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in attributes) + " "
        return text

    def _skip_to_tail(self, count: int) -> None:
        """Stand before the last ``count`` records, having read no more than they take."""
        if not self._files:
            return
        newest_first = list(reversed(self._files))
        for number, descriptor in enumerate(newest_first):
            size = self._end if descriptor == self._newest else os.fstat(descriptor).st_size
            offset, count = _tail_offset(descriptor, size, count)
            if count == 0 or number == len(newest_first) - 1:
                for older in newest_first[number + 1 :]:
                    os.close(older)
                self._files = deque(reversed(newest_first[: number + 1]))
                self._offset = offset
                return

    def _skip_to_time(self, since: str) -> None:
        """Stand near before the first record of that time, by bisection: records are in order of time."""
        while len(self._files) > 1 and (_first_time(self._files[1], 0) or "~") < since:
            os.close(self._files.popleft())
        if not self._files:
            return
        low, high = 0, os.fstat(self._files[0]).st_size
        while high - low > BLOCK:
            middle = (low + high) // 2
            when = _first_time(self._files[0], middle)
            if when is not None and when < since:
                low = middle
            else:
                high = middle
        self._offset = _line_start(self._files[0], low)


def _frames(records: list[_Record], texts: list[str]) -> bytes:
    """Docker's multiplexed form; neighbours of one stream share a frame."""
    out = []
    run: list[str] = []
    size = 0
    stream = ""
    for record, text in zip(records, texts, strict=True):
        if run and (record.stream != stream or size > MAX_FRAME):
            out.append(_frame(stream, run))
            run = []
            size = 0
        stream = record.stream
        run.append(text)
        size += len(text)
    if run:
        out.append(_frame(stream, run))
    return b"".join(out)


def _frame(stream: str, texts: list[str]) -> bytes:
    number = framing.Stream.STDERR if stream == "stderr" else framing.Stream.STDOUT
    return framing.encode(number, "".join(texts).encode())


def _fixed_time(text: str) -> str:
    """RFC 3339 in UTC with exactly nine decimals: such texts sort as the times do."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9.9}Z"


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def _open_all(path: str) -> deque[int]:
    """Every file of the log, oldest first. A rotation meanwhile moves files up: one met twice is taken once."""
    found: deque[int] = deque()
    seen = set()
    number = 0
    while True:
        descriptor = _open(f"{path}.{number}" if number else path)
        if descriptor is None:
            if number:
                return found
        else:
            inode = os.fstat(descriptor).st_ino
            if inode in seen:
                os.close(descriptor)
            else:
                seen.add(inode)
                found.appendleft(descriptor)
        number += 1


def _opened_after(path: str, current: int) -> list[int]:
    """The files that were begun after ``current``, oldest first."""
    inode = os.fstat(current).st_ino
    newest = _open(path)
    if newest is None:
        return []
    if os.fstat(newest).st_ino == inode:
        os.close(newest)
        return []
    os.close(newest)
    files = list(_open_all(path))
    inodes = [os.fstat(one).st_ino for one in files]
    # When it was rotated away altogether, what is left is all newer.
    after = inodes.index(inode) + 1 if inode in inodes else 0
    for one in files[:after]:
        os.close(one)
    return files[after:]


def _tail_offset(descriptor: int, size: int, count: int) -> tuple[int, int]:
    """Where the last ``count`` lines of a file begin, and how many of them it does not have."""
    position = size
    end = None  # behind the last whole line; what follows it is torn
    while position > 0:
        length = min(BLOCK, position)
        position -= length
        block = os.pread(descriptor, length, position)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            if end is None:
                end = position + at + 1
                if count == 0:
                    return end, 0
                continue
            count -= 1
            if count == 0:
                return position + at + 1, 0
    return 0, max(0, count - (0 if end is None else 1))


def _line_start(descriptor: int, offset: int) -> int:
    """The beginning of the first line that begins at ``offset`` or later."""
    if offset == 0:
        return 0
    offset -= 1
    while block := os.pread(descriptor, 32 << 10, offset):
        found = block.find(b"\n")
        if found >= 0:
            return offset + found + 1
        offset += len(block)
    return offset


def _first_time(descriptor: int, offset: int) -> str | None:
    """The time of the first record that begins at ``offset`` or later, None when there is none."""
    data = os.pread(descriptor, 128 << 10, _line_start(descriptor, offset))
    for line in data.split(b"\n")[:-1]:
        try:
            return _fixed_time(_decoder.decode(line).time)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return None
