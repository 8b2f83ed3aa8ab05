"""The one way a ttrpc call fails: a google.rpc code and a text."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """google.rpc.Code, whose numbers a ttrpc Status carries."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def code_of(number: int) -> Code:
    """The code with this number; UNKNOWN for one that google.rpc does not define."""
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


class TTRPCError(Exception):
    """A call that did not succeed: what the peer answered, or what kept the answer from coming."""

    def __init__(self, code: Code | int, message: str) -> None:
        super().__init__(message)
        self.code = code_of(code)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.message!r})"


class ConnectionLost(TTRPCError):
    """The connection ended before the answer came (UNAVAILABLE): whether the call took effect is not known."""

    def __init__(self, message: str = "ttrpc: closed") -> None:
        super().__init__(Code.UNAVAILABLE, message)


class DeadlineExceeded(TTRPCError):
    """The answer did not come in the time that the caller gave."""

    def __init__(self, message: str = "context deadline exceeded") -> None:
        super().__init__(Code.DEADLINE_EXCEEDED, message)
