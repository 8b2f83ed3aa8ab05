"""Reading json-file logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dockerd.stdio import logs
from dockerd.stdio.logs import LogQuery, LogReader
from gantry.stdio.framing import Decoder, Stream
from gantry.stdio.jsonfile import Encoder, LogFile

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the log is."""
    return str(tmp_path / "x-json.log")


def write(path: str, count: int, *, first: int = 0, stream: str = "stdout", size: int = 0, files: int = 1) -> None:
    """Append lines ``line N``, one a second."""
    log, encoder = LogFile(path, size, files), Encoder(stream)
    for number in range(first, first + count):
        log.write(encoder.feed(f"line {number}\n".encode(), START + number * SECOND))
    log.close()


def read(path: str, **query: object) -> bytes:
    reader = LogReader(path, LogQuery(**{"multiplexed": False, **query}))  # type: ignore[arg-type]
    try:
        return read_on(reader)
    finally:
        reader.close()


def read_on(reader: LogReader) -> bytes:
    pieces = []
    while (piece := reader.read()) is not None:
        pieces.append(piece)
    return b"".join(pieces)


def lines(first: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, end))


def test_everything_is_read(path: str) -> None:
    """In order, across blocks."""
    write(path, 10_000)
    assert os.stat(path).st_size > 2 * logs.BLOCK
    assert read(path) == lines(0, 10_000)


def test_a_log_that_does_not_exist_is_empty(path: str) -> None:
    """A container that never ran has none."""
    assert read(path) == b""
    assert read(path, tail=5) == b""
    assert read(path, since=5) == b""


@pytest.mark.parametrize("count", [0, 1, 7, 4000, 9_999, 10_000, 20_000])
def test_tail(path: str, count: int) -> None:
    """The last lines, however many there are."""
    write(path, 10_000)
    assert read(path, tail=count) == lines(max(0, 10_000 - count), 10_000)


