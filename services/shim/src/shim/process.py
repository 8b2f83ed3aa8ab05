"""One process of a container: the init process, or one that was added by Exec."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from shim.errors import FailedPrecondition, NotFound
from shim.loop import Future, Lock, Loop
from shim.reaper import Exit
from shim.streams.build import ProcessStreams
from shim.streams.config import StdioConfig
from shim.streams.session import Session, SessionSpec, shut_down


class State(enum.Enum):
    """Where a process is in its life; the words are those of the error texts."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(slots=True)
class Parked:
    """A client that came before the process's streams: its connection, and what it asked for."""

    descriptor: int
    spec: SessionSpec


class Process:
    """State, exit and streams. What is done to it is serialised by `lock`."""

    def __init__(self, loop: Loop, process_id: str, config: StdioConfig, streams: ProcessStreams) -> None:
        self.id = process_id
        self.config = config
        self.streams = streams
        self.state = State.CREATED
        self.pid = 0
        self.exit: Exit | None = None
        self.ended: Future[Exit] = loop.future()
        self.lock = Lock(loop)

    def attach(self, descriptor: int, spec: SessionSpec) -> None:
        """Takes over a client's connection, now or when the process starts. On an error it is still the caller's."""
        if self.state is State.STOPPED:
            raise FailedPrecondition("the process has ended and its streams are drained")
        self.streams.hub.attach(descriptor, spec)

    def sessions(self) -> list[Session]:
        """Clients that are attached."""
        return list(self.streams.hub.sessions.values())

    def require(self, doing: str, *allowed: State) -> None:
        """FailedPrecondition in the real shim's words, unless the process is in one of these states."""
        if self.state not in allowed:
            raise FailedPrecondition(f"cannot {doing} a {self.state.value} process")

    def resize(self, width: int, height: int) -> None:
        """Sets the size of its terminal, if it has one."""
        self.streams.hub.resize(width, height)

    def signal(self, number: int) -> None:
        """Signals an exec's process. NotFound when it has ended."""
        if not self.pid:
            raise FailedPrecondition("process not created")
        if self.exit is not None:
            raise NotFound("process already finished: not found")
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise NotFound("exec kill error: process already finished: not found") from None

    async def finish(self, ended: Exit) -> None:
        """The process has ended with this status: takes in its last output, then it is stopped."""
        self.exit = ended
        await self.streams.drain()
        self.state = State.STOPPED
        self.ended.set_result(ended)

    def not_started(self, at: int) -> None:
        """The runtime could not start it: waiters are told 255. Its clients' connections stay until it is deleted, so
        that whoever asked for the start can say in them what went wrong."""
        self.ended.set_result(Exit(0, 255, at))

    def fail(self, at: int) -> None:
        """The process could not be started: its clients read an end, and waiters are told 255."""
        self.streams.abort()
        self.ended.set_result(Exit(0, 255, at))


def drop(parked: Parked) -> None:
    """Ends a parked client's connection: what it waits for does not come."""
    shut_down(parked.descriptor)
    os.close(parked.descriptor)
