"""How a shim comes to be: its socket, its process, and what its parent is told.

Facts of containerd's runtime v2: the socket is named by a hash of containerd's address, namespace and id, so that a
second `start` finds a shim that runs. A caller that sets MAX_SHIM_VERSION (containerd 1.7 and later) is answered in
JSON, an older one with the bare address, which is kept in the bundle's `address` for its restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import socket
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from gantry.linux import process as linux_process
from gantry.ttrpc import address as addresses
from shim import cgroups, options, server
from shim.errors import AlreadyExists, InvalidArgument, ShimError
from shim.flags import Flags

SOCKET_DIR: Final = "/run/containerd/s"
PROTOCOL: Final = "ttrpc"
VERSION: Final = 3


def socket_address(socket_dir: str, containerd: str, namespace: str, container: str) -> str:
    """Address of a container's shim."""
    name = hashlib.sha256(posixpath.normpath(posixpath.join(containerd, namespace, container)).encode()).hexdigest()
    return f"unix://{posixpath.join(socket_dir or SOCKET_DIR, name)}"


def bind(address: str) -> socket.socket:
    """Listens at a shim's address; a socket that a dead shim left is replaced.

    AlreadyExists when a shim answers there.
    """
    path = addresses.socket_path(address)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        return addresses.listen(address)
    except OSError:
        if not os.path.exists(path):
            raise
    if answers(address):
        raise AlreadyExists(f"a shim listens at {address}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return addresses.listen(address)


def answers(address: str) -> bool:
    """Whether somebody accepts connections there."""
    try:
        addresses.connect(address, 0.1).close()
    except OSError:
        return False
    return True


def as_json(address: str) -> str:
    """The answer to newer callers."""
    return json.dumps({"version": VERSION, "address": address, "protocol": PROTOCOL}, separators=(",", ":"))


def read_options(data: bytes) -> options.Options:
    """Runtime options from a start command's stdin: one Any, or nothing."""
    value = any_pb2.Any()
    try:
        value.ParseFromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"runtime options on stdin cannot be parsed: {error}") from None
    return options.from_any(value)


def adjust_oom_score(pid: int, parent: int) -> None:
    """One above the parent's, as containerd's shim has it: the daemon is to be killed after its shims.

    Lowering a score takes CAP_SYS_RESOURCE; without it the shim keeps what it has.
    """
    with open(f"/proc/{parent}/oom_score_adj", encoding="ascii") as file:
        score = min(int(file.read()) + 1, 1000)
    with contextlib.suppress(PermissionError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))


def write_file(path: str, text: str) -> None:
    """Writes a small file whole or not at all."""
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def start(flags: Flags, environment: Mapping[str, str]) -> str:
    """The start command: forks a shim for the bundle that is the working directory; gives what is to be printed."""
    if not flags.id:
        raise InvalidArgument("shim id cannot be empty")
    chosen = read_options(sys.stdin.buffer.read(10 << 20))
    address = socket_address("", flags.address, flags.namespace, flags.id)
    new_caller = "MAX_SHIM_VERSION" in environment
    answer = as_json(address) if new_caller else address
    try:
        listener = bind(address)
    except AlreadyExists:
        return answer
    try:
        _fork(flags, environment, listener, address, chosen)
    except (OSError, ShimError):
        os.unlink(addresses.socket_path(address))
        raise
    if new_caller:
        write_file("bootstrap.json", answer)
    else:
        write_file("address", address)
    return answer


def _fork(
    flags: Flags, environment: Mapping[str, str], listener: socket.socket, address: str, chosen: options.Options
) -> None:
    parameters = server.ShimParameters(
        namespace=flags.namespace,
        id=flags.id,
        bundle=os.getcwd(),
        ttrpc_address=ttrpc_address(environment, flags.address),
        socket_path=addresses.socket_path(address),
        scripts=scripts_directory(),
        debug=flags.debug,
    )
    pid = os.fork()
    if not pid:
        become_shim(parameters, listener)
    listener.close()
    try:
        adjust_oom_score(pid, os.getppid())
        if chosen.shim_cgroup:
            cgroups.add_process(pid, chosen.shim_cgroup)
    except OSError as error:
        os.kill(pid, 9)
        raise ShimError(f"failed to set up the shim's process: {error}") from error


def become_shim(parameters: server.ShimParameters, listener: socket.socket) -> NoReturn:
    """In the forked child: leaves the parent's session and descriptors, serves, and ends with the process."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1):
            os.dup2(null, descriptor)
        os.close(null)
        parked = [client.descriptor for clients in parameters.parked.values() for client in clients]
        linux_process.close_from(3, (listener.fileno(), *parked))
        server.serve(parameters, listener)
        status = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"containerd-shim-runc-v2: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def ttrpc_address(environment: Mapping[str, str], grpc_address: str) -> str:
    """Where events go: TTRPC_ADDRESS, else the gRPC socket's path with `.ttrpc` added."""
    return environment.get("TTRPC_ADDRESS") or (f"{grpc_address}.ttrpc" if grpc_address else "")


def scripts_directory() -> str:
    """Where our own console script is; the runtime beside it is preferred to one in PATH."""
    return os.path.dirname(os.path.abspath(sys.argv[0]))


def serve(flags: Flags, environment: Mapping[str, str]) -> None:
    """No command: a shim in this process, at the -socket path or on the listening socket that is descriptor 3."""
    if flags.socket:
        listener = bind(f"unix://{os.path.abspath(flags.socket)}")
    else:
        try:
            listener = socket.socket(fileno=3)
        except OSError as error:
            raise InvalidArgument(f"no -socket, and descriptor 3 is no listening socket: {error.strerror}") from None
    path = listener.getsockname()
    parameters = server.ShimParameters(
        namespace=flags.namespace,
        id=flags.id,
        bundle=flags.bundle or os.getcwd(),
        ttrpc_address=ttrpc_address(environment, flags.address),
        socket_path=os.path.abspath(flags.socket) if flags.socket else str(path),
        scripts=scripts_directory(),
        debug=flags.debug,
    )
    server.serve(parameters, listener)