def test_tail_reads_the_end_only(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lines of a large log cost a few blocks."""
    write(path, 50_000)
    taken = 0
    pread = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal taken
        data = pread(descriptor, length, offset)
        taken += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    assert read(path, tail=3) == lines(49_997, 50_000)
    assert taken <= 2 * logs.BLOCK


@pytest.mark.parametrize("count", [0, 5, 60, 100, 150, 500])
def test_tail_goes_back_into_rotated_files(path: str, count: int) -> None:
    """The newest file may hold fewer lines than were asked for."""
    write(path, 200, size=3000, files=10)
    assert os.path.exists(f"{path}.3")
    assert read(path, tail=count) == lines(max(0, 200 - count), 200)


def test_rotated_files_are_read_oldest_first(path: str) -> None:
    """Everything that was kept."""
    write(path, 200, size=3000, files=10)
    assert read(path) == lines(0, 200)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (17, 17), (5_000, 9_000), (9_999, 12_000), (20_000, 30_000)])
def test_since_and_until(path: str, first: int, last: int) -> None:
    """Bounds included."""
    write(path, 10_000)
    found = read(path, since=START + first * SECOND, until=START + last * SECOND)
    assert found == lines(first, min(last + 1, 10_000))


def test_since_does_not_read_what_is_before(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is found by bisection."""
    write(path, 50_000)
    blocks: list[int] = []
    decode = LogReader._decode
    monkeypatch.setattr(LogReader, "_decode", staticmethod(lambda block: blocks.append(len(block)) or decode(block)))
    assert read(path, since=START + 49_990 * SECOND) == lines(49_990, 50_000)
    assert sum(blocks) <= 3 * logs.BLOCK


def test_since_passes_over_whole_files(path: str) -> None:
    """Rotated files that are older are not looked at."""
    write(path, 200, size=3000, files=10)
    assert read(path, since=START + 190 * SECOND) == lines(190, 200)
    assert read(path, since=START + 20 * SECOND) == lines(20, 200)


def test_until_ends_the_pass(path: str) -> None:
    """So that a follower knows that nothing more can come."""
    write(path, 10)
    reader = LogReader(path, LogQuery(until=START + 3 * SECOND, multiplexed=False, follow=True))
    assert read_on(reader) == lines(0, 4)
    assert reader.ended
    reader.close()


def test_streams_are_chosen_and_framed(path: str) -> None:
    """stderr is stream 2; neighbours of one stream share a frame."""
    write(path, 3)
    write(path, 2, first=3, stream="stderr")
    write(path, 1, first=5)
    framed = read(path, multiplexed=True)
    assert Decoder().feed(framed) == [
        (Stream.STDOUT, lines(0, 3)),
        (Stream.STDERR, lines(3, 5)),
        (Stream.STDOUT, lines(5, 6)),
    ]
    assert read(path, stdout=False) == lines(3, 5)
    assert read(path, stderr=False) == lines(0, 3) + lines(5, 6)


def test_timestamps_have_nine_decimals(path: str) -> None:
    """Go writes as many as are needed into the log; clients get a fixed width (captured from the real engine)."""
    log, encoder = LogFile(path), Encoder("stdout", {"tag": "a b", "env": "x=1"})
    log.write(encoder.feed(b"hi\n", 1795503352_685324740))
    log.write(encoder.feed(b"ho\n", 1795503353_000000000))
    log.close()
    assert read(path, timestamps=True) == b"2026-11-24T06:55:52.685324740Z hi\n2026-11-24T06:55:53.000000000Z ho\n"
    assert read(path, details=True, tail=1) == b"env=x%3D1,tag=a+b ho\n"
    assert read(path, details=True, timestamps=True, tail=1) == b"2026-11-24T06:55:53.000000000Z env=x%3D1,tag=a+b ho\n"


def test_bytes_that_are_no_text_survive_as_far_as_json_allows(path: str) -> None:
    """The log replaces them; reading does not fail on it."""
    log, encoder = LogFile(path), Encoder("stdout")
    log.write(encoder.feed("grüße \U0001f40b\n".encode() + b"\xff\n", START))
    log.close()
    assert read(path) == "grüße \U0001f40b\n\ufffd\n".encode()


def test_a_torn_last_record_is_left_out(path: str) -> None:
    """A crash in the middle of a write costs that record alone, for a tail too."""
    write(path, 5)
    with open(path, "ab") as file:
        file.write(b'{"log":"torn')
    assert read(path) == lines(0, 5)
    assert read(path, tail=2) == lines(3, 5)
    write(path, 1, first=7)  # glued to the torn one: unreadable, and passed over
    write(path, 1, first=8)
    assert read(path) == lines(0, 5) + lines(8, 9)


@pytest.mark.parametrize("tail", [None, 2])
def test_a_pass_ends_where_the_log_ended_when_it_began(path: str, tail: int | None) -> None:
    """A container that writes all the time does not make ``--tail 2`` show three lines, or a listing endless."""
    write(path, 5)
    reader = LogReader(path, LogQuery(multiplexed=False, tail=tail))
    write(path, 5, first=5)
    assert read_on(reader) == lines(3 if tail else 0, 5)
    reader.close()


def test_a_pass_without_following_stays_in_its_files(path: str) -> None:
    """What begins a new file after the pass began is not shown."""
    write(path, 5, size=3000, files=5)
    reader = LogReader(path, LogQuery(multiplexed=False))
    write(path, 200, first=5, size=3000, files=20)
    assert read_on(reader) == lines(0, 5)
    reader.close()


def test_a_record_between_the_last_look_and_the_rotation_is_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file is read to its end after it is known that there is a new one."""
    write(path, 5)
    reader = LogReader(path, LogQuery(multiplexed=False, follow=True))
    assert read_on(reader) == lines(0, 5)
    pread = os.pread
    done = False

    def late(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal done
        data = pread(descriptor, length, offset)
        if not data and not done:
            done = True
            write(path, 1, first=5)
            os.rename(path, f"{path}.1")
            write(path, 1, first=6)
        return data

    monkeypatch.setattr(os, "pread", late)
    assert read_on(reader) == lines(5, 7)
    reader.close()


def test_following_sees_what_is_added(path: str) -> None:
    """Also when a record arrives in two pieces."""
    write(path, 3)
    reader = LogReader(path, LogQuery(multiplexed=False, follow=True))
    assert read_on(reader) == lines(0, 3)
    assert reader.read() is None
    record = Encoder("stdout").feed(b"line 3\n", START)
    with open(path, "ab") as file:
        file.write(record[:20])
        file.flush()
        assert reader.read() is None
        file.write(record[20:])
    assert read_on(reader) == lines(3, 4)
    reader.close()


def test_following_goes_on_across_rotation(path: str) -> None:
    """Several times between two looks, and with the old file removed."""
    write(path, 10, size=3000, files=10)
    reader = LogReader(path, LogQuery(multiplexed=False, follow=True))
    found = read_on(reader)
    for first in range(10, 400, 130):
        write(path, 130, first=first, size=3000, files=20)
        found += read_on(reader)
    reader.close()
    assert found == lines(0, 400)


def test_following_a_log_that_keeps_one_file(path: str) -> None:
    """The file is replaced by a new one; what was in the old one and was not read yet is read first."""
    write(path, 5, size=300, files=1)
    reader = LogReader(path, LogQuery(multiplexed=False, tail=0, follow=True))
    assert reader.read() is None
    log, encoder = LogFile(path, 600, 1), Encoder("stdout")
    found = b""
    for number in range(5, 60):
        log.write(encoder.feed(b"line %d\n" % number, START))
        found += read_on(reader)
    log.close()
    reader.close()
    assert found == lines(5, 60)


def test_following_begins_before_the_file_exists(path: str) -> None:
    """A container's first line makes it."""
    reader = LogReader(path, LogQuery(multiplexed=False, follow=True))
    assert reader.read() is None
    write(path, 2)
    assert read_on(reader) == lines(0, 2)
    reader.close()


def test_nothing_stays_open(path: str) -> None:
    """Whatever was read, closing closes all of it."""
    write(path, 200, size=3000, files=10)
    before = set(os.listdir("/proc/self/fd"))
    for query in (
        LogQuery(),
        LogQuery(follow=True),
        LogQuery(tail=3),
        LogQuery(tail=150),
        LogQuery(since=START + 150 * SECOND),
    ):
        reader = LogReader(path, query)
        read_on(reader)
        write(path, 100, first=200, size=3000, files=10)
        read_on(reader)
        reader.close()
    assert set(os.listdir("/proc/self/fd")) == before
