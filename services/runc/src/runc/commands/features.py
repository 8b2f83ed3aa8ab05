"""`runc features`: what this runtime can do, as JSON (runtime-spec features.md)."""

from __future__ import annotations

from gantry.linux import capabilities, mount
from runc import SPEC_VERSION, __version__, cli, jsontext, namespaces, scheduling, seccomp, spec
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "[arguments...]"
DESCRIPTION = "Shows the enabled features as JSON."
FLAGS: tuple[Flag, ...] = ()


def document() -> dict[str, object]:
    """The features structure."""
    last = capabilities.last_capability()
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(spec.HOOK_KINDS),
        "mountOptions": sorted(
            [*mount.FLAG_OPTIONS, *mount.PROPAGATION_OPTIONS, *mount.RECURSIVE_OPTIONS, *mount.EXTENSION_OPTIONS]
        ),
        "linux": {
            "namespaces": sorted(namespaces.NAMES),
            "capabilities": list(capabilities.NAMES[: last + 1]),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.supported_flags()),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(scheduling.MEMORY_MODES), "flags": sorted(scheduling.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {
            "org.opencontainers.runc.checkpoint.enabled": "false",
            "org.opencontainers.runc.version": __version__,
        },
    }


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    cli.expect_arguments("features", arguments, 0)
    cli.out(jsontext.dumps(document(), 4) + "\n")
    return 0
