"""The shim binary's command line: ``start``, ``delete`` and ``-info``.

The contract is containerd's (core/runtime/v2/README.md there): argv, environment, the runtime options on standard
input, and one reply on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import sys
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from containerd.anyvalue import AnyValue
from containerd.errors import DeadlineExceeded, InvalidArgument, NotFound, Unimplemented, Unknown
from containerd.runtime.bundle import Bundle
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.contracts.containerd.types import introspection_pb2

__all__ = [
    "Bootstrap",
    "Exit",
    "ShimBinary",
    "publish_binary",
    "read_bootstrap",
    "resolve_binary",
    "search_path",
    "write_bootstrap",
]

_log = logging.getLogger(__name__)

NEWEST_VERSION = 3
BOOTSTRAP = "bootstrap.json"
ADDRESS = "address"
BINARY = "shim-binary-path"
_OUTPUT_LIMIT = 1 << 20
_RUNTIME_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Bootstrap:
    """How a running shim is reached: ``version`` of the task API, ``address`` ``unix:///PATH``, ``protocol`` ttrpc."""

    version: int
    address: str
    protocol: str = "ttrpc"


@dataclass(frozen=True)
class Exit:
    """How a process ended; ``exited_at`` in nanoseconds since 1970, 0 when unknown."""

    status: int
    exited_at: int
    pid: int = 0


def search_path() -> str:
    """Return PATH with the directory of this program's own console script in front: its siblings are found first."""
    own = os.path.dirname(os.path.abspath(sys.argv[0]))
    beside_interpreter = os.path.dirname(sys.executable)
    path = os.environ.get("PATH") or os.defpath
    front = [own] if os.path.basename(sys.argv[0]) == "containerd" else []
    parts = [*front, beside_interpreter, *path.split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(part for part in parts if part))


def resolve_binary(runtime: str) -> str:
    """Return the shim binary of a runtime: an absolute path as it is, ``io.containerd.NAME.vN`` by its name.

    Raises :class:`InvalidArgument` for an impossible name, :class:`NotFound` when the binary is not installed.
    """
    if not runtime:
        raise InvalidArgument("failed to resolve runtime path: no runtime name: invalid argument")
    if os.path.isabs(runtime):
        if not os.path.exists(runtime):
            raise NotFound(
                f"failed to resolve runtime path: invalid custom binary path: stat {runtime}: "
                "no such file or directory: not found"
            )
        return runtime
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or not _RUNTIME_NAME.fullmatch(runtime):
        raise InvalidArgument(
            f"failed to resolve runtime path: invalid runtime name {runtime}, correct runtime name should be either "
            "format like `io.containerd.runc.v2` or a full path to the binary: invalid argument"
        )
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    path = shutil.which(name, path=search_path())
    if path is None:
        raise NotFound(
            f'failed to resolve runtime path: runtime "{runtime}" binary not installed "{name}": '
            "file does not exist: not found"
        )
    return os.path.abspath(path)


def publish_binary() -> str:
    """Return this program: what a shim is told to publish events with where it cannot use ttrpc."""
    return os.path.abspath(sys.argv[0])


