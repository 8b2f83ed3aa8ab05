"""containerd.services.introspection.v1.Introspection"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from containerd import filters as filter_language
from containerd.anyvalue import AnyValue
from containerd.errors import InvalidArgument, NotFound, Unimplemented
from containerd.plugins import PluginInfo
from containerd.services.wire import any_value
from gantry.contracts.containerd.services.introspection.v1 import introspection_pb2 as messages
from gantry.contracts.containerd.services.introspection.v1 import introspection_pb2_grpc as service
from gantry.contracts.containerd.types import introspection_pb2 as types
from gantry.contracts.containerd.types import platform_pb2

__all__ = ["Introspection", "server_uuid"]

_Context = grpc.aio.ServicerContext[Any, Any]
_UNKNOWN = 2  # of google.rpc.Code
_RUNTIME_REQUEST = types.RuntimeRequest.DESCRIPTOR.full_name
_RUNTIME_INFO = types.RuntimeInfo.DESCRIPTOR.full_name

RuntimeInfoOf = Callable[[str, "AnyValue | None"], Awaitable[types.RuntimeInfo]]


def server_uuid(root: str) -> str:
    """Return the identity of this daemon's data, made at its first start. Raises OSError."""
    path = f"{root}/uuid"
    try:
        with open(path, encoding="ascii") as file:
            return str(uuid.UUID(file.read().strip()))
    except (FileNotFoundError, ValueError):
        identity = str(uuid.uuid4())
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(identity)
        os.rename(f"{path}.new", path)
        return identity


def _message(plugin: PluginInfo) -> messages.Plugin:
    message = messages.Plugin(
        type=plugin.type,
        id=plugin.id,
        requires=plugin.requires,
        platforms=[platform_pb2.Platform(os=os_, architecture=architecture) for os_, architecture in plugin.platforms],
        exports=plugin.exports,
        capabilities=plugin.capabilities,
    )
    if plugin.error:
        # How clients tell "not for this machine" from "broken": the text ends in "skip plugin".
        message.init_err.code, message.init_err.message = _UNKNOWN, plugin.error
    return message


def _field(plugin: PluginInfo, path: Sequence[str]) -> str | None:
    return {"type": plugin.type, "id": plugin.id}.get(path[0])


class Introspection(service.IntrospectionServicer):
    """Says what the daemon is made of. ``plugins`` is asked at each call: the template may come and go."""

    def __init__(self, identity: str, plugins: Callable[[], Sequence[PluginInfo]], runtime_info: RuntimeInfoOf) -> None:
        self._identity = identity
        self._plugins = plugins
        self._runtime_info = runtime_info

    async def Plugins(self, request: messages.PluginsRequest, context: _Context) -> messages.PluginsResponse:
        matcher = filter_language.parse(request.filters)
        found = filter_language.select(matcher, self._plugins(), _field)
        return messages.PluginsResponse(plugins=[_message(plugin) for plugin in found])

    async def Server(self, request: Empty, context: _Context) -> messages.ServerResponse:
        return messages.ServerResponse(uuid=self._identity, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def PluginInfo(self, request: messages.PluginInfoRequest, context: _Context) -> messages.PluginInfoResponse:
        wanted = (request.type, request.id)
        plugin = next((plugin for plugin in self._plugins() if (plugin.type, plugin.id) == wanted), None)
        if plugin is None:
            raise NotFound(f"plugin {request.type}.{request.id} not found: not found")
        response = messages.PluginInfoResponse(plugin=_message(plugin))
        if request.HasField("options"):
            if wanted != ("io.containerd.runtime.v2", "task"):
                raise Unimplemented("plugin does not provided extra information: not implemented")
            info = await self._runtime_info(*_runtime_request(request.options))
            response.extra.CopyFrom(any_pb2.Any(type_url=_RUNTIME_INFO, value=info.SerializeToString()))
        return response


def _runtime_request(options: any_pb2.Any) -> tuple[str, AnyValue | None]:
    if options.type_url.rpartition("/")[2] != _RUNTIME_REQUEST:
        raise Unimplemented(f"unknown request type {options.type_url}: not implemented")
    try:
        request = types.RuntimeRequest.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"{_RUNTIME_REQUEST}: {error}: invalid argument") from error
    return request.runtime_path, any_value(request.options)
