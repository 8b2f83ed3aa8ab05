"""config.json: read, and checked for what the later steps rely on (runtime-spec config.md, config-linux.md).

A wrong value is named by its path in the document; what this runtime does not do is refused by name, never ignored.
"""

from __future__ import annotations

import os

from runc import jsontext
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gantry.oci.runtime import Process, Spec

CONFIG_FILE = "config.json"
MAX_SIZE = 16 << 20
NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

# What must hold of the shape: path in the document, type. `[]` is each item of a list. What a path goes through is
# listed before it, so that a step may rely on the type of the one above.
_SHAPE: tuple[tuple[str, type], ...] = (
    ("root", dict),
    ("root.path", str),
    ("mounts", list),
    ("mounts[]", dict),
    ("mounts[].destination", str),
    ("mounts[].type", str),
    ("mounts[].source", str),
    ("mounts[].options", list),
    ("mounts[].options[]", str),
    ("hostname", str),
    ("domainname", str),
    ("annotations", dict),
    ("hooks", dict),
    ("process", dict),
    ("linux", dict),
    ("linux.namespaces", list),
    ("linux.namespaces[]", dict),
    ("linux.namespaces[].type", str),
    ("linux.namespaces[].path", str),
    ("linux.uidMappings", list),
    ("linux.uidMappings[]", dict),
    ("linux.gidMappings", list),
    ("linux.gidMappings[]", dict),
    ("linux.devices", list),
    ("linux.devices[]", dict),
    ("linux.devices[].path", str),
    ("linux.devices[].type", str),
    ("linux.resources", dict),
    ("linux.resources.devices", list),
    ("linux.resources.devices[]", dict),
    ("linux.resources.memory", dict),
    ("linux.resources.cpu", dict),
    ("linux.resources.pids", dict),
    ("linux.resources.blockIO", dict),
    ("linux.resources.hugepageLimits", list),
    ("linux.resources.unified", dict),
    ("linux.cgroupsPath", str),
    ("linux.sysctl", dict),
    ("linux.maskedPaths", list),
    ("linux.maskedPaths[]", str),
    ("linux.readonlyPaths", list),
    ("linux.readonlyPaths[]", str),
    ("linux.rootfsPropagation", str),
    ("linux.seccomp", dict),
    ("linux.seccomp.defaultAction", str),
    ("linux.seccomp.syscalls", list),
    ("linux.seccomp.syscalls[]", dict),
    ("linux.timeOffsets", dict),
    ("linux.personality", dict),
)

_PROCESS_SHAPE: tuple[tuple[str, type], ...] = (
    ("args", list),
    ("args[]", str),
    ("env", list),
    ("env[]", str),
    ("cwd", str),
    ("user", dict),
    ("user.uid", int),
    ("user.gid", int),
    ("user.umask", int),
    ("user.additionalGids", list),
    ("user.additionalGids[]", int),
    ("capabilities", dict),
    ("rlimits", list),
    ("rlimits[]", dict),
    ("rlimits[].type", str),
    ("rlimits[].hard", int),
    ("rlimits[].soft", int),
    ("oomScoreAdj", int),
    ("apparmorProfile", str),
    ("selinuxLabel", str),
    ("consoleSize", dict),
)


def load(bundle: str) -> Spec:
    """Read and check the bundle's config.json. Raises RuntimeFailure."""
    path = os.path.join(bundle, CONFIG_FILE)
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise RuntimeFailure(f"JSON specification file {path} not found") from None
    if len(text) > MAX_SIZE:
        raise RuntimeFailure(f"{path}: more than {MAX_SIZE} bytes")
    try:
        value = jsontext.loads(text)
    except ValueError as error:
        raise RuntimeFailure(f"{path}: not valid JSON: {error}") from None
    return validate(value)


