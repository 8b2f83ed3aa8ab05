"""config.json: read, and checked for what the later steps rely on (runtime-spec config.md, config-linux.md).

A wrong value is named by its path in the document; what this runtime does not do is refused by name, never ignored.
"""

from __future__ import annotations

import os

from runc import jsontext
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from gantry.oci.runtime import Process, Resources, Spec

CONFIG_FILE = "config.json"
MAX_SIZE = 16 << 20
NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

# What must hold of the shape, one line a type: paths in the document. `[]` is each item of a list, `*` each value of an
# object, `!` behind a path that must be there when what holds it is. What a path goes through is listed before it, so
# that a step may rely on the type of the one above.
_PROCESS_SHAPE: tuple[tuple[type, str], ...] = (
    (list, "args env rlimits"),
    (str, "args[] env[] cwd apparmorProfile selinuxLabel"),
    (dict, "user capabilities consoleSize rlimits[]"),
    (int, "user.uid user.gid user.umask oomScoreAdj consoleSize.height consoleSize.width"),
    (list, "user.additionalGids capabilities.*"),
    (int, "user.additionalGids[] rlimits[].hard! rlimits[].soft!"),
    (str, "capabilities.*[] rlimits[].type!"),
    (bool, "terminal noNewPrivileges"),
    (dict, "scheduler ioPriority execCPUAffinity"),
    (str, "scheduler.policy ioPriority.class execCPUAffinity.initial execCPUAffinity.final"),
    (int, "scheduler.nice scheduler.priority scheduler.runtime scheduler.deadline scheduler.period"),
    (int, "ioPriority.priority"),
    (list, "scheduler.flags"),
    (str, "scheduler.flags[]"),
)

_RESOURCES_SHAPE: tuple[tuple[type, str], ...] = (
    (dict, "memory cpu pids blockIO network rdma unified"),
    (list, "devices hugepageLimits network.priorities"),
    (dict, "devices[] hugepageLimits[] network.priorities[] rdma.*"),
    (bool, "devices[].allow!"),
    (str, "devices[].type devices[].access unified.* network.priorities[].name! hugepageLimits[].pageSize!"),
    (int, "devices[].major devices[].minor hugepageLimits[].limit! network.priorities[].priority! network.classID"),
    (int, "memory.limit memory.swap memory.reservation memory.kernel memory.kernelTCP memory.swappiness"),
    (int, "cpu.shares cpu.quota cpu.period cpu.burst cpu.realtimeRuntime cpu.realtimePeriod cpu.idle pids.limit"),
    (str, "cpu.cpus cpu.mems"),
    (int, "rdma.*.hcaHandles rdma.*.hcaObjects blockIO.weight blockIO.leafWeight"),
    (list, "blockIO.weightDevice blockIO.throttleReadBpsDevice blockIO.throttleWriteBpsDevice"),
    (list, "blockIO.throttleReadIOPSDevice blockIO.throttleWriteIOPSDevice"),
    (dict, "blockIO.weightDevice[] blockIO.throttleReadBpsDevice[] blockIO.throttleWriteBpsDevice[]"),
    (dict, "blockIO.throttleReadIOPSDevice[] blockIO.throttleWriteIOPSDevice[]"),
    (int, "blockIO.weightDevice[].major! blockIO.weightDevice[].minor!"),
    (int, "blockIO.weightDevice[].weight blockIO.weightDevice[].leafWeight"),
    *(
        (int, f"blockIO.{kind}[].major! blockIO.{kind}[].minor! blockIO.{kind}[].rate!")
        for kind in (
            "throttleReadBpsDevice",
            "throttleWriteBpsDevice",
            "throttleReadIOPSDevice",
            "throttleWriteIOPSDevice",
        )
    ),
)

