"""The json-file format: what is written, how it is cut, rotated and read."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal

import pytest

from gantry.stdio import jsonfile
from gantry.stdio.jsonfile import Encoder, LogFile, Reader, Record, escape, timestamp

NOW = 1_700_000_000_123_456_000
STAMP = "2023-11-14T22:13:20.123456Z"


def test_a_record_is_written_as_docker_does():
    """Members in the real driver's order, time last."""
    assert Encoder("stdout").feed(b"hi\n", NOW) == f'{{"log":"hi\\n","stream":"stdout","time":"{STAMP}"}}\n'.encode()
    with_attrs = Encoder("stderr", {"b": "<x>", "a": "é"}).feed(b"\n", NOW).decode()
    assert with_attrs == (
        '{"log":"\\n","stream":"stderr","attrs":{"a":"é","b":"\\u003cx\\u003e"},' + f'"time":"{STAMP}"}}\n'
    )


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b'<a href="x">&\\', rb"\u003ca href=\"x\"\u003e\u0026\\"),
        (b"tab\tcr\resc\x1bnul\0", rb"tab\u0009cr\resc\u001bnul\u0000"),
        ("\u2028\u2029é\ufffd".encode(), r"\u2028\u2029é".encode() + "\ufffd".encode()),
        (b"a\xe2\x82b\xff\xc3", rb"a\ufffd\ufffdb\ufffd\ufffd"),
        (b"\xed\xa0\x80", rb"\ufffd\ufffd\ufffd"),
        (b"\xf4\x90\x80\x80", rb"\ufffd\ufffd\ufffd\ufffd"),
        (b"\x7f", b"\x7f"),
    ],
)
def test_text_is_escaped_as_go_does(raw, escaped):
    """Markup, controls, line separators, and one escape for each byte that is not UTF-8."""
    assert escape(raw) == escaped


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_100_000_000, "2023-11-14T22:13:20.1Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_time_has_no_trailing_zeros(moment, text):
    """RFC3339Nano as Go prints it."""
    assert timestamp(moment) == text


def _logs(records: bytes) -> list[str]:
    return [json.loads(line)["log"] for line in records.splitlines()]


def _reference(data: bytes) -> list[str]:
    pieces = []
    for line in data.splitlines(keepends=True) if b"\r" not in data else []:
        body, newline = (line[:-1], "\n") if line.endswith(b"\n") else (line, "")
        while len(body) >= jsonfile.MAX_LINE:
            pieces.append(body[: jsonfile.MAX_LINE].decode())
            body = body[jsonfile.MAX_LINE :]
        if body or newline:
            pieces.append(body.decode() + newline)
    return pieces


@pytest.mark.parametrize("seed", range(6))
def test_any_cut_of_the_stream_gives_the_same_records(seed):
    """Records do not depend on how the output was cut into reads; long lines become 16 KiB pieces."""
    rng = random.Random(seed)
    lengths = [0, 1, 80, 16383, 16384, 16385, 32768, 40000, 5]
    data = b"\n".join(bytes([97 + n % 26]) * rng.choice(lengths) for n in range(24)) + rng.choice([b"", b"\n"])
    encoder = Encoder("stdout")
    out = b""
    position = 0
    while position < len(data):
        size = rng.choice([1, 100, 4096, 16384, 65536])
        out += encoder.feed(data[position : position + size], NOW)
        position += size
    out += encoder.finish(NOW)
    assert _logs(out) == _reference(data)
    assert encoder.finish(NOW) == b""


def test_pieces_of_a_long_line_carry_the_time_of_the_first():
    """The real driver stamps all parts of a line alike; the next line gets its own time."""
    encoder = Encoder("stdout")
    out = encoder.feed(b"x" * 16384, NOW) + encoder.feed(b"end\nnext\n", NOW + 5_000_000_000)
    times = [json.loads(line)["time"] for line in out.splitlines()]
    assert times == [STAMP, STAMP, "2023-11-14T22:13:25.123456Z"]


def test_rotation_keeps_the_newest_files(tmp_path):
    """A file is rotated once it has reached its size; records are never cut; the oldest file goes."""
    path = tmp_path / "c.log"
    log = LogFile(str(path), max_size=250, max_file=3)
    encoder = Encoder("stdout")
    for number in range(20):
        log.write(encoder.feed(b"line %d\n" % number, NOW))
    log.write(encoder.feed(b"".join(b"line %d\n" % n for n in range(20, 24)), NOW))
    log.close()
    names = ["c.log.2", "c.log.1", "c.log"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    records = [r for name in names for r in Reader().feed((tmp_path / name).read_bytes())]
    assert [r.log for r in records] == [b"line %d\n" % n for n in range(24 - len(records), 24)]
    assert all((tmp_path / name).stat().st_size < 250 + 80 for name in names)
    assert (path.stat().st_mode & 0o777) == 0o640


def test_one_file_is_replaced(tmp_path):
    """With max-file 1 a new file takes the place of the full one."""
    log = LogFile(str(tmp_path / "c.log"), max_size=100)
    for number in range(9):
        log.write(Encoder("stdout").feed(b"%d\n" % number, NOW))
    log.close()
    assert os.listdir(tmp_path) == ["c.log"]
    assert [r.log for r in Reader().feed((tmp_path / "c.log").read_bytes())] == [b"8\n"]


def test_an_existing_log_is_continued(tmp_path):
    """After a restart of the container records go on in the same file, and its size counts."""
    path = tmp_path / "c.log"
    for _ in range(2):
        log = LogFile(str(path), max_size=10_000)
        log.write(Encoder("stdout").feed(b"x\n", NOW))
        log.close()
        log.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_a_full_disk_leaves_no_torn_record(tmp_path):
    """What does not fit is dropped with an error; the file still holds whole records, and writing goes on later."""
    path = tmp_path / "c.log"
    log = LogFile(str(path))
    record = Encoder("stdout").feed(b"0123456789\n", NOW)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(record) * 2 + 10, old[1]))
        with pytest.raises(OSError, match=r"c\.log|File too large") as caught:
            log.write(record * 5)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == record * 2
    log.write(record)
    assert path.read_bytes() == record * 3
    log.close()


def test_reading_back():
    """A reader gets each record once, however the file is read, and passes over a torn line."""
    encoder = Encoder("stderr", {"tag": "t"})
    data = encoder.feed(b"one\n\xfftwo <b>\n", NOW) + b'{"log":"torn\n' + encoder.feed(b"three\n", NOW)
    reader = Reader()
    records = [record for byte in data for record in reader.feed(bytes([byte]))]
    assert records == [
        Record(log, "stderr", STAMP, {"tag": "t"}) for log in (b"one\n", "\ufffdtwo <b>\n".encode(), b"three\n")
    ]


@pytest.mark.parametrize("line", [b"", b"[]", b'{"log":1}', b"{"])
def test_what_is_no_record_is_refused(line):
    """Anything but an object with a text raises ValueError."""
    with pytest.raises(ValueError, match=r"Expecting|record"):
        jsonfile.parse(line)
