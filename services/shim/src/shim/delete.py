"""The delete command: cleans up after a shim that has died."""

from __future__ import annotations

import logging
import os
import time

from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.linux import process as linux_process
from gantry.ttrpc import address as addresses
from shim import bootstrap, options, packets, rootfs
from shim.container import SIGKILL, timestamp
from shim.errors import ShimError
from shim.flags import Flags
from shim.launch import Launcher
from shim.loop import Loop
from shim.reaper import Reaper
from shim.runtime import CommandLineRuntime, read_pid_file

_log = logging.getLogger(__name__)


def delete(flags: Flags) -> bytes:
    """Kills and deletes the container by its runtime, unmounts its root; gives a serialized DeleteResponse.

    How the process ended is not known any more: status 137, now. What is gone already is fine, what cannot be removed
    is noted on stderr, which containerd logs.
    """
    bundle = os.path.join(os.path.dirname(os.getcwd()), flags.id) if flags.id else os.getcwd()
    if flags.bundle and os.path.basename(flags.bundle) == flags.id:
        bundle = flags.bundle
    linux_process.set_child_subreaper()
    loop = Loop()
    reaper = Reaper(loop)
    reaper.install()
    runtime = CommandLineRuntime(
        Launcher(loop, reaper, bootstrap.scripts_directory()), options.load(bundle), flags.namespace, bundle
    )
    loop.spawn(_delete(runtime, flags.id)).add_callback(lambda _: loop.stop())
    loop.run()
    reaper.close()
    loop.close()
    try:
        rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    except OSError as error:
        _log.warning("failed to cleanup rootfs mount: %s", error)
    try:
        pid = read_pid_file(os.path.join(bundle, "init.pid"))
    except ShimError as error:
        _log.warning("failed to read init pid file: %s", error)
        pid = 0
    _remove_socket(bootstrap.socket_address("", flags.address, flags.namespace, flags.id))
    response = shim_pb2.DeleteResponse(pid=pid, exit_status=128 + SIGKILL, exited_at=timestamp(time.time_ns()))
    return response.SerializeToString()


def _remove_socket(address: str) -> None:
    """A shim that was killed left its socket; one that answers is alive (it serves others of its pod) and keeps it."""
    path = addresses.socket_path(address)
    if os.path.exists(path) and not bootstrap.answers(address):
        packets.remove(path)


async def _delete(runtime: CommandLineRuntime, container: str) -> None:
    try:
        await runtime.delete(container, force=True)
    except (OSError, ShimError) as error:
        _log.warning("failed to remove runc container: %s", error)
