"""Checking a user's credentials with a registry: what ``docker login`` asks for.

The protocol is the distribution API's: ``GET /v2/`` is answered by 401 with a challenge, Basic to be met directly,
Bearer by a token from the realm that it names.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from dockerd.errors import InvalidParameter, SystemFailure, Unauthorized

__all__ = ["login"]

TIMEOUT = 30.0
MAX_REPLY = 1 << 20
HUB = "registry-1.docker.io"

_HUB_NAMES = frozenset({"", "docker.io", "index.docker.io", "registry-1.docker.io"})
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


@dataclass(frozen=True)
class _Reply:
    status: int
    challenge: str
    body: bytes


def login(server: str, scheme: str, username: str, password: str, identity_token: str = "") -> str:
    """Prove to the registry who the user is; returns the identity token that it gave, mostly none.

    ``server`` is a host with or without port, or a URL; ``scheme`` is used when it says none. Raises Unauthorized,
    InvalidParameter for a server that is none, SystemFailure when it cannot be reached.
    """
    base = _base_url(server, scheme)
    basic = {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
    first = _get(f"{base}/v2/", {})
    if first.status == 200:
        return ""  # it lets everyone in
    kind, _, rest = first.challenge.partition(" ")
    parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
    if kind.lower() == "bearer" and "realm" in parameters:
        token, refresh = _fetch_token(parameters, username, basic, identity_token)
        last = _get(f"{base}/v2/", {"Authorization": f"Bearer {token}"})
    elif kind.lower() == "basic":
        refresh = ""
        last = _get(f"{base}/v2/", basic)
    else:
        raise SystemFailure(f'Get "{base}/v2/": unexpected status {first.status} without a challenge that can be met')
    if last.status == 401:
        raise Unauthorized(f'Get "{base}/v2/": unauthorized: incorrect username or password')
    if last.status != 200:
        raise SystemFailure(f"login attempt to {base}/v2/ failed with status: {last.status}")
    return refresh


def _base_url(server: str, scheme: str) -> str:
    text = server if "://" in server else f"{scheme}://{server}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or (not parts.hostname and parts.netloc):
        raise InvalidParameter(f"invalid registry address: {server!r}")
    if (parts.hostname or "") in _HUB_NAMES:
        return f"https://{HUB}"
    return f"{parts.scheme}://{parts.netloc}"


def _fetch_token(
    parameters: Mapping[str, str], username: str, basic: Mapping[str, str], identity_token: str
) -> tuple[str, str]:
    """Ask the challenge's realm for a token; returns it and, when there is one, the token to come again with."""
    query = {"account": username, "client_id": "docker", "offline_token": "true"}
    query |= {name: parameters[name] for name in ("service", "scope") if name in parameters}
    if identity_token:
        raise InvalidParameter("login with an identity token is not supported by this engine: use a password")
    realm = parameters["realm"]
    reply = _get(f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", basic)
    if reply.status == 401:
        raise Unauthorized(f'Get "{realm}": unauthorized: incorrect username or password')
    try:
        content = json.loads(reply.body)
        token = content.get("token") or content["access_token"]
    except (ValueError, KeyError, AttributeError):
        raise SystemFailure(f'Get "{realm}": status {reply.status}, and no token in the reply') from None
    return str(token), str(content.get("refresh_token") or "")


def _get(url: str, headers: Mapping[str, str]) -> _Reply:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
    elif parts.scheme == "http":
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    else:
        raise SystemFailure(f"the registry sends to {url!r}, which is no HTTP address")
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(MAX_REPLY)
        return _Reply(response.status, response.headers.get("WWW-Authenticate", ""), body)
    except (OSError, http.client.HTTPException) as error:
        raise SystemFailure(f'Get "{url.partition("?")[0]}": {error}') from error
    finally:
        connection.close()
