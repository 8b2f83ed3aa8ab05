"""Starting a container: its network, its specification, its task. What fails is undone whole."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from google.protobuf import any_pb2

from dockerd import errors
from dockerd.containers import devices, health, host, spec, timestamps, users, validation
from dockerd.containers.model import Container, Status
from dockerd.containers.parts import OWNER_LABEL, RUNTIME, Parts
from dockerd.containers.registry import Handle
from dockerd.containers.rootfs import open_rootfs, read_file
from dockerd.containers.shm import SharedMemory
from dockerd.containers.users import Identity
from dockerd.dns import ADDRESS as DNS_ADDRESS
from dockerd.networks import hostname_file, hosts_file, resolv_conf, resolv_conf_of_host
from gantry.contracts.containerd.runc.v1 import oci_pb2
from gantry.contracts.containerd.services.containers.v1 import containers_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2

if TYPE_CHECKING:
    from dockerd.config import Config
    from dockerd.networks import Attachment
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Starting", "exit_code_of_failure", "identity_of", "resolver_file"]

_log = logging.getLogger(__name__)

# 128: the engine could not start it, for no reason that lies in the command.
_NOT_STARTED = 128
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


class Starting:
    """Starts containers. Every method's caller holds the container."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._shared_memory = SharedMemory(parts.config.exec_root)

    def start(self, handle: Handle) -> None:
        """Run the container's process.

        Raises InvalidParameter when its command cannot be run (State.ExitCode is then 126 or 127, as a shell has it),
        and the errors of what else it needs; the container then has the state that it had before.
        """
        container = handle.container
        handle.clean = False
        try:
            pid = self._bring_up(handle)
        except errors.EngineError as error:
            code = exit_code_of_failure(str(error))
            self.tear_down(container)
            handle.clean = True
            self._parts.change(handle, exit_code=code, error=str(error), pid=0)
            if code != _NOT_STARTED and not isinstance(error, errors.InvalidParameter):
                raise errors.InvalidParameter(str(error)) from error
            raise
        except BaseException:
            self.tear_down(container)
            raise
        handle.root_mounts = None
        handle.pristine = False
        started = self._parts.change(
            handle,
            status=Status.RUNNING,
            pid=pid,
            exit_code=0,
            error="",
            oom_killed=False,
            started_at=timestamps.now(),
            finished_at=container.state.finished_at,
            stopped_by_user=False,
            health=health.initial(container),
        )
        self._parts.publish(started, "start")

    def tear_down(self, container: Container) -> None:
        """Remove what a start makes: task, container in containerd, network, sessions that wait. Safe to repeat."""
        parts = self._parts
        delete_task(parts, container.id)
        delete_container(parts, container.id)
        parts.networks.release(container.id)
        parts.streams.forget(container.id)
        self._shared_memory.remove(container.id)

    def after_exit(self, container: Container) -> None:
        """Remove what is left when the task is gone."""
        self._shared_memory.remove(container.id)

    def _bring_up(self, handle: Handle) -> int:
        parts, container = self._parts, handle.container
        # The network is the kernel's work for the most part: the rest goes on meanwhile.
        network = parts.helpers.submit(self._attach_network, container)
        try:
            root_mounts = self._root_mounts(handle)
            identity = self._identity(handle, root_mounts)
            around = self._around(container, identity)
        except BaseException:
            network.exception()  # it must have ended before it is undone
            raise
        attachment = network.result()
        around = self._with_network(container, around, attachment)
        self._register(container, spec.build(container, around))
        return self._run(container, root_mounts)

    def _attach_network(self, container: Container) -> Attachment:
        host_config, config = container.host_config, container.config
        mode = host_config.network_mode
        other = validation.container_mode(mode)
        if other is not None:
            mode = f"container:{self._running(other).id}"
        elif config.network_disabled:
            mode = "none"
        return self._parts.networks.allocate(
            container.id,
            name=container.name,
            mode=mode,
            memberships={} if config.network_disabled else container.endpoints,
            hostname=config.hostname,
            servers=host_config.dns or self._parts.config.dns,
            exposed_ports=list(config.exposed_ports or ()),
            port_bindings=host_config.port_bindings,
            publish_all=host_config.publish_all_ports,
            mac_address=config.mac_address,
        )

    def _running(self, reference: str) -> Container:
        other = self._parts.registry.find(reference).container
        if not other.state.running:
            raise errors.Conflict(f"cannot join network of a non running container: {other.id}")
        return other

    def _root_mounts(self, handle: Handle) -> Sequence[mount_pb2.Mount]:
        if handle.root_mounts is not None:
            return handle.root_mounts
        container = handle.container
        reply = self._parts.containerd.snapshots.Mounts(
            snapshots_pb2.MountsRequest(snapshotter=container.snapshotter, key=container.id)
        )
        return list(reply.mounts)

    def _identity(self, handle: Handle, root_mounts: Sequence[mount_pb2.Mount]) -> Identity:
        container = handle.container
        groups = tuple(container.host_config.group_add or ())
        if not handle.pristine:
            return identity_of(root_mounts, container.config.user, groups)
        # Nothing was written yet: every container of the image has the same accounts.
        try:
            return _identities[container.chain_id, container.config.user, groups]
        except KeyError:
            found = identity_of(root_mounts, container.config.user, groups)
            if len(_identities) > 1000:
                _identities.clear()
            _identities[container.chain_id, container.config.user, groups] = found
            return found

    def _around(self, container: Container, identity: Identity) -> spec.Surroundings:
        host_config = container.host_config
        facts = host.current()
        pid_namespace = ipc_namespace = shm = ""
        other = validation.container_mode(host_config.pid_mode)
        if other is not None:
            pid_namespace = f"/proc/{self._running_for(other, 'PID').state.pid}/ns/pid"
        other = validation.container_mode(host_config.ipc_mode)
        if other is not None:
            sharer = self._running_for(other, "IPC")
            if sharer.host_config.ipc_mode not in ("shareable", "host"):
                raise errors.InvalidParameter(
                    f"can't join IPC of container {sharer.id}: non-shareable IPC (hint: use IpcMode:shareable for the "
                    "donor container)"
                )
            ipc_namespace = f"/proc/{sharer.state.pid}/ns/ipc"
            shm = self._shared_memory.path(sharer.id)
        elif host_config.ipc_mode == "host":
            shm = "/dev/shm"
        elif host_config.ipc_mode == "shareable":
            shm = self._shared_memory.make(container.id, host_config.shm_size)
        return spec.Surroundings(
            user=identity,
            pid_namespace=pid_namespace,
            ipc_namespace=ipc_namespace,
            shm_path=shm,
            devices=devices.requested(host_config),
            cgroup_version=facts.cgroup_version,
            init=facts.init if host_config.init else "",
            block_devices=devices.block_numbers(host_config),
        )

    def _running_for(self, reference: str, kind: str) -> Container:
        other = self._parts.registry.find(reference).container
        if not other.state.running:
            raise errors.Conflict(f"cannot join {kind} of a non running container: {other.id}")
        return other

    def _with_network(
        self, container: Container, around: spec.Surroundings, attachment: Attachment
    ) -> spec.Surroundings:
        files = self._write_network_files(container, attachment)
        return spec.Surroundings(
            **{
                **{name: getattr(around, name) for name in around.__dataclass_fields__},
                "network_namespace": attachment.netns_path or "",
                "network_files": files,
            }
        )

    def _write_network_files(self, container: Container, attachment: Attachment) -> list[tuple[str, str]]:
        """Write resolv.conf, hostname and hosts; (path on the host, path in the container) of each."""
        config, host_config, engine = container.config, container.host_config, self._parts.config
        other = validation.container_mode(host_config.network_mode)
        if other is not None:
            root = self._parts.registry.find(other).container.root
            return [(f"{root}/{name}", f"/etc/{name}") for name in ("resolv.conf", "hostname", "hosts")]
        resolver = resolver_file(engine, container, embedded=attachment.resolver)
        if host_config.network_mode == "host" and not host_config.extra_hosts:
            names = _read_text("/etc/hosts") or hosts_file(config.hostname, config.domainname)
        else:
            names = hosts_file(
                config.hostname,
                config.domainname,
                attachment.addresses,
                host_config.extra_hosts or (),
                self._parts.networks.gateway,
            )
        texts = (("resolv.conf", resolver), ("hostname", hostname_file(config.hostname)), ("hosts", names))
        files = []
        for name, text in texts:
            path = f"{container.root}/{name}"
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o644)
            files.append((path, f"/etc/{name}"))
        return files

    def _register(self, container: Container, document: dict[str, object]) -> None:
        """Make the container known to containerd, in place of one that an earlier start left behind."""
        parts = self._parts
        request = containers_pb2.CreateContainerRequest(
            container=containers_pb2.Container(
                id=container.id,
                image=container.image,
                labels={OWNER_LABEL: parts.config.data_root},
                runtime=containers_pb2.Container.Runtime(name=RUNTIME, options=_runtime_options()),
                spec=any_pb2.Any(
                    type_url=spec.SPEC_TYPE_URL, value=json.dumps(document, separators=(",", ":")).encode()
                ),
                snapshotter=container.snapshotter,
                snapshot_key=container.id,
            )
        )
        try:
            parts.containerd.containers.Create(request)
        except errors.Conflict:
            delete_task(parts, container.id)
            delete_container(parts, container.id)
            parts.containerd.containers.Create(request)

    def _run(self, container: Container, root_mounts: Sequence[mount_pb2.Mount]) -> int:
        parts = self._parts
        try:
            streams = parts.streams.uris(container)
        except errors.InvalidParameter as error:
            raise errors.SystemFailure(
                f"failed to create task for container: failed to initialize logging driver: {error}"
            ) from error
        try:
            created = parts.containerd.tasks.Create(
                tasks_pb2.CreateTaskRequest(
                    container_id=container.id,
                    rootfs=root_mounts,
                    stdin=streams.stdin,
                    stdout=streams.stdout,
                    stderr=streams.stderr,
                    terminal=streams.terminal,
                )
            )
        except errors.EngineError as error:
            raise type(error)(f"failed to create task for container: {error}") from error
        parts.streams.before_start(container)
        try:
            started = parts.containerd.tasks.Start(tasks_pb2.StartRequest(container_id=container.id))
        except errors.EngineError as error:
            raise type(error)(f"failed to start task for container: {error}") from error
        return int(started.pid or created.pid)


