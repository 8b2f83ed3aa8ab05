"""Requests to one registry host: authorization, retries, and errors that say what could not be reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from containerd.errors import Unavailable
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.registry.auth import Authorizer, Credentials
from containerd.transfer.registry.hosts import Host, is_loopback
from containerd.version import VERSION

__all__ = ["Connection"]

TIMEOUT = (15.0, 60.0)
"""Seconds to connect, and between two pieces of a reply."""
ATTEMPTS = 5
_FIRST_DELAY = 0.2
_LONGEST_DELAY = 30.0
_RETRIED = frozenset((408, 429, 500, 502, 503, 504))
_PLAIN_TEXT_TO_TLS = (b"http request to an https server", b"plain http request was sent to https port")


class Connection:
    """Requests to one host. Safe for threads."""

    def __init__(
        self,
        host: Host,
        credentials: Callable[[str], Credentials | None],
        headers: Mapping[str, str],
        cancellation: Cancellation,
    ) -> None:
        self.host = host
        self._scheme = host.scheme
        self._cancellation = cancellation
        self._session = requests.Session()
        # Of the environment only the proxies count: the daemon's ~/.netrc is not the client's.
        self._session.trust_env = False
        adapter = HTTPAdapter(pool_connections=2, pool_maxsize=16, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": f"containerd/{VERSION}", **headers, **host.headers})
        if host.verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if host.certificates:
            self._session.cert = host.certificates[0]
        self._authorizer = Authorizer(
            host.name, self._session, lambda: credentials(host.name), host.verify, self._proxies
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def url(self, path: str) -> str:
        """Return the address of ``path`` (below ``/v2``)."""
        return f"{self._scheme or 'http'}://{self.host.name}{self.host.path}{path}"

    def request(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterable[bytes] | bytes] | None = None,
        size: int = 0,
        attempts: int = ATTEMPTS,
    ) -> requests.Response:
        """Make a request until it has an answer that is worth it; the caller closes the response.

        ``path`` is below ``/v2``, or a full address. ``body`` gives the content anew for every attempt.
        Connection errors, 408, 429 and 5xx are tried again with growing delays; 401 is answered.
        Raises :class:`Unavailable` when the host cannot be reached, :class:`Unauthenticated`, :class:`Cancelled`.
        """
        delay = _FIRST_DELAY
        for attempt in range(1, attempts + 1):
            self._cancellation.check()
            last = attempt == attempts
            try:
                response = self._authorized(method, path, scopes, headers or {}, body, size)
            except requests.RequestException as error:
                if last or isinstance(error, requests.exceptions.SSLError):
                    raise self._unreachable(method, path, error) from error
                self._cancellation.sleep(delay)
            else:
                if last or response.status_code not in _RETRIED:
                    return response
                wait = _retry_after(response)
                response.close()
                self._cancellation.sleep(max(delay, wait))
            delay = min(delay * 2, _LONGEST_DELAY)
        raise AssertionError("unreachable")

    def _authorized(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes] | bytes] | None,
        size: int,
    ) -> requests.Response:
        for _ in range(3):
            url = path if path.startswith(("http://", "https://")) else self.url(path)
            sent = self._authorizer.header(scopes, secure=url.startswith("https:"))
            response = self._send(method, url, {**headers, **({"Authorization": sent} if sent else {})}, body, size)
            if not self._scheme and self._speaks_tls(response):
                response.close()
                self._scheme = "https"
                continue
            if not self._scheme:
                self._scheme = "http"
            if response.status_code != 401:
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            if not self._authorizer.challenged(challenge, scopes, sent):
                return response
            response.close()
        return response

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes] | bytes] | None,
        size: int,
    ) -> requests.Response:
        content = body() if body is not None else None
        request = requests.Request(method, url, headers=dict(headers), data=content)
        prepared = self._session.prepare_request(request)
        if content is not None and not isinstance(content, bytes):
            # requests sends an iterable in chunks, which some registries refuse: the size is known here.
            prepared.headers.pop("Transfer-Encoding", None)
            prepared.headers["Content-Length"] = str(size)
        return self._session.send(
            prepared,
            stream=True,
            timeout=TIMEOUT,
            verify=self.host.verify,
            cert=self._session.cert,
            proxies=self._proxies(url),
            allow_redirects=method in ("GET", "HEAD"),
        )

    def _speaks_tls(self, response: requests.Response) -> bool:
        if response.status_code != 400:
            return False
        return any(text in response.raw.read(1024).lower() for text in _PLAIN_TEXT_TO_TLS)

    def _proxies(self, url: str) -> dict[str, str]:
        return {} if is_loopback(urlsplit(url).netloc) else dict(get_environ_proxies(url))

    def _unreachable(self, method: str, path: str, error: requests.RequestException) -> Unavailable:
        url = path if path.startswith("http") else self.url(path)
        address = urlsplit(url)._replace(query="").geturl()
        return Unavailable(f'failed to do request: {method.capitalize()} "{address}": {_reason(error)}: unavailable')


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words: libraries wrap it several times, with addresses of objects in between."""
    inner: BaseException = error
    seen = 0
    while seen < 10:
        seen += 1
        following = getattr(inner, "reason", None)
        if not isinstance(following, BaseException):
            following = next((item for item in inner.args if isinstance(item, BaseException)), None) or inner.__cause__
        if not isinstance(following, BaseException):
            break
        inner = following
    text = str(inner.strerror if isinstance(inner, OSError) and inner.strerror else inner)
    if isinstance(inner, (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.ReadTimeoutError)):
        return "i/o timeout"
    return text.rpartition(">: ")[2] or type(inner).__name__


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), _LONGEST_DELAY)
    try:
        when = parsedate_to_datetime(value).timestamp() if value else 0.0
    except (TypeError, ValueError):
        return 0.0
    return min(max(when - time.time(), 0.0), _LONGEST_DELAY)
