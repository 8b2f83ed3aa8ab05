"""Authorization at registries: basic, and bearer tokens (distribution's "Token Authentication Specification")."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from containerd.errors import Unauthenticated, Unavailable

if TYPE_CHECKING:
    import requests

__all__ = ["Authorizer", "Challenge", "Credentials", "parse_challenges"]

_CLIENT_ID = "containerd-client"
_TOKEN_LIFETIME = 60  # seconds, when the server does not say (token specification)
_MAX_TOKEN_REPLY = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client knows about one registry: a name and password, or a refresh token, or a ready-made header."""

    username: str = ""
    secret: str = ""
    header: str = ""

    @property
    def is_refresh_token(self) -> bool:
        """Whether ``secret`` is a token that buys access tokens."""
        return not self.username and bool(self.secret)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a ``WWW-Authenticate`` header (RFC 9110, 11.6.1)."""

    scheme: str
    parameters: dict[str, str]


_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def parse_challenges(header: str) -> list[Challenge]:
    """Split a ``WWW-Authenticate`` header; what makes no sense is left out."""
    found: list[Challenge] = []
    position = 0
    while position < len(header):
        parameter = _PARAMETER.match(header, position)
        if parameter and found:
            value = parameter[2] if parameter[2] is not None else parameter[3]
            found[-1].parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", value)
            position = parameter.end()
            continue
        scheme = _SCHEME.match(header, position)
        if not scheme or scheme.end() == position:
            break
        found.append(Challenge(scheme[1].lower(), {}))
        position = scheme.end()
    return found


class Authorizer:
    """Answers the challenges of one host. Safe for threads.

    ``credentials`` is asked at most once, when the host first wants to know who we are.
    """

    def __init__(
        self,
        host: str,
        session: requests.Session,
        credentials: Callable[[], Credentials | None],
        proxies: Callable[[str], dict[str, str]],
    ) -> None:
        self._host = host
        self._session = session
        self._ask = credentials
        self._proxies = proxies
        self._lock = threading.Lock()
        self._asked = False
        self._credentials: Credentials | None = None
        self._basic = ""
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    def header(self, scopes: tuple[str, ...], *, secure: bool) -> str:
        """Return the ``Authorization`` header for a request of these scopes, or an empty string.

        Raises :class:`Unauthenticated`, :class:`Unavailable`.
        """
        with self._lock:
            if self._basic:
                return self._basic
            if self._challenge is None:
                return ""
            token, ends = self._tokens.get(scopes, ("", 0.0))
            if not token or time.monotonic() > ends:
                token, ends = self._fetch(self._challenge, scopes, secure)
                self._tokens[scopes] = (token, ends)
            return f"Bearer {token}"

    def challenged(self, header: str, scopes: tuple[str, ...], sent: str) -> bool:
        """Take the challenge of a 401 reply to a request whose header was ``sent``; False when nothing more helps.

        Raises :class:`Unauthenticated` when the server wants credentials and there are none.
        """
        with self._lock:
            for challenge in parse_challenges(header):
                if challenge.scheme == "bearer":
                    token = self._tokens.pop(scopes, ("", 0.0))[0]
                    if (
                        sent
                        and token
                        and sent == f"Bearer {token}"
                        and challenge.parameters.get("error") != "invalid_token"
                    ):
                        return False  # a fresh token was not enough
                    if sent and self._challenge == challenge and not token:
                        return True  # another thread has dropped the token already
                    self._challenge = challenge
                    return True
                if challenge.scheme == "basic":
                    basic = self._basic_header()
                    if not basic:
                        raise Unauthenticated(f"{self._host}: no basic auth credentials: authorization failed")
                    if sent == basic:
                        return False
                    self._basic = basic
                    return True
        return False

    def _known(self) -> Credentials | None:
        if not self._asked:
            self._asked = True
            self._credentials = self._ask()
        return self._credentials

    def _basic_header(self) -> str:
        known = self._known()
        if known is None:
            return ""
        if known.header:
            return known.header
        if not known.username:
            return ""
        return "Basic " + base64.b64encode(f"{known.username}:{known.secret}".encode()).decode()

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...], secure: bool) -> tuple[str, float]:
        from requests import RequestException

        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unauthenticated(f"{self._host}: no valid token realm in its challenge: authorization failed")
        known = self._known()
        if known and known.header:
            return known.header.removeprefix("Bearer "), time.monotonic() + 3600
        if known and secure and parts.scheme == "http":
            raise Unauthenticated(
                f"{self._host}: refusing to send credentials to {realm} without TLS: authorization failed"
            )
        try:
            response = self._request(realm, challenge.parameters.get("service", ""), scopes, known)
        except RequestException as error:
            raise Unavailable(f"failed to fetch token from {realm} for {self._host}: {error}: unavailable") from error
        return self._token(response, realm)

    def _request(
        self, realm: str, service: str, scopes: tuple[str, ...], known: Credentials | None
    ) -> requests.Response:
        options = {"timeout": (10, 30), "proxies": self._proxies(realm)}
        if known and known.is_refresh_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": known.secret,
                "service": service,
                "client_id": _CLIENT_ID,
                "scope": " ".join(scopes),
            }
            return self._session.post(realm, data=form, **options)  # type: ignore[arg-type]
        query: list[tuple[str, str]] = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if known and known.username:
            pair = f"{known.username}:{known.secret}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
            query.append(("account", known.username))
        return self._session.get(realm, params=query, headers=headers, **options)  # type: ignore[arg-type]

    def _token(self, response: requests.Response, realm: str) -> tuple[str, float]:
        with response:
            if response.status_code in (401, 403):
                raise Unauthenticated(
                    f"failed to authorize: {self._host}: token server {realm} answered "
                    f"{response.status_code} {response.reason}: authorization failed"
                )
            if response.status_code != 200:
                raise Unavailable(
                    f"failed to fetch token from {realm} for {self._host}: {response.status_code} {response.reason}"
                )
            try:
                reply = response.json() if len(response.content) <= _MAX_TOKEN_REPLY else {}
            except ValueError:
                reply = {}
        token = (reply.get("token") or reply.get("access_token")) if isinstance(reply, dict) else None
        if not isinstance(token, str):
            raise Unauthenticated(f"token server {realm} gave no token for {self._host}: authorization failed")
        lifetime = reply.get("expires_in")
        seconds = lifetime if isinstance(lifetime, int) and lifetime > 0 else _TOKEN_LIFETIME
        return token, time.monotonic() + seconds * 0.9
