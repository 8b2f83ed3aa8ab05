"""``GET /events``: what happened, and what happens, as JSON objects one after the other."""

from __future__ import annotations

import time
from typing import Any

import flask

from dockerd.api.request import encode_json, query_filters, query_text, query_timestamp
from dockerd.engine import current_engine
from dockerd.errors import InvalidParameter
from dockerd.events import Event
from dockerd.server.streaming import open_stream

__all__ = ["blueprint", "encode_event"]

blueprint = flask.Blueprint("events", __name__)


@blueprint.get("/events")
def stream_events() -> flask.Response:
    """Send the events of a time span; the stream goes on until ``until``, or until the client leaves."""
    since, until = query_timestamp("since"), query_timestamp("until")
    if until is not None and since is not None and until < since:
        raise InvalidParameter(
            f"`since` time ({query_text('since')}) cannot be after `until` time ({query_text('until')})"
        )
    filters = query_filters()
    engine = current_engine()
    stream = open_stream()

    def send(event: Event) -> None:
        if until is None or event.time_nano <= until:
            stream.write(encode_event(event))

    stream.on_close(engine.events.subscribe(send, filters, since, until))
    if until is not None:
        left = (until - time.time_ns()) / 1e9
        if left <= 0:
            stream.close()
        else:
            stream.on_close(engine.reactor.call_later(left, stream.close).cancel)
    stream.detach()


def encode_event(event: Event) -> bytes:
    """One event as the API shows it. The fields of before API 1.22 are there for what had events then."""
    body: dict[str, Any] = {}
    if event.type in ("container", "image"):
        body["status"] = event.action
        body["id"] = event.actor_id
        if event.attributes.get("image"):
            body["from"] = event.attributes["image"]
    attributes = dict(sorted(event.attributes.items()))
    body |= {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor_id, "Attributes": attributes},
        "scope": "local",
        "time": event.time_nano // 1_000_000_000,
        "timeNano": event.time_nano,
    }
    return encode_json(body)
