"""Framing, detach keys and the URI."""

from __future__ import annotations

import pytest

from gantry.stdio import detachkeys, framing, uri
from gantry.stdio.framing import Stream


def test_frames_survive_any_cut():
    """Headers and chunks cut anywhere come out as the bytes that went in."""
    data = framing.encode(1, b"out") + framing.encode(2, b"") + framing.encode(2, b"error" * 40)
    assert data[:8] == b"\x01\0\0\0\0\0\0\x03"
    for size in (1, 3, 8, 11, len(data)):
        decoder = framing.Decoder()
        got = {Stream.STDOUT: b"", Stream.STDERR: b""}
        for at in range(0, len(data), size):
            for stream, piece in decoder.feed(data[at : at + size]):
                got[stream] += piece
        assert got == {Stream.STDOUT: b"out", Stream.STDERR: b"error" * 40}
        assert decoder.idle


@pytest.mark.parametrize("data", [b"\x04\0\0\0\0\0\0\1", b"\x01\1\0\0\0\0\0\1"])
def test_a_bad_header_is_refused(data):
    """Bytes that cannot be a header raise FramingError."""
    with pytest.raises(framing.FramingError):
        framing.Decoder().feed(data)


@pytest.mark.parametrize(
    ("keys", "codes"),
    [
        ("", b"\x10\x11"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a,ctrl-[", b"a\x1b"),
        ("ctrl-@,ctrl-_,ctrl-\\,DEL", b"\0\x1f\x1c\x7f"),
    ],
)
def test_detach_keys_are_parsed(keys, codes):
    """Docker's names of keys."""
    assert detachkeys.parse(keys) == codes


@pytest.mark.parametrize("keys", ["ctrl-A", "ctrl-", "ab", "a,,b", "é"])
def test_bad_detach_keys_are_refused(keys):
    """The engine's text names the whole setting, the reason the key."""
    with pytest.raises(detachkeys.InvalidDetachKeys) as caught:
        detachkeys.parse(keys)
    assert str(caught.value) == f"Invalid detach keys ({keys}) provided"
    assert caught.value.reason.startswith("Unknown character: '")


@pytest.mark.parametrize(
    ("reads", "output", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11cd"], b"ab", True),
        ([b"ab\x10", b"\x11"], b"ab", True),
        ([b"\x10", b"x\x11"], b"\x10x\x11", False),
        ([b"\x10\x10", b"\x11"], b"\x10", True),
        ([b"\x10", b"\x10", b"y"], b"\x10\x10y", False),
    ],
)
def test_the_sequence_is_swallowed(reads, output, detached):
    """Whatever is not the sequence reaches the process unchanged; the sequence does not."""
    matcher = detachkeys.Matcher()
    out = b""
    hit = False
    for data in reads:
        passed, hit = matcher.feed(data)
        out += passed
        if hit:
            break
    assert (out, hit) == (output, detached)


def test_held_back_keys_are_flushed():
    """When input ends inside the sequence the process gets what was held back."""
    matcher = detachkeys.Matcher(b"abc")
    assert matcher.feed(b"xab") == (b"x", False)
    assert matcher.flush() == b"ab"
    assert matcher.flush() == b""


def test_a_uri_survives_the_round_trip():
    """Every part, with characters that have to be escaped."""
    whole = uri.StdioURI(
        "/run/a b/attach.sock", "json-file", "/var/lib/x%/c&d=é.log", 10_000, 3, {"a": "b&c", "l": "<>"}
    )
    assert uri.parse(whole.build()) == whole
    assert uri.is_stdio_uri(str(whole))
    bare = uri.parse("gantry-stdio:///run/x/attach.sock")
    assert bare == uri.StdioURI("/run/x/attach.sock")
    assert bare.build() == "gantry-stdio:///run/x/attach.sock"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("fifo:///x", "not a gantry-stdio"),
        ("gantry-stdio://relative", "not the absolute path"),
        ("gantry-stdio:///x?driver=syslog", "driver 'syslog'"),
        ("gantry-stdio:///x?driver=json-file", "path ''"),
        ("gantry-stdio:///x?max-size=1k", "max-size '1k'"),
        ("gantry-stdio:///x?max-size=-1", "max-size -1"),
        ("gantry-stdio:///x?max-file=0", "max-file"),
        ("gantry-stdio:///x?attrs=[]", "attrs"),
        ("gantry-stdio:///x?compress=true", "unknown parameter 'compress'"),
        ("gantry-stdio:///x?path=/a&path=/b", "given twice"),
        ("gantry-stdio:///x%00y", "NUL"),
    ],
)
def test_a_bad_uri_is_refused_by_name(text, word):
    """The error says which part is wrong."""
    with pytest.raises(ValueError, match=word.replace("[", "\\[")):
        uri.parse(text)
