"""Requests to one registry host: authorization, retries, and errors that say what could not be reached."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from containerd.errors import Unavailable
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.registry.auth import Authorizer, Credentials
from containerd.transfer.registry.hosts import Host, is_loopback
from containerd.transfer.registry.tls import adapter, context
from containerd.version import VERSION

if TYPE_CHECKING:
    import requests

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
        import requests
        import urllib3

        self._session = requests.Session()
        # Of the environment only the proxies count: the daemon's ~/.netrc is not the client's.
        self._session.trust_env = False
        self._switching = threading.Lock()
        self._identity = 0
        self._identify()
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": f"containerd/{VERSION}", **headers, **host.headers})
        if not host.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._authorizer = Authorizer(host.name, self._session, lambda: credentials(host.name), self._proxies)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _identify(self) -> None:
        """Be who our certificate of this turn says."""
        certificates = self.host.certificates
        self._session.mount(
            "https://", adapter(context(self.host, certificates[self._identity] if certificates else None))
        )

    def _be_another(self, identity: int) -> bool:
        """The host did not take us for ``identity``: take the next certificate; False when there is none."""
        with self._switching:
            if self._identity == identity:
                if identity + 1 >= len(self.host.certificates):
                    return False
                self._identity += 1
                self._identify()
        return True

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
        Connection errors, 408, 429 and 5xx are tried again with growing delays, but not a host that is not there
        (nobody listens, no such name); 401 is answered.
        Raises :class:`Unavailable` when the host cannot be reached, :class:`Unauthenticated`, :class:`Cancelled`.
        """
        import requests

        delay = _FIRST_DELAY
        # As often as certificates are left to try, besides.
        for attempt in range(1 - max(len(self.host.certificates) - 1, 0), attempts + 1):
            self._cancellation.check()
            last = attempt == attempts
            identity = self._identity
            try:
                response = self._authorized(method, path, scopes, headers or {}, body, size)
            except requests.RequestException as error:
                if not _is_absent(error) and self._be_another(identity):
                    continue
                if last or isinstance(error, requests.exceptions.SSLError) or _is_absent(error):
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
        import requests

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
            timeout=(self.host.timeout or TIMEOUT[0], TIMEOUT[1]),
            proxies=self._proxies(url),
            allow_redirects=method in ("GET", "HEAD"),
        )

    def _speaks_tls(self, response: requests.Response) -> bool:
        if response.status_code != 400:
            return False
        return any(text in response.raw.read(1024).lower() for text in _PLAIN_TEXT_TO_TLS)

    def _proxies(self, url: str) -> dict[str, str]:
        from requests.utils import get_environ_proxies

        return {} if is_loopback(urlsplit(url).netloc) else dict(get_environ_proxies(url))

    def _unreachable(self, method: str, path: str, error: requests.RequestException) -> Unavailable:
        url = path if path.startswith("http") else self.url(path)
        address = urlsplit(url)._replace(query="").geturl()
        return Unavailable(f'failed to do request: {method.capitalize()} "{address}": {_reason(error)}: unavailable')


def _innermost(error: BaseException) -> BaseException:
    """Return the first cause: libraries wrap it several times."""
    for _ in range(10):
        following = getattr(error, "reason", None)
        if not isinstance(following, BaseException):
            following = next((item for item in error.args if isinstance(item, BaseException)), None) or error.__cause__
        if not isinstance(following, BaseException):
            break
        error = following
    return error


def _is_absent(error: BaseException) -> bool:
    """Whether a host is not there, which no second attempt a moment later would change."""
    inner = _innermost(error)
    if isinstance(inner, socket.gaierror):
        return inner.errno != socket.EAI_AGAIN
    return isinstance(inner, OSError) and inner.errno == errno.ECONNREFUSED


def _reason(error: BaseException) -> str:
    """Return the first cause in words, without the addresses of objects that libraries put there."""
    from urllib3.exceptions import ConnectTimeoutError, ReadTimeoutError

    inner = _innermost(error)
    if isinstance(inner, (ConnectTimeoutError, ReadTimeoutError)):
        return "i/o timeout"
    text = str(inner.strerror if isinstance(inner, OSError) and inner.strerror else inner)
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
