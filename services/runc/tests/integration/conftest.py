"""A bundle over busybox, and a runtime to try it with: ours, or any that RUNTIME names (to prove the tests)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BUSYBOX = shutil.which("busybox") or ""
APPLETS = (
    *("cat", "chmod", "cut", "echo", "env", "false", "grep", "head", "hostname", "id", "kill", "ln", "ls", "mkdir"),
    *("mknod", "mount", "ps", "pwd", "readlink", "rm", "sed", "sh", "sleep", "stat", "stty", "test", "touch", "tr"),
    *("true", "tty", "umount", "wc"),
)
CGROUPS = Path("/sys/fs/cgroup")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and busybox."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0 or not BUSYBOX:
                item.add_marker(pytest.mark.skip(reason="needs root and busybox"))


class Bundle:
    """A bundle directory whose configuration can be changed before it is used."""

    def __init__(self, path: Path, runtime: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp", "root"):
            (self.rootfs / directory).mkdir(parents=True)
        shutil.copy2(BUSYBOX, self.rootfs / "bin/busybox")
        for applet in APPLETS:
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        subprocess.run([runtime, "spec"], cwd=path, check=True)
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["process"]["env"] = ["PATH=/bin"]
        self.config["process"]["rlimits"] = []
        self.config["root"]["readonly"] = False

    @property
    def process(self) -> dict[str, Any]:
        """config.json's process."""
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        """config.json's linux."""
        linux: dict[str, Any] = self.config["linux"]
        return linux

    def capabilities(self, *names: str, ambient: bool = False) -> None:
        """Give the process exactly these capabilities."""
        self.process["capabilities"] = {
            kind: list(names) for kind in ("bounding", "effective", "permitted", "inheritable")
        }
        if ambient:
            self.process["capabilities"]["ambient"] = list(names)

    def namespace(self, kind: str, path: str = "") -> None:
        """Put the container into a namespace of this kind, a new one or the one at the path."""
        self.linux["namespaces"] = [n for n in self.linux["namespaces"] if n["type"] != kind]
        self.linux["namespaces"].append({"type": kind, **({"path": path} if path else {})})

    def mount(self, destination: str, kind: str, source: str, *options: str) -> None:
        """Add a mount."""
        self.config["mounts"].append(
            {"destination": destination, "type": kind, "source": source, "options": list(options)}
        )

    def write(self, *args: str) -> None:
        """Write config.json, with these arguments of the process."""
        if args:
            self.process["args"] = list(args)
        (self.path / "config.json").write_text(json.dumps(self.config))


class Groups:
    """Control groups as this machine has them: v1 (or hybrid), or `unified`, v2 alone."""

    def __init__(self) -> None:
        self.unified = (CGROUPS / "cgroup.controllers").exists()

    def controllers(self) -> list[str]:
        """The controllers that can limit something here."""
        if self.unified:
            return (CGROUPS / "cgroup.controllers").read_text().split()
        return [path.name for path in CGROUPS.iterdir()]

    def files(self, *pairs: tuple[str, str]) -> list[str]:
        """Paths inside a container, each given as a v1 controller's file and v2's."""
        return [str(CGROUPS / (v2 if self.unified else v1)) for v1, v2 in pairs]

    def of(self, text: str) -> str:
        """The group in a /proc/PID/cgroup: the pids controller's on v1."""
        mark = "0::" if self.unified else ":pids:"
        return next(line.partition(mark)[2] for line in text.splitlines() if mark in line)

    def directory(self, group: str) -> Path:
        """Where a group is on the machine: in the pids hierarchy on v1."""
        return CGROUPS / ("" if self.unified else "pids") / group.lstrip("/")


@pytest.fixture
def groups() -> Groups:
    """Control groups of this machine."""
    return Groups()


