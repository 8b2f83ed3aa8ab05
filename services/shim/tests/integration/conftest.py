"""A world for one shim: a bundle with busybox, a place for events, a shim started as containerd starts it.

`SHIM` names another shim to run the same tests against (the real containerd-shim-runc-v2), `RUNTIME` another runtime.
Tests of what only this shim has are skipped for another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from google.protobuf import any_pb2, empty_pb2

from gantry.contracts.containerd.events import task_pb2 as event_types
from gantry.contracts.containerd.runc.v1 import oci_pb2
from gantry.contracts.containerd.services.events.ttrpc.v1 import events_pb2
from gantry.contracts.containerd.task.v2 import shim_pb2 as v2
from gantry.contracts.containerd.task.v3 import shim_pb2 as v3
from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from gantry.linux import unix
from gantry.stdio.uri import StdioURI
from gantry.ttrpc import address, client, server

OURS = str(Path(sys.executable).with_name("containerd-shim-runc-v2"))
SHIM = os.environ.get("SHIM", OURS)
RUNTIME = os.environ.get("RUNTIME", shutil.which("runc") or "/usr/bin/runc")
NAMESPACE = "shimtest"
APPLETS = "sh echo cat sleep true false head tail yes seq dd tty stty ls id kill printf env nohup wc"


def pytest_collection_modifyitems(items):
    """All of these need root; those marked `ours` need this shim."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.root)
        if os.geteuid() != 0 or not os.path.exists(RUNTIME) or not shutil.which("busybox"):
            item.add_marker(pytest.mark.skip(reason="needs root, an OCI runtime and busybox"))
        if SHIM != OURS and "ours" in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="not a test for another shim"))


@pytest.fixture
def ours():
    """Says that a test is about what only this shim offers."""


class Events:
    """containerd's ttrpc events service, on a thread; `refuse` makes it answer with an error."""

    def __init__(self, path):
        self.path = path
        self.received = queue.Queue()
        self._thread = None

    def Forward(self, request, call):
        envelope = request.envelope
        kind = envelope.event.type_url.rpartition(".")[2]
        message = getattr(event_types, kind)()
        message.ParseFromString(envelope.event.value)
        self.received.put((envelope.topic, message, envelope))
        return empty_pb2.Empty()

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        selector = selectors.DefaultSelector()
        srv = server.Server(selector)
        srv.add_service(events_pb2.DESCRIPTOR.services_by_name["Events"], self)
        srv.serve(address.listen(f"unix://{self.path}"))
        wake, self._stop = socket.socketpair()
        selector.register(wake, selectors.EVENT_READ, None)

        def loop():
            while True:
                for key, events in selector.select():
                    if key.data is None:
                        srv.close()
                        wake.close()
                        selector.close()
                        return
                    key.data(events)

        self._thread = threading.Thread(target=loop)
        self._thread.start()

    def stop(self):
        if self._thread is not None:
            self._stop.send(b"x")
            self._thread.join()
            self._stop.close()
            self._thread = None

    def next(self, timeout=10):
        """The next event: topic and message."""
        topic, message, _ = self.received.get(timeout=timeout)
        return topic, message

    def topics(self, count, timeout=10):
        """Topics of the next events."""
        return [self.next(timeout)[0] for _ in range(count)]


