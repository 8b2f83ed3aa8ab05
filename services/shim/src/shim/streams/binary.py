"""A logging program (`binary://`): it reads the container's stdout and stderr at its descriptors 3 and 4.

It says that it is ready by closing, or writing to, descriptor 5 (containerd's runtime v2 logging protocol).
"""

from __future__ import annotations

import errno
import os
import signal

from shim.errors import ShimError
from shim.launch import Launcher, Streams
from shim.loop import Loop
from shim.streams.config import BinaryLogger

_READY_WITHIN = 60.0
_ENDS_WITHIN = 12.0


class BinaryProcess:
    """One running logger. `stdout` and `stderr` are the writing ends of its pipes, the caller's to close."""

    def __init__(self, loop: Loop, launcher: Launcher, logger: BinaryLogger, container: str, namespace: str) -> None:
        self._loop = loop
        # Asked first: a program that fails to start looks, at descriptor 5, like one that is ready.
        os.stat(logger.path)
        if not os.access(logger.path, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), logger.path)
        out_read, self.stdout = os.pipe2(os.O_CLOEXEC)
        err_read, self.stderr = os.pipe2(os.O_CLOEXEC)
        self._ready, ready_write = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._pid, self._ended = launcher.launch(
                logger.path,
                logger.arguments,
                cwd="/",
                streams=Streams(null, null, null),
                environment={"CONTAINER_ID": container, "CONTAINER_NAMESPACE": namespace},
                pass_descriptors=(out_read, err_read, ready_write),
                outlives_shim=True,
            )
        finally:
            for descriptor in (out_read, err_read, ready_write, null):
                os.close(descriptor)

    async def ready(self) -> None:
        """Waits for the logger's word. ShimError when it does not come."""
        try:
            if not await self._loop.readable(self._ready, _READY_WITHIN):
                self.terminate()
                raise ShimError("failed to read from logging binary: it does not say that it is ready")
            if not os.read(self._ready, 1) and self._ended.done and self._ended.result().status:
                status = self._ended.result().status
                raise ShimError(f"failed to start binary process: exit status {status}")
        finally:
            os.close(self._ready)

    def terminate(self) -> None:
        """Asks the logger to end; after twelve seconds it is killed."""
        self._signal(signal.SIGTERM)
        timer = self._loop.call_later(_ENDS_WITHIN, lambda: self._signal(signal.SIGKILL))
        self._ended.add_callback(lambda _: timer.cancel())

    def _signal(self, number: int) -> None:
        # Until it is reaped, which settles the future, the pid is the logger's.
        if not self._ended.done:
            os.kill(self._pid, number)
