"""The keys that end an attached session and leave the container running.

Syntax (docker attach --detach-keys): keys joined by commas, each of them one character, `DEL`, or `ctrl-` with one of
`@ a..z [ \\ ] ^ _`.
"""

from __future__ import annotations

from typing import Final

DEFAULT: Final = b"\x10\x11"  # ctrl-p,ctrl-q

_CONTROL: Final = {f"ctrl-{key}": code for code, key in enumerate("@abcdefghijklmnopqrstuvwxyz[\\]^_")}


class InvalidDetachKeys(ValueError):
    """The text names a key that does not exist. `reason` says which."""

    def __init__(self, keys: str, reason: str) -> None:
        super().__init__(f"Invalid detach keys ({keys}) provided")
        self.reason = reason


def parse(keys: str) -> bytes:
    """The bytes that the keys send; the default when the text is empty. InvalidDetachKeys for an unknown key."""
    if not keys:
        return DEFAULT
    codes = bytearray()
    for key in keys.split(","):
        encoded = key.encode()
        if len(encoded) == 1:
            codes += encoded
        elif key in _CONTROL:
            codes.append(_CONTROL[key])
        elif key == "DEL":
            codes.append(127)
        else:
            raise InvalidDetachKeys(keys, f"Unknown character: '{key}'")
    return bytes(codes)


class Matcher:
    """Looks for the sequence in what a client types, over any number of reads.

    Bytes that may begin the sequence are held back until it is clear that they do not.
    """

    def __init__(self, sequence: bytes = DEFAULT) -> None:
        self._sequence = sequence
        self._held = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to the process, and whether the sequence is complete.

        What follows a complete sequence is dropped: it was typed to nobody.
        """
        sequence = self._sequence
        if not sequence or (not self._held and sequence[:1] not in data):
            return data, False
        pending = sequence[: self._held] + data
        found = pending.find(sequence)
        if found >= 0:
            self._held = 0
            return pending[:found], True
        self._held = next(
            (size for size in range(min(len(sequence) - 1, len(pending)), 0, -1) if pending.endswith(sequence[:size])),
            0,
        )
        return pending[: len(pending) - self._held], False

    def flush(self) -> bytes:
        """What is held back, when no more input comes."""
        held, self._held = self._sequence[: self._held], 0
        return held