def resolver_file(config: Config, container: Container, *, embedded: bool) -> str:
    """The text of a container's /etc/resolv.conf; ``embedded`` when the engine resolves the names of its networks."""
    host_config = container.host_config
    return resolv_conf(
        resolv_conf_of_host(),
        host_config.dns or config.dns,
        host_config.dns_search or config.dns_search,
        host_config.dns_options or config.dns_opts,
        own_namespace=host_config.network_mode != "host",
        embedded=DNS_ADDRESS if embedded else "",
    )


_identities: dict[tuple[str, str, tuple[str, ...]], Identity] = {}


def identity_of(root_mounts: Sequence[mount_pb2.Mount], user: str, group_add: Sequence[str]) -> Identity:
    """Who ``user`` is by the files of a root file system. Raises InvalidParameter for an unknown name."""
    with open_rootfs(root_mounts) as root:
        return users.resolve(user, group_add, read_file(root, "etc/passwd"), read_file(root, "etc/group"))


def exit_code_of_failure(message: str) -> int:
    """The exit code that a shell would give for why a process could not be started; 128 for anything else."""
    text = message.lower()
    for words, code in (
        (("executable file not found", os.strerror(errno.ENOENT).lower()), _NOT_FOUND),
        ((os.strerror(errno.EACCES).lower(), os.strerror(errno.EISDIR).lower()), _NOT_EXECUTABLE),
        ((os.strerror(errno.ENOTDIR).lower(),), _NOT_FOUND),
    ):
        if "task for container" in text and any(word in text for word in words):
            return code
    return _NOT_STARTED


