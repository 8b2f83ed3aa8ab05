"""A whole engine in a directory of its own: containerd and dockerd as processes, the docker CLI as the user."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from support import programs
from support.machine import MARK

START_SECONDS = 30.0


def await_true(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Poll an outside condition that has no event to wait on; fail with ``what`` when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:.0f} s: {what}"
        select.select([], [], [], 0.02)


def answers(path: Path) -> bool:
    """Does something accept connections on this unix socket?"""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def answers_tcp(port: int) -> bool:
    """Does something accept connections on this port of 127.0.0.1?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_network() -> str:
    """An address and prefix for a bridge that no device of the machine has."""
    taken = subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True, check=True).stdout
    return next(f"172.31.{n}.1/24" for n in range(100, 255) if f" 172.31.{n}." not in taken)


class Daemon:
    """One daemon process whose log is a file; started, killed and started again with the same arguments."""

    def __init__(self, argv: Sequence[str], log: Path, env: dict[str, str], ready: Callable[[], object]) -> None:
        self.argv = list(argv)
        self.log = log
        self.env = env
        self.ready = ready
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it is ready; the log's end is shown when it is not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        process = self.process

        def ready_or_dead() -> object:
            assert process.poll() is None, f"{self.argv[0]} ended with {process.returncode}:\n{self.tail()}"
            return self.ready()

        try:
            await_true(ready_or_dead, f"{self.argv[0]} is not ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.argv[0]} does not stop:\n{self.tail()}") from None


class Engine:
    """containerd and dockerd with own directories, sockets and address range, and the docker CLI pointed at them.

    ``containerd`` is the program that serves below dockerd: ours, or a real one.
    """

    def __init__(self, directory: Path, token: str, containerd: str | None = None) -> None:
        self.directory = directory
        self.env = programs.environment(**{MARK: token})
        self.address = directory / "containerd.sock"
        self.socket = directory / "docker.sock"
        config = directory / "containerd.toml"
        config.write_text(
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' if containerd else "version = 2\n"
        )
        self.containerd = Daemon(
            [
                containerd or programs.ours("containerd"),
                "--config",
                str(config),
                "--root",
                str(directory / "containerd"),
            ]
            + ["--state", str(directory / "c"), "--address", str(self.address), "--log-level", "debug"],
            directory / "containerd.log",
            self.env,
            lambda: answers(self.address),
        )
        places = ["--data-root", str(directory / "docker"), "--exec-root", str(directory / "d")]
        places += ["--pidfile", str(directory / "docker.pid")]
        self.network_removal = [programs.ours("dockerd"), "remove-network", *places]
        self.dockerd = Daemon(
            [programs.ours("dockerd"), "-H", f"unix://{self.socket}", "--containerd", str(self.address)]
            + [*places, "--bip", free_network(), "--debug"],
            directory / "dockerd.log",
            self.env,
            lambda: answers(self.socket) and self.docker("version", check=False).returncode == 0,
        )

    def start(self) -> None:
        """Start both daemons."""
        self.containerd.start()
        self.dockerd.start()

    def command(self, *arguments: str) -> list[str]:
        """The docker CLI's argv for this engine."""
        return [programs.docker(), "--host", f"unix://{self.socket}", *arguments]

    def docker(
        self, *arguments: str, check: bool = True, timeout: float = 60, stdin: str | bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI; a failure shows its output and the daemons' logs."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.command(*arguments),
            input=data,
            stdin=None if data is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=self.env,
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and result.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments)} ended with {result.returncode}\n{result.stdout}{result.stderr}\n"
                f"--- dockerd\n{self.dockerd.tail()}\n--- containerd\n{self.containerd.tail()}"
            )
        return result

    def out(self, *arguments: str, **options: object) -> str:
        """Standard output of the docker CLI without the last newline."""
        return self.docker(*arguments, **options).stdout.rstrip("\n")  # type: ignore[arg-type]

    def popen(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """The docker CLI as a running process with pipes."""
        defaults: dict[str, object] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*arguments), env=self.env, **(defaults | options))  # type: ignore[call-overload, no-any-return]

    def remove_containers(self) -> None:
        """Remove every container, by force."""
        if ids := self.out("ps", "-aq").split():
            self.docker("rm", "-f", "-v", *ids)

    def close(self) -> None:
        """Remove containers, stop the daemons and the template, remove what outlives them by design."""
        if self.dockerd.process is not None and self.dockerd.process.poll() is None:
            self.remove_containers()
        for daemon in (self.dockerd, self.containerd):
            if daemon.process is not None:
                daemon.stop()
        for state in (self.directory / "c", self.directory / "d" / "containerd"):
            stop_template(state / "io.gantry.shim.template.v1" / "runc-v2.sock", self.env)
        subprocess.run(self.network_removal, env=self.env, check=True, capture_output=True)
        unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