def validate(value: Any) -> Spec:
    """Check a configuration's shape and what must go together. Raises RuntimeFailure naming the field."""
    if not isinstance(value, dict):
        raise RuntimeFailure("config.json: not a JSON object")
    drop_nulls(value)
    for path, kind in _SHAPE:
        _check(value, path, kind)
    if "root" not in value or not value["root"].get("path"):
        raise RuntimeFailure("root.path must be specified")
    if "linux" not in value:
        raise RuntimeFailure("linux must be specified: this runtime makes Linux containers only")
    process = value.get("process")
    if process is None:
        raise RuntimeFailure("process property must not be empty")
    validate_process(process)
    spec: Spec = value  # type: ignore[assignment]
    _check_version(spec)
    _check_namespaces(spec)
    _check_hooks(spec)
    _check_unsupported(spec)
    return spec


def validate_process(process: Any) -> Process:
    """Check the `process` of a configuration, or of `exec --process`. Raises RuntimeFailure."""
    if not isinstance(process, dict):
        raise RuntimeFailure("process: not a JSON object")
    drop_nulls(process)
    for path, kind in _PROCESS_SHAPE:
        _check(process, path, kind, "process.")
    if not process.get("cwd"):
        raise RuntimeFailure("Cwd property must not be empty")
    if not process["cwd"].startswith("/"):
        raise RuntimeFailure("Cwd must be an absolute path")
    if not process.get("args"):
        raise RuntimeFailure("args must not be empty")
    for key in ("scheduler", "ioPriority", "execCPUAffinity"):
        if key in process:
            raise RuntimeFailure(f"process.{key} is not supported")
    for text in [*process["args"], *process.get("env", [])]:
        if "\0" in text:
            raise RuntimeFailure("process.args and process.env must not contain null bytes")
    checked: Process = process  # type: ignore[assignment]
    return checked


def drop_nulls(value: dict[str, Any]) -> None:
    """Take `"key": null` for a missing key, as Go does."""
    for key in [key for key, item in value.items() if item is None]:
        del value[key]
    for item in value.values():
        if isinstance(item, dict):
            drop_nulls(item)
        elif isinstance(item, list):
            for entry in item:
                if isinstance(entry, dict):
                    drop_nulls(entry)


_NAMES = {str: "a string", int: "a number", dict: "an object", list: "a list"}


def _check(value: dict[str, Any], path: str, kind: type, where: str = "") -> None:
    items: list[Any] = [value]
    for step in path.split("."):
        name = step.removesuffix("[]")
        items = [item[name] for item in items if name in item]
        if not items:
            return
        if name is not step:
            items = [entry for item in items for entry in item]
    for item in items:
        if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
            shown = jsontext.dumps(item)[:80]
            raise RuntimeFailure(f"config.json: {where}{path}: expected {_NAMES[kind]}, got {shown}")


def _check_version(spec: Spec) -> None:
    version = spec.get("ociVersion", "")
    if not isinstance(version, str) or not version.startswith("1."):
        raise RuntimeFailure(f'ociVersion "{version}" is not supported: this runtime reads 1.x')


def _check_namespaces(spec: Spec) -> None:
    linux = spec["linux"]
    kinds: dict[str, str] = {}
    for namespace in linux.get("namespaces", []):
        kind, path = namespace.get("type", ""), namespace.get("path", "")
        if kind not in NAMESPACE_TYPES:
            raise RuntimeFailure(f'namespace "{kind}" does not exist')
        if kind in kinds:
            raise RuntimeFailure(f'malformed spec file: duplicated ns "{kind}"')
        if path and not path.startswith("/"):
            raise RuntimeFailure(f"namespace path {path} is not absolute")
        kinds[kind] = path
    if "mount" not in kinds:
        raise RuntimeFailure("a container without a mount namespace is not supported")
    for key in ("hostname", "domainname"):
        if spec.get(key) and "uts" not in kinds:
            raise RuntimeFailure(f"unable to set {key} without a private UTS namespace")
    if "user" in kinds and not kinds["user"] and not linux.get("uidMappings"):
        raise RuntimeFailure("user namespaces enabled, but no uid mappings found")
    if "user" in kinds and not kinds["user"] and not linux.get("gidMappings"):
        raise RuntimeFailure("user namespaces enabled, but no gid mappings found")
    if "user" not in kinds and (linux.get("uidMappings") or linux.get("gidMappings")):
        raise RuntimeFailure("user namespace mappings specified, but user namespace isn't enabled in the config")
    for mapping in [*linux.get("uidMappings", []), *linux.get("gidMappings", [])]:
        for field in ("containerID", "hostID", "size"):
            if not isinstance(mapping.get(field), int):
                raise RuntimeFailure(f"config.json: linux.uidMappings, gidMappings: {field} must be a number")
    if linux.get("timeOffsets") and ("time" not in kinds or kinds["time"]):
        raise RuntimeFailure("time namespace offsets specified, but time namespace isn't enabled in the config")
    _check_sysctls(linux.get("sysctl", {}), kinds, spec.get("hostname", ""))


