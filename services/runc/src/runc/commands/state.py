"""`runc state`: print the state of a container as JSON."""

from __future__ import annotations

from runc import cli, jsontext, state
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context
    from runc.state import Container

ARGUMENTS = "<container-id>"
DESCRIPTION = "Prints the current state of a container."
FLAGS: tuple[Flag, ...] = ()


def described(container: Container, owner: str = "") -> dict[str, object]:
    """The keys in the order that callers know."""
    status = container.status
    value: dict[str, object] = {
        "ociVersion": container.oci_version,
        "id": container.id,
        "pid": 0 if status == "stopped" else container.pid,
        "status": status,
        "bundle": container.bundle,
        "rootfs": container.rootfs,
        "created": container.created,
    }
    annotations = container.spec.get("annotations")
    if annotations:
        value["annotations"] = annotations
    value["owner"] = owner
    return value


def run(context: Context, options: Options, arguments: list[str]) -> int:  # noqa: ARG001
    """Do it."""
    cli.expect_arguments("state", arguments, 1)
    cli.out(jsontext.dumps(described(state.load(context.root, arguments[0])), 2))
    return 0