class World:
    """One container id with its bundle, shim and connection."""

    def __init__(self, root: Path, request):
        self.root = root
        self.id = "t" + uuid.uuid4().hex[:12]
        self.bundle = root / "bundles" / self.id
        self.runtime_root = root / "runc"
        self.events = Events(str(root / "containerd.sock.ttrpc"))
        self.address = str(root / "containerd.sock")
        self.connection = None
        self.shim_pid = 0
        self.api = v3
        self.service = "containerd.task.v3.Task"

    def make_bundle(self, args=("sh", "-c", "exit 0"), terminal=False, rootfs=True, **process):
        self.bundle.mkdir(parents=True)
        os.mkfifo(self.bundle / "log", 0o700)
        self._log = os.open(self.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        if rootfs:
            make_rootfs(self.bundle / "rootfs")
        (self.bundle / "config.json").write_text(json.dumps(spec(args, terminal, self.id, **process)))
        return self

    def environment(self, **extra):
        return {
            "PATH": os.environ["PATH"],
            "TTRPC_ADDRESS": self.events.path,
            "GOMAXPROCS": "2",
            **extra,
        }

    def argv(self, *more):
        return [
            SHIM, "-namespace", NAMESPACE, "-address", self.address, "-publish-binary", "/usr/bin/containerd",
            "-id", self.id, *more,
        ]  # fmt: skip

    def options(self, **fields):
        value = oci_pb2.Options(binary_name=RUNTIME, root=str(self.runtime_root), **fields)
        return any_pb2.Any(type_url="containerd.runc.v1.Options", value=value.SerializeToString())

    def bootstrap(self, new=True, stdin=b""):
        """Runs `start` and gives what it printed."""
        extra = {"MAX_SHIM_VERSION": "2", "NAMESPACE": NAMESPACE, "GRPC_ADDRESS": self.address} if new else {}
        done = subprocess.run(
            self.argv("start"), cwd=self.bundle, input=stdin, capture_output=True,
            env=self.environment(**extra), timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.decode().strip()

    def start_shim(self, new=True, stdin=b""):
        """Starts a shim and connects to it, in the version of the API that it names."""
        answer = self.bootstrap(new, stdin)
        if answer.startswith("{"):
            parsed = json.loads(answer)
            where, version = parsed["address"], parsed["version"]
        else:
            where, version = answer, 2
        self.connect(where, version)
        return answer

    def connect(self, where, version=3):
        self.api, self.service = (v3, "containerd.task.v3.Task") if version == 3 else (v2, "containerd.task.v2.Task")
        self.where = where
        self.connection = client.Client.connect(where, 5)
        self.shim_pid = self.call("Connect", self.api.ConnectRequest(id=self.id)).shim_pid

    def call(self, method, request, timeout=20, connection=None):
        output = next(m for m in self.api.DESCRIPTOR.services_by_name["Task"].methods if m.name == method).output_type
        kind = empty_pb2.Empty if output.name == "Empty" else getattr(self.api, output.name)
        return (connection or self.connection).call(
            self.service, method, request, kind, timeout=timeout,
            metadata=[("containerd-namespace-ttrpc", NAMESPACE)],
        )  # fmt: skip

    def create(self, stdin="", stdout="", stderr="", terminal=False, options=None, **more):
        # The real shim wants both outputs or none.
        stderr = stderr or ("" if terminal else stdout)
        return self.call(
            "Create",
            self.api.CreateTaskRequest(
                id=self.id, bundle=str(self.bundle), stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal,
                options=options or self.options(), **more,
            ),
        )  # fmt: skip

    def start(self, exec_id=""):
        return self.call("Start", self.api.StartRequest(id=self.id, exec_id=exec_id)).pid

    def wait(self, exec_id="", timeout=20):
        return self.call("Wait", self.api.WaitRequest(id=self.id, exec_id=exec_id), timeout)

    def state(self, exec_id=""):
        return self.call("State", self.api.StateRequest(id=self.id, exec_id=exec_id))

    def kill(self, number=9, exec_id="", everything=False):
        return self.call("Kill", self.api.KillRequest(id=self.id, exec_id=exec_id, signal=number, all=everything))

    def delete(self, exec_id=""):
        return self.call("Delete", self.api.DeleteRequest(id=self.id, exec_id=exec_id))

    def exec(self, exec_id, args, stdin="", stdout="", stderr="", terminal=False):
        process = spec(args, terminal, self.id)["process"]
        stderr = stderr or ("" if terminal else stdout)
        value = any_pb2.Any(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=json.dumps(process).encode()
        )
        return self.call(
            "Exec",
            self.api.ExecProcessRequest(
                id=self.id, exec_id=exec_id, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr, spec=value
            ),
        )

    def uri(self, driver="json-file", **more):
        """A gantry-stdio URI of this container."""
        path = str(self.root / "log.json") if driver == "json-file" else ""
        return StdioURI(str(self.root / "attach.sock"), driver, path, **more).build()

    def attach(self, **session):
        return attach(str(self.root / "attach.sock"), **session)

    def logged(self):
        """The json-file log's records: stream and text."""
        lines = (self.root / "log.json").read_text().splitlines()
        return [(record["stream"], record["log"]) for record in map(json.loads, lines)]

    def fifo(self, name):
        """Makes a FIFO and opens it as the client does; gives path and descriptor."""
        path = self.root / name
        os.mkfifo(path, 0o700)
        return str(path), os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def shutdown(self):
        """Ends the shim and waits until its process is gone."""
        with contextlib.suppress(Exception):
            self.call("Shutdown", self.api.ShutdownRequest(id=self.id), 3)
        self.connection.close()
        self.connection = None
        wait_gone(self.shim_pid)

    def shim_log(self):
        """What the shim has logged so far."""
        try:
            return os.read(self._log, 65536).decode()
        except BlockingIOError:
            return ""

    def close(self):
        if self.connection is not None:
            for method, request in [
                ("Kill", self.api.KillRequest(id=self.id, signal=9, all=True)),
                ("Wait", self.api.WaitRequest(id=self.id)),
                ("Delete", self.api.DeleteRequest(id=self.id)),
                ("Shutdown", self.api.ShutdownRequest(id=self.id)),
            ]:
                with contextlib.suppress(Exception):
                    self.call(method, request, 5)
            self.connection.close()
        if self.shim_pid:
            try:
                wait_gone(self.shim_pid)
            except TimeoutError:
                os.kill(self.shim_pid, signal.SIGKILL)
                raise
        if hasattr(self, "_log"):
            os.close(self._log)
        self.events.stop()


def wait_gone(pid, seconds=10):
    """Waits until a process that is not our child is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        selector = selectors.DefaultSelector()
        selector.register(descriptor, selectors.EVENT_READ)
        if not selector.select(seconds):
            raise TimeoutError(f"process {pid} does not end")
        selector.close()
    finally:
        os.close(descriptor)


def make_rootfs(path):
    """busybox and nothing else."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (path / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox" if os.path.exists("/usr/bin/busybox") else "/bin/busybox", path / "bin/busybox")
    for name in APPLETS.split():
        (path / "bin" / name).symlink_to("busybox")


def spec(args, terminal, container, **process):
    """A runtime-spec configuration."""
    linux = process.pop("linux", {})
    namespaces = process.pop("namespaces", ["pid", "ipc", "uts", "mount", "network"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            **process,
        },
        "root": {"path": "rootfs"},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "cgroupsPath": f"/shimtest/{container}",
            "namespaces": [{"type": name} for name in namespaces],
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            **linux,
        },
    }  # fmt: skip