class Runtime:
    """A runtime with a root directory of its own."""

    def __init__(self, program: str, root: Path, bundle: Bundle) -> None:
        self.program = program
        self.root = root
        self.bundle = bundle
        self.id = f"gantry-test-{uuid.uuid4().hex[:12]}"
        self.ours = program == our_runtime()

    def argv(self, *args: str) -> list[str]:
        """The command line of a call."""
        return [self.program, "--root", str(self.root), *args]

    def call(self, *args: str, check: bool = False, **rest: Any) -> subprocess.CompletedProcess[str]:
        """Call the runtime, and give what came of it."""
        rest.setdefault("stdin", subprocess.DEVNULL)
        rest.setdefault("stdout", subprocess.PIPE)
        rest.setdefault("stderr", subprocess.PIPE)
        done = subprocess.run(self.argv(*args), cwd=self.bundle.path, text=True, timeout=60, check=False, **rest)
        assert not check or done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done

    def run(self, *args: str, flags: tuple[str, ...] = (), **rest: Any) -> subprocess.CompletedProcess[str]:
        """`run` in the foreground, with these arguments of the process."""
        self.bundle.write(*args)
        return self.call("run", *flags, self.id, **rest)

    def output(self, *args: str, flags: tuple[str, ...] = ()) -> str:
        """`run`, which must succeed; what the process wrote."""
        done = self.run(*args, flags=flags)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def detached(self, *args: str, flags: tuple[str, ...] = ()) -> None:
        """`run --detach`, which must succeed. The container gets /dev/null for its streams."""
        self.bundle.write(*args)
        done = self.call("run", "-d", *flags, self.id, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert done.returncode == 0

    def create(self, *args: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`create`; the container gets /dev/null for its streams, what is said goes to a log file."""
        self.bundle.write(*args)
        log = self.root.parent / "create.log"
        log.unlink(missing_ok=True)
        done = self.call(
            "--log",
            str(log),
            "create",
            *flags,
            self.id,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, "", log.read_text() if log.exists() else "")

    def exec(self, *args: str, flags: tuple[str, ...] = (), **rest: Any) -> subprocess.CompletedProcess[str]:
        """`exec` in the foreground."""
        return self.call("exec", *flags, self.id, *args, **rest)

    def state(self) -> dict[str, Any]:
        """What `state` prints."""
        value: dict[str, Any] = json.loads(self.call("state", self.id, check=True).stdout)
        return value

    def wait_stopped(self) -> None:
        """Wait for the end of the first process, which is a child of whoever adopted it."""
        pid = self.state()["pid"]
        if not pid:
            return
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            import select

            assert select.select([fd], [], [], 30)[0], "the process did not end"
        finally:
            os.close(fd)

    def delete(self) -> None:
        """`delete --force`."""
        self.call("delete", "--force", self.id, check=True)

    def reap(self) -> None:
        """Wait for what was left to us as the subreaper and has ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            pass  # there is nobody

    def left_behind(self) -> list[str]:
        """Traces of the container."""
        self.reap()
        return left_behind(self)


def our_runtime() -> str:
    """The runtime installed beside this interpreter."""
    return str(Path(sys.executable).parent / "runc")


def left_behind(runtime: Runtime) -> list[str]:
    """Traces of the container: cgroups, mounts, kept state, processes with the bundle in their view."""
    found = [f"{top}/{runtime.id}" for top, directories, _ in os.walk(CGROUPS) if runtime.id in directories]
    found += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(runtime.bundle.path) in line
    ]
    found += [str(path) for path in runtime.root.glob("*")] if runtime.root.exists() else []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if runtime.id in (directory / "cgroup").read_text():
                    found.append(f"process {directory.name}")
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A fresh bundle."""
    return Bundle(tmp_path / "bundle", os.environ.get("RUNTIME") or our_runtime())


@pytest.fixture
def runtime(tmp_path: Path, bundle: Bundle) -> Iterator[Runtime]:
    """The runtime over the bundle; afterwards nothing of the container may be left anywhere."""
    # Containers that outlive a call have us as their parent: so that they can be waited for.
    from gantry.linux import process

    process.set_child_subreaper()
    made = Runtime(os.environ.get("RUNTIME") or our_runtime(), tmp_path / "root", bundle)
    yield made
    subprocess.run(made.argv("delete", "--force", made.id), capture_output=True, timeout=60, check=False)
    # Killed processes take a moment to vanish; nobody tells of those that are not our children.
    deadline = time.monotonic() + 10
    while made.left_behind() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.left_behind() == []


@pytest.fixture
def ours_only(runtime: Runtime) -> None:
    """For what other runtimes do otherwise, or not at all."""
    if not runtime.ours:
        pytest.skip("about this runtime only")


@pytest.fixture
def hook(tmp_path: Path) -> Callable[[str, str], dict[str, Any]]:
    """Make a hook from a shell script; its `$OUT` is the file of this name."""

    def make(name: str, script: str) -> dict[str, Any]:
        out = tmp_path / f"{name}.out"
        return {"path": "/bin/sh", "args": ["sh", "-c", f"OUT={out}; {script}"], "env": ["PATH=/bin:/usr/bin"]}

    return make
