"""`-info`: the shim introduces itself and the OCI runtime it would run."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from gantry.contracts.containerd.types import introspection_pb2
from shim import __version__, options
from shim.bootstrap import scripts_directory
from shim.errors import InvalidArgument, NotFound
from shim.launch import find_program
from shim.runtime import DEFAULT_COMMAND

TEMPLATE_ANNOTATION: Final = "io.gantry.shim.template.v1"
STDIO_ANNOTATION: Final = "io.gantry.stdio.v1"
_FEATURES_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def runtime_info(request: bytes) -> bytes:
    """A serialized RuntimeInfo for the options in `request`: an Any of options, a RuntimeRequest, or nothing.

    NotFound when there is no such runtime. One that does not know `features` is described without them.
    """
    value = _options_in(request)
    chosen = options.from_any(value)
    name = chosen.binary_name or DEFAULT_COMMAND
    try:
        path = name if "/" in name else find_program(name, scripts_directory())
    except FileNotFoundError as error:
        raise NotFound(f'failed to look up the path of "{name}": {error}') from None
    info = introspection_pb2.RuntimeInfo(
        name="io.containerd.runc.v2",
        version=introspection_pb2.RuntimeVersion(version=__version__),
        annotations={TEMPLATE_ANNOTATION: __version__, STDIO_ANNOTATION: __version__},
    )
    if value.type_url:
        info.options.CopyFrom(value)
    features = _features(path)
    if features:
        info.features.CopyFrom(any_pb2.Any(type_url=_FEATURES_TYPE, value=features))
    return info.SerializeToString()


def _options_in(request: bytes) -> any_pb2.Any:
    """A RuntimeRequest's first field is text without a dot-separated name in most cases; an Any's is a type's name."""
    value = any_pb2.Any()
    if not request:
        return value
    try:
        value.ParseFromString(request)
    except DecodeError as error:
        raise InvalidArgument(f"options on stdin cannot be parsed: {error}") from None
    return value


def _features(path: str) -> bytes:
    try:
        done = subprocess.run(
            [path, "features"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False, env=os.environ
        )
        json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
