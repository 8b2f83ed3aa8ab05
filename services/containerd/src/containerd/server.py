"""The gRPC server: one unix socket, the request's headers made ready, every error translated in one place."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
import grpc.aio

from containerd import namespaces
from containerd.errors import ContainerdError
from containerd.metrics.calls import Call, Calls

__all__ = ["Server"]

_log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
_SUN_PATH = 107

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]
_Context = grpc.aio.ServicerContext


class Server:
    """A gRPC server on one unix socket.

    ``max_receive`` and ``max_send`` are the largest messages in bytes; ``calls`` counts the calls.
    """

    def __init__(self, max_receive: int, max_send: int, calls: Calls | None = None) -> None:
        self._server = grpc.aio.server(
            interceptors=[_Requests(calls or Calls())],
            options=[
                ("grpc.max_receive_message_length", max_receive),
                ("grpc.max_send_message_length", max_send),
                # Two daemons on one socket would each get half of the calls.
                ("grpc.so_reuseport", 0),
                # Clients hold idle connections open and ping as they like.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )

    def add(self, register: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve a servicer; ``register`` is the generated ``add_XServicer_to_server``."""
        register(servicer, self._server)

    async def start(self, path: str, uid: int = 0, gid: int = 0) -> None:
        """Bind ``path`` with mode 0660 and answer from now on. Raises OSError.

        A socket that a killed daemon left there is replaced.
        """
        if len(os.fsencode(path)) > _SUN_PATH:
            raise OSError(f"socket path is longer than {_SUN_PATH} bytes: {path}")
        _remove_stale_socket(path)
        # The mode has to be right from the first moment on, and gRPC has no way to ask for it.
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"failed to listen on {path}: {error}") from error
        finally:
            os.umask(mask)
        os.chmod(path, SOCKET_MODE)
        os.chown(path, uid, gid)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, give those under way ``grace`` seconds, then cancel them."""
        await self._server.stop(grace)


class _Requests(grpc.aio.ServerInterceptor):
    """Wraps every handler once; the wrapped ones are kept by method."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._handlers[method] = _wrap(cast("Any", handler), method, self._calls)
        return wrapped


def _wrap(handler: Any, method: str, calls: Calls) -> Any:
    if handler.request_streaming and handler.response_streaming:
        make, behaviour, kind = grpc.stream_stream_rpc_method_handler, handler.stream_stream, "bidi_stream"
    elif handler.response_streaming:
        make, behaviour, kind = grpc.unary_stream_rpc_method_handler, handler.unary_stream, "server_stream"
    elif handler.request_streaming:
        make, behaviour, kind = grpc.stream_unary_rpc_method_handler, handler.stream_unary, "client_stream"
    else:
        make, behaviour, kind = grpc.unary_unary_rpc_method_handler, handler.unary_unary, "unary"
    wrap = _streaming if handler.response_streaming else _unary
    wrapped = wrap(behaviour, method, Call(method, kind), calls)
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


def _unary(behaviour: Any, method: str, kind: Call, calls: Calls) -> Any:
    async def call(request: Any, context: _Context[Any, Any]) -> Any:
        started = calls.start(kind)
        code = "CANCELLED"
        _enter(context)
        try:
            response = await behaviour(request, context)
            code = "OK"
            return response
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            code = _code(error)
            await _abort(context, method, error)
        finally:
            calls.handle(kind, code, started)

    return call


def _streaming(behaviour: Any, method: str, kind: Call, calls: Calls) -> Any:
    async def call(request: Any, context: _Context[Any, Any]) -> AsyncIterator[Any]:
        started = calls.start(kind)
        code = "CANCELLED"
        _enter(context)
        try:
            async for response in behaviour(request, context):
                yield response
            code = "OK"
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            code = _code(error)
            await _abort(context, method, error)
        finally:
            calls.handle(kind, code, started)

    return call


def _code(error: Exception) -> str:
    """Return the name of the gRPC code for an error. What no one foresaw is UNKNOWN."""
    if isinstance(error, ContainerdError):
        return error.code
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "RESOURCE_EXHAUSTED" if full else "UNKNOWN"


def _enter(context: _Context[Any, Any]) -> None:
    namespace = lease = ""
    for key, value in context.invocation_metadata() or ():
        if key == namespaces.NAMESPACE_HEADER:
            namespace = _text(value)
        elif key == namespaces.LEASE_HEADER:
            lease = _text(value)
    namespaces.set_request(namespace, lease)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


async def _abort(context: _Context[Any, Any], method: str, error: Exception) -> NoReturn:
    """End the call with the error's code. What no one foresaw is UNKNOWN, and is logged with its origin."""
    code = _code(error)
    if isinstance(error, ContainerdError):
        _log.debug("call failed: %s", error, extra={"method": method, "code": code})
        await context.abort(grpc.StatusCode[code], str(error))
    if isinstance(error, OSError) and code == "RESOURCE_EXHAUSTED":
        _log.error("call failed: %s", error, extra={"method": method})
        text = f"{error.filename or method}: {os.strerror(error.errno or 0)}: resource exhausted"
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    _log.error("call failed: %s", error, extra={"method": method}, exc_info=error)
    await context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _remove_stale_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return