class LoneEngine(Engine):
    """dockerd as the only command: it starts a containerd of its own."""

    def __init__(self, directory: Path, token: str) -> None:
        super().__init__(directory, token)
        at = self.dockerd.argv.index("--containerd")
        del self.dockerd.argv[at : at + 2]
        self.containerd.log.touch()

    def start(self) -> None:
        """Start dockerd."""
        self.dockerd.start()

    def containerd_pids(self) -> list[int]:
        """The containerd processes of this engine."""
        found = subprocess.run(
            ["pgrep", "-f", f"containerd .*--root {self.directory}"], capture_output=True, check=False
        )
        return [int(line) for line in found.stdout.split()]

    def close(self) -> None:
        """As for any engine; its containerd ends with it."""
        super().close()
        await_true(lambda: not self.containerd_pids(), "its containerd does not end")


class ExistingEngine(Engine):
    """An engine that runs already (a real one, to prove the tests): GANTRY_ENGINE=unix:///path/docker.sock."""

    def __init__(self, directory: Path, token: str, host: str) -> None:
        super().__init__(directory, token)
        self.socket = Path(host.removeprefix("unix://"))

    def start(self) -> None:
        """It runs."""
        self.containerd.log.touch()
        self.dockerd.log.touch()

    def close(self) -> None:
        """Remove containers, leave the engine."""
        self.remove_containers()


def stop_template(path: Path, env: dict[str, str]) -> None:
    """End the template process that listens on ``path``; it outlives containerd by design."""
    if path.exists():
        subprocess.run(
            [programs.ours("containerd-shim-runc-v2"), "-socket", str(path), "template-stop"], check=True, env=env
        )


def unmount_below(directory: Path) -> None:
    """Detach every mount below a directory, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for point in sorted((line.split()[4] for line in lines), reverse=True):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", point], check=False)


@contextlib.contextmanager
def engine(directory: Path, token: str, containerd: str | None = None) -> Iterator[Engine]:
    """A started engine, gone with everything it made at the end."""
    if existing := os.environ.get("GANTRY_ENGINE"):
        made: Engine = ExistingEngine(directory, token, existing)
    else:
        made = Engine(directory, token, containerd)
    try:
        made.start()
        yield made
    finally:
        made.close()


def busybox_tar() -> bytes:
    """The root file system of a small image, as a tar."""
    binary = Path(programs.busybox()).read_bytes()
    applets = subprocess.run([programs.busybox(), "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, kind: bytes = tarfile.DIRTYPE, mode: int = 0o755, data: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
            tar.addfile(member, io.BytesIO(data) if data else None)

        for name in ("bin", "dev", "etc", "home", "proc", "root", "sys", "var", "data"):
            add(name)
        add("tmp", mode=0o1777)
        add("bin/busybox", tarfile.REGTYPE, data=binary)
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
        passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"
        add("etc/passwd", tarfile.REGTYPE, 0o644, passwd)
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
        add("data/shipped", tarfile.REGTYPE, 0o644, b"from the image\n")
        add("etc/not-executable", tarfile.REGTYPE, 0o644, b"#!/bin/sh\n")
    return buffer.getvalue()


def tar_of(name: str, data: bytes) -> bytes:
    """A tar with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def import_busybox(made: Engine, name: str = "busybox") -> None:
    """Make the image that the tests run."""
    made.docker("import", "--change", 'CMD ["sh"]', "-", name, stdin=busybox_tar())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def running(pid: int) -> bool:
    """Is there such a process (and not merely a zombie)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def pid_of(path: Path) -> int:
    """The number in a pid file."""
    return int(path.read_text())


def is_root() -> bool:
    """Whether the tests may make containers."""
    return os.geteuid() == 0
