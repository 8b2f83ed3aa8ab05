"""``GET /containers/{id}/logs``."""

from __future__ import annotations

import os
import time

import flask

from dockerd.api.request import api_at_least, query_bool, query_text, query_timestamp
from dockerd.containers.model import Container, Status
from dockerd.containers.wait import Condition, Outcome
from dockerd.engine import Engine, current_engine
from dockerd.errors import Conflict, InvalidParameter, NotSupported
from dockerd.server.streaming import ResponseStream, open_stream
from dockerd.stdio.logs import LogQuery, LogReader

__all__ = ["blueprint"]

blueprint = flask.Blueprint("logs", __name__)


@blueprint.get("/containers/<reference>/logs")
def logs(reference: str) -> flask.Response:
    """Send a container's log, and with ``follow`` what is added to it until the container ends."""
    if not query_bool("stdout") and not query_bool("stderr"):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    since, until = query_timestamp("since"), query_timestamp("until")
    engine = current_engine()
    container = engine.containers.get(reference)
    if container.state.status in (Status.REMOVING, Status.DEAD):
        raise Conflict("can not get logs from container which is dead or marked for removal")
    if not container.log_path:
        raise NotSupported("configured logging driver does not support reading")
    query = LogQuery(
        stdout=query_bool("stdout"),
        stderr=query_bool("stderr"),
        since=since,
        until=until or None,
        tail=_tail(query_text("tail")),
        timestamps=query_bool("timestamps"),
        details=query_bool("details"),
        multiplexed=not container.tty,
        follow=query_bool("follow") and container.state.running,
    )
    framed = query.multiplexed and api_at_least("1.42")
    stream = open_stream(content_type=f"application/vnd.docker.{'multiplexed' if framed else 'raw'}-stream")
    reader = LogReader(container.log_path, query)
    follower = _Follower(engine, container, stream, reader, query.until)
    follower.begin(query.follow)
    stream.detach()


def _tail(text: str) -> int | None:
    """The number of records from the end; whatever is not a number, such as ``all``, means all of them."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None


class _Follower:
    """Feeds one response from one log. All of it but :meth:`begin` runs in the reactor's loop."""

    def __init__(
        self, engine: Engine, container: Container, stream: ResponseStream, reader: LogReader, until: int | None
    ) -> None:
        self._engine = engine
        self._container = container
        self._stream = stream
        self._reader = reader
        self._until = until
        self._more = False  # the container runs: the log's end is not the end

    def begin(self, follow: bool) -> None:
        """Start sending, from a request's thread."""
        stream, reactor = self._stream, self._engine.reactor
        self._more = follow
        stream.on_close(self._reader.close)
        if follow:
            watcher, directory = self._engine.log_watcher, os.path.dirname(self._container.log_path)
            stream.on_close(lambda: watcher.unwatch(stream.wake))
            reactor.call_soon(lambda: None if stream.closed else watcher.watch(directory, stream.wake))
            stream.on_close(self._engine.containers.on_exit(self._container.id, Condition.NOT_RUNNING, self._exited))
            if self._until is not None:
                left = max(0.0, (self._until - time.time_ns()) / 1e9)
                stream.on_close(reactor.call_later(left, self._end).cancel)
        stream.produce(self._produce)

    def _produce(self) -> bytes | None:
        piece = self._reader.read()
        if piece is None and (self._reader.ended or not self._more):
            self._stream.close()
        return piece

    def _exited(self, _outcome: Outcome) -> None:
        """The container has ended and its log is whole: what is left is sent, and no more comes."""
        self._engine.reactor.call_soon(self._end)

    def _end(self) -> None:
        self._more = False
        self._stream.wake()