_IPC_SYSCTLS = frozenset(
    (
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    )
)


def _check_sysctls(sysctls: dict[str, str], kinds: dict[str, str], hostname: str) -> None:
    """Only what a namespace of the container's own holds may be changed: the rest is the machine's."""
    for name, value in sysctls.items():
        key = name.replace("/", ".")
        if not isinstance(value, str):
            raise RuntimeFailure(f"config.json: linux.sysctl.{name}: expected a string")
        if ".." in key or key.startswith("."):
            raise RuntimeFailure(f"sysctl {name!r} is no name of a kernel parameter")
        if key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
            if "ipc" not in kinds:
                raise RuntimeFailure(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
        elif key.startswith("net."):
            if "network" not in kinds or (kinds["network"] and _is_own_network(kinds["network"])):
                raise RuntimeFailure(f'sysctl "{key}" not allowed in host network namespace')
        elif key == "kernel.domainname":
            if "uts" not in kinds:
                raise RuntimeFailure(f'sysctl "{key}" is not allowed in the hosts UTS namespace')
        elif key == "kernel.hostname":
            if "uts" not in kinds:
                raise RuntimeFailure(f'sysctl "{key}" is not allowed in the hosts UTS namespace')
            if hostname:
                raise RuntimeFailure(f'sysctl "{key}" conflicts with the OCI "hostname" field')
        elif not (key.startswith("user.") and "user" in kinds):
            raise RuntimeFailure(f'sysctl "{key}" is not in a separate kernel namespace')


def _is_own_network(path: str) -> bool:
    try:
        there, here = os.stat(path), os.stat("/proc/self/ns/net")
    except OSError:
        return False  # joining it will tell
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _check_hooks(spec: Spec) -> None:
    hooks: Any = spec.get("hooks", {})
    for kind in HOOK_KINDS:
        for index, hook in enumerate(hooks.get(kind) or []):
            path = hook.get("path") if isinstance(hook, dict) else None
            if not isinstance(path, str) or not path.startswith("/"):
                raise RuntimeFailure(f"{kind} hook #{index}: path must be an absolute path")
            timeout = hook.get("timeout")
            if timeout is not None and (not isinstance(timeout, int) or timeout <= 0):
                raise RuntimeFailure(f"{kind} hook #{index}: timeout must be greater than zero")


def _check_unsupported(spec: Spec) -> None:
    linux = spec["linux"]
    for key in ("intelRdt", "netDevices"):
        if linux.get(key):
            raise RuntimeFailure(f"linux.{key} is not supported")
    if linux.get("mountLabel"):
        raise RuntimeFailure("linux.mountLabel needs SELinux, which is not enabled")
    for index, mount in enumerate(spec.get("mounts", [])):
        if not mount.get("destination"):
            raise RuntimeFailure(f"config.json: mounts[{index}].destination must not be empty")


def rootfs_path(spec: Spec, bundle: str) -> str:
    """The absolute path of the root file system. Raises RuntimeFailure when it is no directory or `/`."""
    path = spec["root"]["path"]
    if not os.path.isabs(path):
        path = os.path.join(bundle, path)
    try:
        mode = os.stat(path)
    except OSError as error:
        raise RuntimeFailure(f"invalid rootfs: stat {path}: {os.strerror(error.errno or 0).lower()}") from None
    import stat

    if not stat.S_ISDIR(mode.st_mode):
        raise RuntimeFailure(f"invalid rootfs: {path} is not a directory")
    real = os.path.realpath(path)
    if real == "/":
        raise RuntimeFailure("invalid rootfs: the host's root directory can not be a container's")
    return real
