"""The one way to fail: an error whose message is printed and whose code is the exit status."""

from __future__ import annotations

import os

EXIT_FAILURE = 1
EXIT_EXEC_FAILURE = 255
"""What `exec` gives for errors of its own, so that they are not taken for the process's status."""


class RuntimeFailure(Exception):
    """What was being done and why it failed, in the words that callers match on."""

    def __init__(self, message: str, code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def within(self, context: str) -> RuntimeFailure:
        """The same failure told from one level further out."""
        return RuntimeFailure(f"{context}: {self.message}", self.code)


class UsageFailure(RuntimeFailure):
    """A command line that can not be understood; the usage is printed with it. `notice` goes above the usage."""

    def __init__(self, message: str, notice: str = "Incorrect Usage.") -> None:
        super().__init__(message)
        self.notice = notice


class ContainerNotFound(RuntimeFailure):
    """No container of this id under the root."""

    def __init__(self) -> None:
        super().__init__("container does not exist")


class ContainerNotRunning(RuntimeFailure):
    """The container has no process that the call could be about."""

    def __init__(self) -> None:
        super().__init__("container not running")


def system_text(error: OSError) -> str:
    """The system's text for an error in lower case, as Go programs print it: `no such file or directory`."""
    text = os.strerror(error.errno) if error.errno else str(error)
    return _GO_TEXTS.get(error.errno or 0, text[:1].lower() + text[1:])


_GO_TEXTS = {22: "invalid argument", 28: "no space left on device", 40: "too many levels of symbolic links"}


def describe(error: OSError) -> str:
    """Call, path and reason of a failed system call: `mount tmpfs /x: permission denied`."""
    call = (error.strerror or "").partition(": ")
    name = call[0] if call[1] else ""
    where = error.filename
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    words = " ".join(str(word) for word in (name, where) if word)
    return f"{words}: {system_text(error)}" if words else system_text(error)
