"""Containers of ordinary users: what is different without root's rights (user_namespaces(7)).

The container is in a user namespace of the user's own. Its first process has all rights in there, and makes the mounts
itself; the runtime has none over the host. Control groups are used where the user may, and done without elsewhere,
unless the configuration asks for something of them.
"""

from __future__ import annotations

import os

from runc.cgroups import control, hierarchy
from runc.cgroups.hierarchy import V2, Paths
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import IdMapping, Process, Spec
    from runc.state import Container

_ALL_IDS = 0xFFFFFFFF


def in_user_namespace() -> bool:
    """Is the caller in another user namespace than the machine's first?"""
    try:
        with open("/proc/self/uid_map", "rb", buffering=0) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return False  # a kernel without user namespaces
    return [list(map(int, line.split())) for line in lines if line.strip()] != [[0, 0, _ALL_IDS]]


def ignores_cgroup_errors(choice: str) -> bool:
    """Are control groups optional: as --rootless says, else for all but root of the machine."""
    if choice != "auto":
        return choice == "true"
    return os.geteuid() != 0 or in_user_namespace()


def default_root() -> str:
    """Where a user's containers are kept: below XDG_RUNTIME_DIR, empty where that is not to be used.

    The sticky bit keeps the directory from being cleaned up as old (XDG Base Directory Specification).
    """
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if not directory:
        return ""
    if os.geteuid() == 0 and (not in_user_namespace() or os.environ.get("USER") == "root"):
        return ""
    root = os.path.join(directory, "runc")
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        os.chmod(root, 0o1700)
    except OSError as error:
        raise RuntimeFailure(
            f"the path in $XDG_RUNTIME_DIR must be writable by the user: mkdir {root}: {os.strerror(error.errno or 0)}"
        ) from error
    return root


def check(spec: Spec) -> None:
    """Raises RuntimeFailure for a configuration that an ordinary user can not have."""
    linux = spec["linux"]
    users = [namespace for namespace in linux.get("namespaces", []) if namespace["type"] == "user"]
    if not users:
        raise RuntimeFailure("rootless container requires user namespaces")
    if not users[0].get("path"):
        for key, mappings in (("uid", linux.get("uidMappings", [])), ("gid", linux.get("gidMappings", []))):
            for mount in spec.get("mounts", []):
                for option in mount.get("options", []):
                    _check_mount_option(option, key, mappings)
    for mount in spec.get("mounts", []):
        if mount.get("uidMappings") or {"idmap", "ridmap"}.intersection(mount.get("options", [])):
            raise RuntimeFailure("id-mapped mounts are not supported for rootless containers")
    check_groups(spec["process"])


def check_groups(process: Process) -> None:
    """Raises RuntimeFailure for groups that a user can not give to a process."""
    if process.get("user", {}).get("additionalGids"):
        raise RuntimeFailure("cannot set any additional groups in a rootless container")


def _check_mount_option(option: str, key: str, mappings: list[IdMapping]) -> None:
    name, _, text = option.partition("=")
    if name != key or not text.isdigit():
        return
    if not any(each["containerID"] <= int(text) < each["containerID"] + each["size"] for each in mappings):
        raise RuntimeFailure(f"cannot specify {option} mount option for rootless container: no such id is mapped")


# Id maps


def needs_tool(mappings: list[IdMapping], own: int) -> bool:
    """Must a privileged program write the map? A user may map the own id alone."""
    return len(mappings) != 1 or mappings[0]["size"] != 1 or mappings[0]["hostID"] != own


def tool_arguments(tool: str, pid: int, mappings: list[IdMapping]) -> list[str]:
    """The command line of newuidmap(1) or newgidmap(1)."""
    words = [tool, str(pid)]
    for each in mappings:
        words += [str(each["containerID"]), str(each["hostID"]), str(each["size"])]
    return words


def write_maps(pid: int, uid_mappings: list[IdMapping], gid_mappings: list[IdMapping]) -> None:
    """Give the user namespace of the process its mappings. Raises RuntimeFailure.

    Who maps the own group alone must give up setgroups(2) before, by which a group that denies access could be dropped.
    """
    for tool, file, mappings, own in (
        ("newgidmap", "gid_map", gid_mappings, os.getegid()),
        ("newuidmap", "uid_map", uid_mappings, os.geteuid()),
    ):
        if needs_tool(mappings, own):
            _run_tool(tool, tool_arguments(tool, pid, mappings))
            continue
        if file == "gid_map":
            _write(f"/proc/{pid}/setgroups", "deny")
        each = mappings[0]
        _write(f"/proc/{pid}/{file}", f"{each['containerID']} {each['hostID']} {each['size']}\n")


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"failed to write {path}: {os.strerror(error.errno or 0).lower()}") from error


def _run_tool(tool: str, words: list[str]) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(tool, words, dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)])
    except FileNotFoundError:
        os.close(reader)
        raise RuntimeFailure(f"{tool} is not installed: only the own id can be mapped without it") from None
    finally:
        os.close(writer)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
    os.close(reader)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeFailure(f"failed to use {tool}: {said.decode('utf-8', 'surrogateescape').strip()}")


# Control groups


def create_groups(paths: Paths, spec: Spec) -> Paths:
    """Make those of the groups that the user may make. Raises RuntimeFailure when none can be, and one is named."""
    made: dict[str, str] = {}
    tried: dict[str, bool] = {}
    for name, directory in paths.controllers.items():
        if directory not in tried:
            tried[directory] = _can_be_made(Paths(paths.mode, {name: directory}, ""))
        if tried[directory]:
            made[name] = directory
    unified = paths.unified if paths.unified and _can_be_made(Paths(paths.mode, {}, paths.unified)) else ""
    if not made and not unified:
        if spec["linux"].get("cgroupsPath"):
            why = (
                "rootless needs no limits + no cgrouppath when no permission is granted for cgroups"
                if paths.mode == V2
                else "unable to apply cgroup configuration"
            )
            raise RuntimeFailure(f"{why}: mkdir {paths.directories[0]}: permission denied")
        return Paths(V2, {}, "")
    return Paths(paths.mode, made, unified)


def _can_be_made(paths: Paths) -> bool:
    try:
        control.create(paths)
        control.joining(paths).close()
    except RuntimeFailure:
        try:
            control.remove(paths)  # a group that was made and can not be joined is of no use
        except RuntimeFailure:
            return False
        return False
    return True


def own_groups() -> Paths:
    """The caller's own groups: a container without groups of its own stays, and is seen, in these."""
    found = hierarchy.discover()
    controllers = {name: os.path.join(mount, own.lstrip("/")) for name, (mount, own) in found.controllers.items()}
    unified = os.path.join(found.unified[0], found.unified[1].lstrip("/")) if found.unified else ""
    return Paths(found.mode, controllers, unified)


def processes(container: Container) -> list[int]:
    """The processes of a container without groups: those in its pid namespace. Raises RuntimeFailure when it has none.

    Of a namespace below that one they are not: only root of the container could tell whose it is.
    """
    if "pid" not in container.namespaces:
        raise RuntimeFailure("the container has neither a cgroup nor a pid namespace: its processes can not be told")
    if not container.is_running:
        return []
    wanted = _pid_namespace(container.pid)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and wanted and _pid_namespace(name) == wanted]


def _pid_namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""  # it has ended, or is of another user
