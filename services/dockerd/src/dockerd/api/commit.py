"""``POST /commit``: a container becomes an image."""

from __future__ import annotations

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.containers.commit import Commit
from dockerd.engine import current_engine
from dockerd.images import parse_reference
from gantry.oci.reference import InvalidReference

__all__ = ["blueprint"]

blueprint = flask.Blueprint("commit", __name__)


@blueprint.post("/commit")
def commit() -> flask.Response:
    """Make an image of what a container has written."""
    body = request.json_body(required=False)
    container = request.query_text("container")
    if not container:
        raise errors.InvalidParameter('invalid name or ID supplied: ""')
    asked = Commit(
        reference=_reference(request.query_text("repo"), request.query_text("tag")),
        comment=request.query_text("comment"),
        author=request.query_text("author"),
        changes=tuple(flask.request.args.getlist("changes")),
        pause=request.query_bool("pause", default=True),
        config=body or None,
    )
    return request.json_reply({"Id": current_engine().containers.commit(container, asked)}, status=201)


def _reference(repository: str, tag: str) -> str:
    """The name as users write it, empty for none. Raises InvalidParameter."""
    if not repository:
        return ""
    parsed = parse_reference(repository)
    if parsed.digest is not None:
        raise errors.InvalidParameter("cannot commit to digest reference")
    if tag:
        try:
            parsed = parsed.with_tag(tag)
        except InvalidReference as error:
            raise errors.InvalidParameter(str(error)) from error
    return parsed.with_default_tag().familiar
