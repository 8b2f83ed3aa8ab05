"""What is kept of a container between calls: ROOT/ID/state.json and spec.json, and what the kernel says about it.

state.json is written by rename, first before any process or cgroup of the container exists: whatever dies at whatever
moment, `delete --force` finds what is to be removed. spec.json is the configuration that the container was made with.
"""

from __future__ import annotations

import errno
import os
import time

from runc import jsontext
from runc.errors import ContainerNotFound, RuntimeFailure, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Spec

STATE_FILE = "state.json"
SPEC_FILE = "spec.json"
FIFO_FILE = "exec.fifo"
ID_LENGTH_MAX = 1024
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(container_id: str) -> None:
    """Raises RuntimeFailure for a text that can not name a container: it becomes the name of a directory."""
    if not container_id:
        raise RuntimeFailure("container id cannot be empty")
    if container_id in (".", "..") or not _ID_CHARACTERS.issuperset(container_id) or len(container_id) > ID_LENGTH_MAX:
        raise RuntimeFailure("invalid container ID format")


class Container:
    """A container under a root directory, as its state file has it."""

    __slots__ = (
        "_spec",
        "bundle",
        "cgroup_paths",
        "cgroup_unified",
        "created",
        "creating",
        "directory",
        "id",
        "namespaces",
        "new_keyring",
        "oci_version",
        "owner",
        "pid",
        "pid_start",
        "rootfs",
        "systemd_unit",
    )

    def __init__(self, root: str, container_id: str) -> None:
        self.id = container_id
        self.directory = os.path.join(root, container_id)
        self.oci_version = ""
        self.bundle = ""
        self.rootfs = ""
        self.created = ""
        self.owner = os.geteuid()
        self.pid = 0
        self.pid_start = 0
        self.creating = True
        self.cgroup_paths: dict[str, str] = {}
        self.cgroup_unified = ""
        self.systemd_unit = ""
        self.namespaces: list[str] = []
        self.new_keyring = True
        self._spec: Spec | None = None

    @property
    def fifo(self) -> str:
        """The FIFO on which a created container waits for `start`."""
        return os.path.join(self.directory, FIFO_FILE)

    @property
    def spec(self) -> Spec:
        """The configuration that the container was made with."""
        if self._spec is None:
            self._spec = jsontext.loads(_read(os.path.join(self.directory, SPEC_FILE)))
        return self._spec

    def save_spec(self, spec: Spec) -> None:
        """Keep the configuration."""
        self._spec = spec
        _replace(os.path.join(self.directory, SPEC_FILE), jsontext.dumps(spec))

    def save(self) -> None:
        """Write state.json by rename."""
        _replace(
            os.path.join(self.directory, STATE_FILE),
            jsontext.dumps(
                {
                    "id": self.id,
                    "ociVersion": self.oci_version,
                    "bundle": self.bundle,
                    "rootfs": self.rootfs,
                    "created": self.created,
                    "owner": self.owner,
                    "creating": self.creating,
                    "init_process_pid": self.pid,
                    "init_process_start": self.pid_start,
                    "cgroup_paths": self.cgroup_paths,
                    "cgroup_unified": self.cgroup_unified,
                    "systemd_unit": self.systemd_unit,
                    "namespaces": self.namespaces,
                    "new_keyring": self.new_keyring,
                }
            ),
        )

    def set_process(self, pid: int) -> None:
        """Note the container's first process, with its start time so that the number can not be mistaken."""
        self.pid = pid
        self.pid_start = start_time(pid)

    @property
    def is_running(self) -> bool:
        """Is the first process there, and not a zombie?"""
        return self.pid > 0 and start_time(self.pid) == self.pid_start

    @property
    def status(self) -> str:
        """creating, created, running, paused or stopped (runtime.md "State")."""
        if not self.is_running:
            return "stopped"
        if self.creating:
            return "creating"
        if os.path.lexists(self.fifo):
            return "created"
        from runc.cgroups import control

        return "paused" if control.is_frozen(self) else "running"

    def require_running(self, message: str) -> None:
        """Raises RuntimeFailure with the message unless the first process is there."""
        if not self.is_running:
            raise RuntimeFailure(message)

    def remove_directory(self) -> None:
        """Remove what is kept of the container."""
        remove_directory(self.directory)


def oci_state(container: Container, status: str | None = None) -> dict[str, object]:
    """The state as hooks get it (runtime.md "State")."""
    status = status or container.status
    value: dict[str, object] = {"ociVersion": container.oci_version, "id": container.id, "status": status}
    if status not in ("stopped", "creating") or (status == "creating" and container.pid):
        value["pid"] = container.pid
    value["bundle"] = container.bundle
    annotations = container.spec.get("annotations")
    if annotations:
        value["annotations"] = annotations
    return value


def create(root: str, container_id: str) -> Container:
    """Make the directory of a new container. Raises RuntimeFailure when the id is taken or can not be one."""
    check_id(container_id)
    container = Container(root, container_id)
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        os.mkdir(container.directory, 0o711)
    except FileExistsError:
        raise RuntimeFailure("container with given ID already exists") from None
    container.created = _now()
    return container


def load(root: str, container_id: str) -> Container:
    """The container of this id. Raises ContainerNotFound."""
    check_id(container_id)
    container = Container(root, container_id)
    try:
        value = jsontext.loads(_read(os.path.join(container.directory, STATE_FILE)))
    except FileNotFoundError:
        raise ContainerNotFound from None
    except ValueError as error:
        raise RuntimeFailure(f"{container.directory}/{STATE_FILE}: {error}") from None
    container.oci_version = value["ociVersion"]
    container.bundle = value["bundle"]
    container.rootfs = value["rootfs"]
    container.created = value["created"]
    container.owner = value["owner"]
    container.creating = value["creating"]
    container.pid = value["init_process_pid"]
    container.pid_start = value["init_process_start"]
    container.cgroup_paths = value["cgroup_paths"]
    container.cgroup_unified = value["cgroup_unified"]
    container.systemd_unit = value.get("systemd_unit", "")  # absent before there was a driver for it
    container.namespaces = value["namespaces"]
    container.new_keyring = value["new_keyring"]
    return container


def load_all(root: str) -> list[Container]:
    """Every container under the root, by id; those that vanish meanwhile are left out."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(load(root, name))
        except RuntimeFailure:
            continue  # no container's directory, or one that is being made or removed
    return found


def remove_directory(directory: str) -> None:
    """Remove a container's directory and the files in it; nothing there is fine."""
    try:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), stat field 22); 0 for none, or a zombie."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return 0
        raise
    fields = text[text.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09}".rstrip("0").rstrip(".") + "Z"


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def _replace(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    data = text.encode("utf-8", "surrogateescape")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise RuntimeFailure(f"saving {path}: {describe(error)}") from None
