"""gunicorn's threaded worker, for a server whose connections may leave HTTP.

The master loads this module too: it imports neither Flask nor anything of the engine.

A view that raises :class:`~dockerd.server.detached.Detached` gets its connection: the socket and what the client had
sent behind its request, with nothing of gunicorn's left that would write to it, shut it down or time it out.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import time
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from dockerd.server.detached import Detached
from dockerd.version import SERVER

__all__ = ["Worker"]

_PR_SET_PDEATHSIG = 1

_TAKEN = object()

_PHRASES = {status.value: status.phrase for status in HTTPStatus}

DRAIN_SECONDS = 5.0
"""How long a client may take to send the rest of a body before its connection changes hands."""


class _Response(wsgi.Response):  # type: ignore[misc]
    """A response whose head is the application's own: no server's name, no Connection where it says nothing."""

    def default_headers(self) -> list[str]:
        phrase = _PHRASES.get(self.status_code, "")
        lines = [f"HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status_code} {phrase}\r\n"]
        lines += [f"Server: {SERVER}\r\n", f"Date: {util.http_date()}\r\n"]
        if self.should_close():
            lines.append("Connection: close\r\n")
        elif self.req.version < (1, 1):
            lines.append("Connection: keep-alive\r\n")
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        return lines


class Worker(ThreadWorker):  # type: ignore[misc]
    """One process of the daemon: accepts, routes, answers, and gives connections away."""

    def init_process(self) -> None:
        """Runs in the new process, until the worker ends."""
        die_with_parent(self.ppid)
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what is being answered; before there is anything to finish, end."""
        if not self.booted:
            raise SystemExit(0)
        super().handle_exit(sig, frame)

    def handle(self, conn: Any) -> Any:
        """Serve one request of a connection; its result is for :meth:`finish_request`."""
        try:
            return super().handle(conn)
        except Detached as detached:
            try:
                client, early = _release(conn)
            except OSError:
                detached.abandon()
                return False
            try:
                detached.take(client, early)
            except Exception:
                self.log.exception("a connection that was handed over failed")
                client.close()
            return _TAKEN

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Put the connection back, close it, or forget it because someone else owns it now."""
        if not fs.cancelled() and fs.exception() is None and fs.result() is _TAKEN:
            self.nr_conns -= 1
            return
        super().finish_request(conn, fs)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request. True when the connection may carry another."""
        resp, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, response_class=_Response)
        environ["wsgi.multithread"] = True
        self.nr += 1
        if not self.alive or len(self.keepalived_conns) >= self.max_keepalived:
            resp.force_close()
        body: Any = None
        try:
            body = self.wsgi(environ, resp.start_response)
            if isinstance(body, environ["wsgi.file_wrapper"]):
                resp.write_file(body)
            else:
                for item in body:
                    resp.write(item)
            resp.close()
        except OSError:
            raise  # the client is gone: the caller knows which of these are worth a line in the log
        except Exception:
            if not resp.headers_sent:
                raise
            # The head is out: another would corrupt what the client reads.
            self.log.exception("the answer to %s %s was cut off", req.method, req.uri)
            util.close_graceful(conn.sock)
            raise StopIteration from None
        finally:
            if hasattr(body, "close"):
                body.close()
        return not resp.should_close()

    def handle_error(self, _req: Any, client: socket.socket, _addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be parsed, in the form that the API's clients read."""
        status, reason = 400, "Bad Request"
        if isinstance(exc, LimitRequestLine):
            status, reason = 414, "URI Too Long"
        elif isinstance(exc, LimitRequestHeaders):
            status, reason = 431, "Request Header Fields Too Large"
        elif type(exc).__module__ != "gunicorn.http.errors":
            status, reason = 500, "Internal Server Error"
            self.log.error("a request failed", exc_info=exc)
        body = json.dumps({"message": f"{reason}: {exc}" if str(exc) else reason}).encode() + b"\n"
        head = (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            client.sendall(head.encode("latin-1") + body)
        except OSError as error:
            self.log.debug("the client left before it could be told: %s", error)


def _release(conn: Any) -> tuple[socket.socket, bytes]:
    """Take the socket out of gunicorn's hands, with what was read of it beyond the request."""
    client: socket.socket = conn.sock
    # A body that the view did not read lies before what belongs to the stream.
    if not conn.parser.finish_body(deadline=time.monotonic() + DRAIN_SECONDS):
        raise OSError(errno.EPROTO, "the request's body could not be read")
    early: bytes = conn.parser.unreader.take_buffered()
    client.setblocking(True)
    return client, early


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the one that forked it ends, however that happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