def read_all(descriptor, seconds=10, until=None):
    """Reads until the end, or until the text is there."""
    data = b""
    selector = selectors.DefaultSelector()
    selector.register(descriptor, selectors.EVENT_READ)
    deadline = time.monotonic() + seconds
    while until is None or until not in data:
        if not selector.select(max(0, deadline - time.monotonic())):
            break
        try:
            piece = os.read(descriptor, 65536)
        except BlockingIOError:
            continue
        if not piece:
            break
        data += piece
    selector.close()
    return data


def mounts_below(path):
    """Mounts at or below a directory."""
    with open("/proc/self/mountinfo") as file:
        return [line.split()[4] for line in file if line.split()[4].startswith(str(path))]


@pytest.fixture
def world(tmp_path, request):
    """A world whose end is checked: no process, mount or cgroup of it is left."""
    w = World(tmp_path, request)
    w.events.start()
    yield w
    w.close()
    assert not mounts_below(tmp_path)
    left = [
        os.path.join(base, w.id)
        for base, names, _ in os.walk("/sys/fs/cgroup")
        if base.endswith("/shimtest") and w.id in names
    ]
    assert not left


class Template:
    """A running template process."""

    def __init__(self, root):
        self.path = str(root / "template.sock")
        self.sockets = root / "s"
        with open(root / "template.log", "wb") as log:
            self.process = subprocess.Popen(
                [OURS, "-address", str(root / "c.sock"), "-socket", self.path, "template"],
                env={"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                assert self.ask(template_pb2.Request(ping=template_pb2.Ping())).pong.pid == self.process.pid
                return
            except OSError:
                assert time.monotonic() < deadline
                assert self.process.poll() is None
                time.sleep(0.02)

    def ask(self, request, descriptors=()):
        return ask(self.path, request, template_pb2.Reply, descriptors)

    def ping(self):
        return self.ask(template_pb2.Request(ping=template_pb2.Ping())).pong

    def fork(self, world, **fields):
        """Forks a shim for a world and connects to it."""
        fork = template_pb2.Fork(
            namespace=NAMESPACE, id=world.id, bundle=str(world.bundle), address=world.address,
            ttrpc_address=world.events.path, environment=world.environment(), socket_dir=str(self.sockets), **fields,
        )  # fmt: skip
        reply = self.ask(template_pb2.Request(fork=fork))
        assert reply.code == 0, reply.message
        world.connect(reply.bootstrap.address, reply.bootstrap.version)
        assert world.shim_pid == reply.bootstrap.pid
        return reply.bootstrap

    def park(self, world, descriptor, **session):
        park = template_pb2.Park(namespace=NAMESPACE, id=world.id, session=session_of(**session))
        return self.ask(template_pb2.Request(park=park), [descriptor])

    def stop(self):
        if self.process.poll() is None:
            self.ask(template_pb2.Request(stop=template_pb2.Stop()))
        assert self.process.wait(10) == 0


def ask(path, request, reply_type, descriptors=()):
    """One request to a packet socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        unix.connect_path(sock, path)
        unix.send_packet(sock, request.SerializeToString(), list(descriptors))
        data, _ = unix.receive_packet(sock, 1 << 18)
    reply = reply_type()
    reply.ParseFromString(data)
    return reply


def session_of(**fields):
    """A session of gantry.stdio.v1: outputs raw unless said otherwise."""
    fields.setdefault("id", uuid.uuid4().hex)
    fields.setdefault("stdout", True)
    fields.setdefault("framing", stdio_pb2.FRAMING_RAW)
    return stdio_pb2.Session(**fields)


def attach(path, **session):
    """Attaches to a container's streams; gives the reply and the client's end."""
    ours, theirs = socket.socketpair()
    request = stdio_pb2.Request(attach=stdio_pb2.Attach(session=session_of(**session)))
    reply = ask(path, request, stdio_pb2.Reply, [theirs.fileno()])
    theirs.close()
    ours.settimeout(20)
    return reply, ours


def receive(sock, until=None):
    """All that comes until the end, or until the text is there."""
    data = b""
    while until is None or until not in data:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A template process for the whole run; at its end nothing may be parked and nothing left unreaped."""
    running = Template(tmp_path_factory.mktemp("template"))
    yield running
    parked = running.ping().parked
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()
    running.stop()
    assert (parked, children) == (0, "")
    assert not os.path.exists(running.path)


@pytest.fixture(params=["cold", "template"])
def shim(request, world, ours):
    """The world with a function that gives it a shim, by either way."""

    def begin(**bundle):
        world.make_bundle(**bundle)
        if request.param == "cold":
            world.start_shim()
        else:
            request.getfixturevalue("template").fork(world)
        return world

    return begin


@pytest.fixture
def harness():
    """The module's helpers, for tests that import nothing from here."""
    return sys.modules[__name__]