def delete_task(parts: Parts, container_id: str) -> tasks_pb2.DeleteResponse | None:
    """End and delete the container's task; None when there is none. Raises what keeps it from going."""
    tasks = parts.containerd.tasks
    request = tasks_pb2.DeleteTaskRequest(container_id=container_id)
    reply: tasks_pb2.DeleteResponse
    try:
        reply = tasks.Delete(request)
        return reply
    except errors.NotFound:
        return None
    except errors.EngineError as error:
        _log.info("container %s: its task is killed before it is deleted: %s", container_id[:12], error)
    with contextlib.suppress(errors.NotFound):  # of the process: it has ended, the task may be there all the same
        tasks.Kill(tasks_pb2.KillRequest(container_id=container_id, signal=9, all=True))
        tasks.Wait(tasks_pb2.WaitRequest(container_id=container_id), timeout=10)
    try:
        reply = tasks.Delete(request)
        return reply
    except errors.NotFound:
        return None


def delete_container(parts: Parts, container_id: str) -> None:
    """Make containerd forget the container; its snapshot stays."""
    try:
        parts.containerd.containers.Delete(containers_pb2.DeleteContainerRequest(id=container_id))
    except errors.NotFound:
        return


@lru_cache(maxsize=1)
def _runtime_options() -> any_pb2.Any:
    return any_pb2.Any(type_url="containerd.runc.v1.Options", value=oci_pb2.Options().SerializeToString())


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