_SHAPE: tuple[tuple[type, str], ...] = (
    (dict, "root process linux hooks annotations"),
    (list, "mounts hooks.*"),
    (dict, "mounts[] hooks.*[]"),
    (str, "root.path hostname domainname annotations.* mounts[].destination! mounts[].type mounts[].source"),
    (bool, "root.readonly"),
    (list, "mounts[].options mounts[].uidMappings mounts[].gidMappings hooks.*[].args hooks.*[].env"),
    (str, "mounts[].options[] hooks.*[].path! hooks.*[].args[] hooks.*[].env[]"),
    (int, "hooks.*[].timeout"),
    (dict, "mounts[].uidMappings[] mounts[].gidMappings[]"),
    (dict, "linux.resources linux.sysctl linux.seccomp linux.timeOffsets linux.personality"),
    (list, "linux.namespaces linux.uidMappings linux.gidMappings linux.devices linux.maskedPaths linux.readonlyPaths"),
    (dict, "linux.namespaces[] linux.uidMappings[] linux.gidMappings[] linux.devices[] linux.timeOffsets.*"),
    (str, "linux.namespaces[].type! linux.namespaces[].path linux.cgroupsPath linux.rootfsPropagation"),
    (str, "linux.maskedPaths[] linux.readonlyPaths[] linux.mountLabel linux.sysctl.* linux.personality.domain!"),
    (str, "linux.devices[].path! linux.devices[].type!"),
    (
        int,
        "linux.devices[].major linux.devices[].minor linux.devices[].fileMode linux.devices[].uid linux.devices[].gid",
    ),
    *(
        (int, f"{holder}[].containerID! {holder}[].hostID! {holder}[].size!")
        for holder in (
            "linux.uidMappings",
            "linux.gidMappings",
            "mounts[].uidMappings",
            "mounts[].gidMappings",
        )
    ),
    (int, "linux.timeOffsets.*.secs linux.timeOffsets.*.nanosecs"),
    (dict, "linux.memoryPolicy linux.netDevices linux.netDevices.* linux.intelRdt"),
    (str, "linux.netDevices.*.name linux.intelRdt.closID linux.intelRdt.l3CacheSchema linux.intelRdt.memBwSchema"),
    (list, "linux.memoryPolicy.flags"),
    (str, "linux.memoryPolicy.mode linux.memoryPolicy.nodes linux.memoryPolicy.flags[]"),
    (list, "linux.personality.flags linux.seccomp.syscalls linux.seccomp.architectures linux.seccomp.flags"),
    (
        str,
        "linux.seccomp.defaultAction! linux.seccomp.architectures[] linux.seccomp.flags[] linux.seccomp.listenerPath",
    ),
    (int, "linux.seccomp.defaultErrnoRet"),
    (dict, "linux.seccomp.syscalls[]"),
    (list, "linux.seccomp.syscalls[].names! linux.seccomp.syscalls[].args"),
    (str, "linux.seccomp.syscalls[].names[] linux.seccomp.syscalls[].action!"),
    (int, "linux.seccomp.syscalls[].errnoRet"),
    (dict, "linux.seccomp.syscalls[].args[]"),
    (int, "linux.seccomp.syscalls[].args[].index! linux.seccomp.syscalls[].args[].value!"),
    (int, "linux.seccomp.syscalls[].args[].valueTwo"),
    (str, "linux.seccomp.syscalls[].args[].op!"),
)

_NAMES = {str: "a string", int: "a number", dict: "an object", list: "a list", bool: "true or false"}


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
    if b"\\u0000" in text:
        raise RuntimeFailure(f"{path}: null bytes in texts can not be passed to the kernel")
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
    _check_shape(value, _SHAPE)
    if "root" not in value or not value["root"].get("path"):
        raise RuntimeFailure("root.path must be specified")
    if "linux" not in value:
        raise RuntimeFailure("linux must be specified: this runtime makes Linux containers only")
    validate_resources(value["linux"].get("resources", {}))
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
    _check_shape(process, _PROCESS_SHAPE, "process.")
    if not process.get("cwd"):
        raise RuntimeFailure("Cwd property must not be empty")
    if not process["cwd"].startswith("/"):
        raise RuntimeFailure("Cwd must be an absolute path")
    if not process.get("args"):
        raise RuntimeFailure("args must not be empty")
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


def _check_shape(value: dict[str, Any], shape: tuple[tuple[type, str], ...], where: str = "") -> None:
    """Raises RuntimeFailure naming the first place that is missing or of a wrong type."""
    for kind, paths in shape:
        for text in paths.split():
            path = text.removesuffix("!")
            above, _, last = path.rpartition(".")
            holders = _find(value, above) if above else [value]
            name = last.removesuffix("[]")
            if text is not path and any(name not in holder for holder in holders):
                raise RuntimeFailure(f"config.json: {where}{path}: must be given")
            for holder in holders:
                for item in _step(holder, last):
                    if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
                        shown = jsontext.dumps(item)[:80]
                        raise RuntimeFailure(f"config.json: {where}{path}: expected {_NAMES[kind]}, got {shown}")


def _find(value: dict[str, Any], path: str) -> list[Any]:
    found: list[Any] = [value]
    for step in path.split("."):
        found = [item for holder in found for item in _step(holder, step)]
    return found


def _step(holder: dict[str, Any], step: str) -> Iterable[Any]:
    name = step.removesuffix("[]")
    if name == "*":
        entries: Any = holder.values()
    elif name in holder:
        entries = (holder[name],)
    else:
        return ()
    return entries if name == step else [item for entry in entries for item in entry]


def validate_resources(value: Any) -> Resources:
    """Check the `linux.resources` of a configuration, or of `update`. Raises RuntimeFailure."""
    if not isinstance(value, dict):
        raise RuntimeFailure("resources: not a JSON object")
    drop_nulls(value)
    _check_shape(value, _RESOURCES_SHAPE, "linux.resources.")
    resources: Resources = value  # type: ignore[assignment]
    return resources


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
    for name in sysctls:
        key = name.replace("/", ".")
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
            if not hook["path"].startswith("/"):
                raise RuntimeFailure(f"{kind} hook #{index}: path must be an absolute path")
            timeout = hook.get("timeout")
            if timeout is not None and timeout <= 0:
                raise RuntimeFailure(f"{kind} hook #{index}: timeout must be greater than zero")


def _check_unsupported(spec: Spec) -> None:
    linux = spec["linux"]
    if "intelRdt" in linux:
        from runc import resctrl

        resctrl.check(linux["intelRdt"])
    if linux.get("mountLabel") and not os.path.exists("/sys/fs/selinux/enforce"):
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
