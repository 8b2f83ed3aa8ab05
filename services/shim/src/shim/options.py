"""The runtime options of a container: `containerd.runc.v1.Options`, on the wire and as the bundle keeps them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from gantry.contracts.containerd.runc.v1 import oci_pb2
from shim.errors import InvalidArgument

DEFAULT_ROOT = "/run/containerd/runc"
_TYPE = "containerd.runc.v1.Options"


@dataclass(frozen=True, slots=True)
class Options:
    """How to run the OCI runtime. `root` gets the namespace added below it."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_image_path: str = ""
    criu_work_path: str = ""


def from_any(value: any_pb2.Any) -> Options:
    """Unpacks the Any of Create or of a start command's stdin; an empty one means defaults.

    InvalidArgument for another type of options: silently running something else would be worse.
    """
    if not value.type_url and not value.value:
        return Options()
    if value.type_url.rpartition("/")[2] != _TYPE:
        raise InvalidArgument(f"runtime options of type {value.type_url!r}: this shim takes {_TYPE}")
    message = oci_pb2.Options()
    try:
        message.ParseFromString(value.value)
    except DecodeError as error:
        raise InvalidArgument(f"runtime options cannot be parsed: {error}") from error
    return Options(**{name: getattr(message, name) for name in Options.__slots__})


def save(bundle: str, options: Options) -> None:
    """Leaves `options.json` and `runtime` in the bundle, for the delete command of a shim that has died."""
    given = {name: value for name, value in asdict(options).items() if value}
    _write(os.path.join(bundle, "options.json"), json.dumps(given, separators=(",", ":")))
    _write(os.path.join(bundle, "runtime"), options.binary_name)


def load(bundle: str) -> Options:
    """Reads them back; defaults where no container was created in the bundle."""
    try:
        with open(os.path.join(bundle, "options.json"), encoding="utf-8") as file:
            given = json.load(file)
    except FileNotFoundError:
        return Options()
    if not isinstance(given, dict):
        raise InvalidArgument(f"{bundle}/options.json is not an object")
    return Options(**{name: value for name, value in given.items() if name in Options.__slots__})


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
