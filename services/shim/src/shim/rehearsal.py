"""A container's whole life played through in the template, with a runtime that only pretends.

Python fills caches and specialises bytecode as code runs for the first times; done before the fork, that work and the
memory pages that it writes are shared by all shims instead of being each one's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import Message

from gantry.contracts.containerd.runc.v1 import oci_pb2
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.linux import process as linux_process
from gantry.stdio.uri import StdioURI
from gantry.ttrpc import address as addresses
from gantry.ttrpc.protocol import FrameDecoder, Response, request_frame
from shim import server
from shim.launch import EntryPoint
from shim.loop import Loop

_SERVICE: Final = "containerd.task.v3.Task"
_ID: Final = "rehearsal"
_METADATA: Final = (("containerd-namespace-ttrpc", _ID),)
_ROUNDS: Final = 3
_WITHIN: Final = 5.0


def pretend() -> int:
    """The runtime of the rehearsal: its processes wait for a signal, and `kill` sends it."""
    arguments = sys.argv
    if "--pid-file" in arguments:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                signal.pause()
        with open(arguments[arguments.index("--pid-file") + 1], "w", encoding="ascii") as file:
            file.write(str(pid))
    elif "kill" in arguments:
        with open("init.pid", encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGKILL)
    return 0


def rehearse() -> None:
    """Plays a container's life. Leaves nothing: processes are reaped, files removed, signal handlers given back."""
    directory = tempfile.mkdtemp(prefix="gantry-shim-")
    before = os.getcwd()
    try:
        linux_process.set_child_subreaper()
        os.chdir(directory)
        with open("config.json", "w", encoding="utf-8") as file:
            json.dump({"linux": {"namespaces": [{"type": "pid"}]}}, file)
        _play(directory)
    finally:
        linux_process.set_child_subreaper(False)
        os.chdir(before)
        shutil.rmtree(directory, ignore_errors=True)


def _play(directory: str) -> None:
    path = os.path.join(directory, "shim.sock")
    program = os.path.join(directory, "runtime")
    parameters = server.ShimParameters(
        namespace=_ID,
        id=_ID,
        bundle=directory,
        ttrpc_address="",
        socket_path=path,
        scripts=directory,
        warm=(EntryPoint(os.path.realpath(program), "runtime", pretend),),
    )
    shim = server.Shim(parameters, addresses.listen(f"unix://{path}"))
    loop = shim.loop
    client = _Client(loop, path)
    stop = loop.call_later(_WITHIN, loop.stop)
    loop.background(client.play(directory, program), "rehearsal")
    shim.run()
    stop.cancel()
    client.close()


class _Client:
    """Calls the shim from inside its own loop."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._socket = addresses.connect(f"unix://{path}", 1)
        self._socket.setblocking(False)
        self._decoder = FrameDecoder()
        self._stream_id = -1

    def send(self, method: str, request: Message) -> None:
        self._stream_id += 2
        self._socket.send(
            request_frame(self._stream_id, _SERVICE, method, request.SerializeToString(), _WITHIN, _METADATA)
        )

    async def call(self, method: str, request: Message) -> bytes:
        self.send(method, request)
        while True:
            await self._loop.readable(self._socket.fileno(), _WITHIN)
            for frame in self._decoder.feed(self._socket.recv(65536)):
                return Response.decode(frame.payload).result()

    async def play(self, directory: str, program: str) -> None:
        """Create, start, one exec, the end, delete; some rounds of it, then Shutdown."""
        uri = StdioURI(f"{directory}/attach.sock", "json-file", f"{directory}/log.json").build()
        options = oci_pb2.Options(binary_name=program, root=directory)
        value = any_pb2.Any(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
        process = any_pb2.Any(value=b"{}")
        for _ in range(_ROUNDS):
            await self.call(
                "Create",
                shim_pb2.CreateTaskRequest(id=_ID, bundle=directory, stdin=uri, stdout=uri, stderr=uri, options=value),
            )
            await self.call("Connect", shim_pb2.ConnectRequest(id=_ID))
            await self.call("Start", shim_pb2.StartRequest(id=_ID))
            await self.call("State", shim_pb2.StateRequest(id=_ID))
            await self.call("Exec", shim_pb2.ExecProcessRequest(id=_ID, exec_id="e", stdout=uri, spec=process))
            await self.call("Start", shim_pb2.StartRequest(id=_ID, exec_id="e"))
            await self.call("Kill", shim_pb2.KillRequest(id=_ID, exec_id="e", signal=signal.SIGKILL))
            await self.call("Wait", shim_pb2.WaitRequest(id=_ID, exec_id="e"))
            await self.call("Delete", shim_pb2.DeleteRequest(id=_ID, exec_id="e"))
            await self.call("Kill", shim_pb2.KillRequest(id=_ID, signal=signal.SIGKILL))
            await self.call("Wait", shim_pb2.WaitRequest(id=_ID))
            await self.call("Delete", shim_pb2.DeleteRequest(id=_ID))
        self.send("Shutdown", shim_pb2.ShutdownRequest(id=_ID))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