@dataclass(frozen=True)
class ShimBinary:
    """A shim binary and what it is told about this daemon."""

    path: str
    address: str
    ttrpc_address: str
    socket_dir: str
    debug: bool = False

    def environment(self, namespace: str) -> dict[str, str]:
        """Return the whole environment of a shim in ``namespace``."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("LISTEN_", "NOTIFY_SOCKET"))},
            "PATH": search_path(),
            "TTRPC_ADDRESS": self.ttrpc_address,
            "GRPC_ADDRESS": self.address,
            "NAMESPACE": namespace,
            "MAX_SHIM_VERSION": "2",  # what the real one sends; a shim answers with its own
            "GOMAXPROCS": "2",
        }

    async def start(self, bundle: Bundle, options: AnyValue | None, timeout: float) -> Bootstrap:
        """Run ``start`` for a bundle. Raises :class:`Unknown` with what the shim printed, `DeadlineExceeded`."""
        argv = [*self._argv(bundle), "start"]
        payload = Any(type_url=options.type_url, value=options.value).SerializeToString() if options else b""
        output = await _run(argv, bundle.path, self.environment(bundle.namespace), payload, timeout, merge=True)
        return parse_bootstrap(output)

    async def delete(self, bundle: Bundle, timeout: float) -> Exit:
        """Run ``delete`` for a bundle whose shim is gone: kills and removes what is left of the container.

        Raises :class:`Unknown`, :class:`DeadlineExceeded`.
        """
        argv = [*self._argv(bundle), "-bundle", bundle.path, "delete"]
        output = await _run(argv, bundle.path, self.environment(bundle.namespace), b"", timeout, merge=False)
        response = shim_pb2.DeleteResponse()
        try:
            response.ParseFromString(output)
        except DecodeError as error:
            raise Unknown(f"{self.path} delete: reply cannot be read: {error}") from error
        exited_at = response.exited_at.seconds * 1_000_000_000 + response.exited_at.nanos
        return Exit(response.exit_status, max(exited_at, 0), response.pid)

    async def info(self, options: AnyValue | None, timeout: float) -> introspection_pb2.RuntimeInfo:
        """Run ``-info``. Raises :class:`Unknown`, :class:`DeadlineExceeded`."""
        payload = Any(type_url=options.type_url, value=options.value).SerializeToString() if options else b""
        output = await _run([self.path, "-info"], "/", self.environment(""), payload, timeout, merge=False)
        message = introspection_pb2.RuntimeInfo()
        try:
            message.ParseFromString(output)
        except DecodeError as error:
            raise Unknown(f"{self.path} -info: reply cannot be read: {error}") from error
        return message

    def _argv(self, bundle: Bundle) -> list[str]:
        argv = [self.path, "-namespace", bundle.namespace, "-address", self.address]
        argv += ["-publish-binary", publish_binary(), "-id", bundle.id]
        return [*argv, "-debug"] if self.debug else argv


async def _run(argv: list[str], cwd: str, env: dict[str, str], payload: bytes, timeout: float, *, merge: bool) -> bytes:
    """Run a program to its end and return its output; an error carries what it printed."""
    verb = f"{argv[0]} {argv[-1]}"
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.PIPE if payload else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if merge else asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_OUTPUT_LIMIT,
        )
    except OSError as error:
        raise Unknown(f"failed to run {verb}: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate(payload or None)
    except TimeoutError:
        raise DeadlineExceeded(f"{verb}: no reply within {timeout:g} s: context deadline exceeded") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    text = (output if merge else errors or b"").decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise Unknown(
            f"{text}: exit status {process.returncode}" if text else f"{verb}: exit status {process.returncode}"
        )
    if not merge and text:
        _log.warning("shim binary printed a warning", extra={"binary": argv[0], "verb": argv[-1], "output": text})
    return output


def parse_bootstrap(output: bytes) -> Bootstrap:
    """Read what ``start`` printed: JSON by newer shims, the bare address (task API 2) by older ones.

    Raises :class:`Unimplemented` for a version from the future, :class:`Unknown` for anything else.
    """
    text = output.decode("utf-8", "replace").strip()
    bootstrap = Bootstrap(2, text)
    if text.startswith("{"):
        try:
            members = json.loads(text)
            bootstrap = Bootstrap(
                int(members["version"]), str(members["address"]), str(members.get("protocol", "ttrpc"))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Unknown(f"shim bootstrap cannot be read: {text!r}: {error}") from error
    if bootstrap.version > NEWEST_VERSION:
        raise Unimplemented(f"unsupported shim version ({bootstrap.version}): not implemented")
    if bootstrap.protocol.lower() != "ttrpc":
        raise Unimplemented(f'unexpected protocol: "{bootstrap.protocol}" (ttrpc only): not implemented')
    if not bootstrap.address.removeprefix("unix://").startswith("/"):
        raise Unknown(f"shim bootstrap has no address: {text!r}")
    return bootstrap


def write_bootstrap(bundle: Bundle, bootstrap: Bootstrap) -> None:
    """Leave in the bundle what a later daemon needs to find the shim."""
    members = {"version": bootstrap.version, "address": bootstrap.address, "protocol": bootstrap.protocol}
    bundle.write(BOOTSTRAP, json.dumps(members, separators=(",", ":")))


def read_bootstrap(bundle: Bundle) -> Bootstrap | None:
    """Return how the bundle's shim is reached, or None when none was started. Raises what `parse_bootstrap` does."""
    text = bundle.read(BOOTSTRAP) or bundle.read(ADDRESS)
    return parse_bootstrap(text.encode()) if text and text.strip() else None
