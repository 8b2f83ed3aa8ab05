"""The reply to ``POST /containers/{id}/wait``: it comes, however often the engine was replaced meanwhile."""

from __future__ import annotations

import socket
from typing import NoReturn

from dockerd.api.request import encode_json
from dockerd.containers.wait import Condition, Outcome
from dockerd.engine import Engine
from dockerd.errors import NotFound
from dockerd.server.detached import Detached
from dockerd.server.streaming import open_stream

__all__ = ["reply_when"]


def reply_when(engine: Engine, container_id: str, condition: Condition) -> NoReturn:
    """Send the head of the reply now, and its body once the container meets ``condition``.

    The template keeps the connection where there is one, else this engine's reactor does. Who ends a container calls
    ``engine.streams.answer`` for the former.
    """
    stream = open_stream()

    def finish(outcome: Outcome) -> None:
        body: dict[str, object] = {"StatusCode": outcome.exit_code}
        if outcome.error:
            body["Error"] = {"Message": outcome.error}
        stream.write(encode_json(body))
        stream.close()

    def answer(outcome: Outcome) -> None:
        conditions = list(Condition) if condition is Condition.REMOVED else [Condition.NOT_RUNNING, Condition.NEXT_EXIT]
        engine.streams.answer(container_id, conditions, outcome.exit_code, outcome.error)

    def take(client: socket.socket, _early: bytes) -> None:
        try:
            client.sendall(stream.head)
        except OSError:
            client.close()  # the client did not wait
            return
        held = stream.chunked and engine.streams.hold(container_id, condition, client)
        try:
            forget = engine.containers.on_exit(container_id, condition, answer if held else finish)
        except NotFound:  # removed since the view looked
            (answer if held else finish)(Outcome(0))
            forget = stream.abandon
        if held:
            # This was for an end that came before the template had the connection; any later one is answered there.
            forget()
        else:
            stream.on_close(forget)
            stream.adopt(client, head_sent=True)

    raise Detached(take, stream.abandon)
