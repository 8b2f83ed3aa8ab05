"""Making a container: the runtime's side of the choreography in `messages`."""

from __future__ import annotations

import os

from gantry.linux import namespaces as linux_namespaces
from gantry.linux import process as linux_process
from gantry.linux import unix
from runc import console, devices, hooks, init, messages, mounts, namespaces, process, rootfs, security, state
from runc import spec as specification
from runc.cgroups import control, hierarchy
from runc.errors import RuntimeFailure, describe
from runc.job import CreateOptions, Job
from runc.messages import GO, PREPARED, READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from gantry.oci.runtime import Process, Spec
    from runc.cli import Context
    from runc.scheduling import Scheduling
    from runc.state import Container

_START = "unable to start container process"
_LIMITS = "error during container init: error setting cgroup config for procHooks process"
SIGKILL = 9


def prepare(context: Context, container_id: str, options: CreateOptions, terminal: _socket.socket | None) -> Job:
    """Decide everything that can be decided without touching the system. Raises RuntimeFailure.

    terminal: where the master end goes in a foreground run; with --console-socket it is None and connected here.
    """
    state.check_id(container_id)
    bundle, spec = options.bundle, options.spec
    job = Job()
    job.spec = spec
    job.process = spec["process"]
    job.log = context.log
    job.rootfs = specification.rootfs_path(spec, bundle)
    job.namespaces = namespaces.NamespacePlan(spec["linux"].get("namespaces", []))
    job.rootless, job.cgroups_are_optional = os.geteuid() != 0, context.rootless
    if job.rootless:
        from runc import rootless

        rootless.check(spec)
    job.mounts = mounts.plan_mounts(spec, bundle, job.rootfs)
    job.devices = devices.plan_devices(spec)
    job.root_propagation = mounts.root_propagation(spec)
    job.credentials = process.Credentials(job.process)
    process.check_rlimits(job.process.get("rlimits", []))
    security.check_labels(job.process)
    job.scheduling = planned_scheduling(job.process, spec)
    _warn_unknown_capabilities(job)
    job.net_devices = {}
    if spec["linux"].get("netDevices"):
        from runc import netdevices

        job.net_devices = netdevices.check(spec, rootless=job.cgroups_are_optional)
    cgroups_path = spec["linux"].get("cgroupsPath", "")
    job.unit = None
    if context.systemd:
        from runc.cgroups import systemd

        systemd.require_running()
        job.unit = systemd.plan_unit(cgroups_path, container_id, rootless=context.rootless)
        job.cgroups = systemd.container_paths(hierarchy.discover(), job.unit, systemd.own_base())
    else:
        job.cgroups = hierarchy.container_paths(hierarchy.discover(), cgroups_path, container_id)
    job.launcher_fd = options.launcher_fd
    job.no_pivot = options.no_pivot
    job.no_new_keyring = options.no_new_keyring
    job.preserved, job.listen_env = preserved_descriptors(options.preserve_fds)
    job.seccomp, job.listener = b"", None
    if spec["linux"].get("seccomp"):
        from runc import listener, seccomp

        job.listener = listener.plan(spec["linux"]["seccomp"])
        job.seccomp = seccomp.compiled(spec["linux"]["seccomp"], context.log)
    job.console = terminal
    if options.console_socket:
        job.console = console.connect(options.console_socket)
    return job


def _warn_unknown_capabilities(job: Job) -> None:
    if job.credentials.capabilities is not None and job.credentials.capabilities.unknown:
        job.log.warning(f"ignoring unknown or unavailable capabilities: {job.credentials.capabilities.unknown}")


def planned_scheduling(wanted: Process, spec: Spec, *, added: bool = False) -> Scheduling | None:
    """What the process asks for of `scheduling`, which most do not. Raises RuntimeFailure."""
    asked = ("scheduler", "ioPriority", "execCPUAffinity")
    if "memoryPolicy" not in spec["linux"] and not any(key in wanted or key in spec["process"] for key in asked):
        return None
    from runc import scheduling

    return scheduling.plan(wanted, spec, added=added)


def preserved_descriptors(count: int) -> tuple[int, list[str]]:
    """How many descriptors behind the standard streams the program gets, and the variables that tell it.

    Those of socket activation (LISTEN_FDS, sd_listen_fds(3)) come first. Raises RuntimeFailure for a closed one.
    """
    listen, env = 0, []
    if os.environ.get("LISTEN_FDS", "").isdigit() and os.environ.get("LISTEN_PID") == str(os.getpid()):
        listen = int(os.environ["LISTEN_FDS"])
        env = [f"LISTEN_FDS={listen}", "LISTEN_PID=1"]
        if "LISTEN_FDNAMES" in os.environ:
            env.append(f"LISTEN_FDNAMES={os.environ['LISTEN_FDNAMES']}")
    for fd in range(3, 3 + listen + count):
        try:
            os.fstat(fd)
        except OSError:
            raise RuntimeFailure(f"unable to stat preserved-fd {fd} (of {listen + count})") from None
    return listen + count, env


def create(context: Context, container_id: str, options: CreateOptions, terminal: _socket.socket | None) -> Container:
    """Make the container, up to where it waits for `start`. Raises RuntimeFailure, with nothing left behind."""
    # The descriptors that the program gets are taken before any of ours could take their numbers.
    job = prepare(context, container_id, options, terminal)
    container = state.create(context.root, container_id)
    job.container = container
    pid = 0
    try:
        control.check_unused(job.cgroups)
    except BaseException:
        container.remove_directory()  # and nothing else: those groups are somebody else's
        raise
    try:
        _record(job, options)
        pid = _launch(job)
        if options.pid_file:
            write_pid_file(options.pid_file, pid)
        if options.pidfd_socket:
            send_pidfd(options.pidfd_socket, pid)
    except BaseException:
        _undo(job, container.pid or pid)
        raise
    return container


def _record(job: Job, options: CreateOptions) -> None:
    container = job.container
    container.oci_version = job.spec["ociVersion"]
    container.bundle = options.bundle
    container.rootfs = job.rootfs
    container.cgroup_paths = job.cgroups.controllers
    container.cgroup_unified = job.cgroups.unified
    container.systemd_unit = job.unit.name if job.unit is not None else ""
    container.new_keyring = not job.no_new_keyring
    container.namespaces = [name for name in namespaces.JOIN_ORDER if job.namespaces.has(name)]
    container.save_spec(job.spec)
    container.save()


def _launch(job: Job) -> int:
    try:
        os.mkfifo(job.container.fifo)
        os.chmod(job.container.fifo, 0o622)  # noqa: S103 - opened for writing by whoever the program runs as
        job.fifo_fd = os.open(job.container.fifo, os.O_PATH | os.O_CLOEXEC)
        _make_groups(job)
        job.opened_namespaces = namespaces.open_joined(job.namespaces)
        job.source_trees = _open_sources(job)
        ours, theirs = messages.pair()
        pid = _fork(job, ours, theirs)
        theirs.close()
        job.log.debug(f"init of {job.container.id} is process {pid}, in new namespaces and in its cgroups")
        try:
            _attend(job, pid, ours)
        finally:
            ours.close()
            _close_ours(job)
    except RuntimeFailure as failure:
        raise failure.within(_START) from failure
    except OSError as error:
        raise RuntimeFailure(f"{_START}: {describe(error)}") from error
    return pid


def _make_groups(job: Job) -> None:
    job.seen_cgroups = job.cgroups
    if job.unit is not None:
        job.joining = control.Joining([], "")  # systemd makes a unit around a process that is there already
        return
    if not job.cgroups_are_optional:
        control.create(job.cgroups)
        job.joining = control.joining(job.cgroups)
        return
    from runc import rootless

    job.cgroups = rootless.create_groups(job.cgroups, job.spec)
    job.seen_cgroups = job.cgroups if job.cgroups.directories else rootless.own_groups()
    job.container.cgroup_paths = job.cgroups.controllers
    job.container.cgroup_unified = job.cgroups.unified
    job.joining = control.joining(job.cgroups)


def _start_unit(job: Job, pid: int) -> None:
    """Have systemd make the unit, then the groups of controllers that are not its own; the process goes into all."""
    from runc.cgroups import systemd

    assert job.unit is not None
    resources, annotations = job.spec["linux"].get("resources", {}), job.spec.get("annotations", {})
    try:
        systemd.start(job.unit, pid, job.cgroups, resources, annotations)
        control.create(job.cgroups)
    except RuntimeFailure as failure:
        raise failure.within("unable to apply cgroup configuration") from failure
    control.move(job.cgroups, pid)


def _open_sources(job: Job) -> dict[int, int]:
    """In a user namespace the host's directories may be closed to init: the runtime opens bind sources for it.

    A source that needs mapped ids is made ready here as well: only the file system's owner may map it.
    """
    if job.rootless:
        return {}  # init has more rights than the runtime
    wanted = [
        index
        for index, step in enumerate(job.mounts)
        if step.kind == mounts.BIND and (step.uid_mappings or job.namespaces.has("user"))
    ]
    trees = {}
    for index in wanted:
        step = job.mounts[index]
        try:
            trees[index] = rootfs.open_source(step)
        except RuntimeFailure as failure:
            raise failure.within(f'error mounting "{step.source}" to rootfs at "{step.target}"') from failure
    return trees


def _fork(job: Job, ours: messages.Channel, theirs: messages.Channel) -> int:
    """Fork init into its new namespaces; gives its pid, as the caller sees it."""
    plan = job.namespaces
    if not plan.needs_middle:
        pid = job.joining.fork(plan.at_fork)
        if pid == 0:
            ours.close()
            init.run(job, theirs)
    else:
        pid = _fork_from_middle(job, ours, theirs)
    job.container.set_process(pid)
    return pid


def _fork_from_middle(job: Job, ours: messages.Channel, theirs: messages.Channel) -> int:
    """Have a process in between join the namespaces, and fork init from there as its own sibling."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    middle = linux_namespaces.fork()
    if middle == 0:
        try:
            linux_process.set_dumpable(False)
            namespaces.join(job.opened_namespaces, job.namespaces.joined)
            pid = job.joining.fork(job.namespaces.at_fork | linux_namespaces.CLONE_PARENT)
            if pid == 0:
                os.close(reader)
                os.close(writer)
                ours.close()
                init.run(job, theirs)
            os.write(writer, str(pid).encode())
        except RuntimeFailure as failure:
            os.write(writer, b"!" + failure.message.encode("utf-8", "surrogateescape"))
        except OSError as error:
            os.write(writer, b"!" + describe(error).encode("utf-8", "surrogateescape"))
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 65536)
    os.close(reader)
    os.waitpid(middle, 0)
    if not answer.isdigit():
        raise RuntimeFailure(answer[1:].decode("utf-8", "surrogateescape") or "joining the namespaces failed")
    return int(answer)


def _attend(job: Job, pid: int, channel: messages.Channel) -> None:
    container, linux = job.container, job.spec["linux"]
    container.save()
    if job.unit is not None:
        _start_unit(job, pid)
    job.joining.parent_moves(pid)
    if job.namespaces.makes("user"):
        if job.rootless:
            from runc.rootless import write_maps
        else:
            from runc.idmap import write_maps
        write_maps(pid, linux.get("uidMappings", []), linux.get("gidMappings", []))
    set_oom_score(pid, job.process, rootless=job.rootless)
    process.set_rlimits(pid, job.process.get("rlimits", []))
    channel.send(GO)
    _set_limits(job)  # while init is making its mounts
    channel.expect(PREPARED)
    if job.net_devices:
        from runc import netdevices

        netdevices.move_all(job.net_devices, pid)
    job.log.debug("init has made its mounts")
    _set_device_rules(job)
    _run_hooks(job)
    channel.send(GO)
    if job.listener is None:
        channel.expect(READY)
    else:
        from runc import listener

        listener.expect_ready(channel, job.listener, pid, lambda: state.oci_state(container, "creating"))
    job.log.debug("init is ready, and waits for start")
    container.creating = False
    container.save()


def set_oom_score(pid: int, wanted: Process, *, rootless: bool) -> None:
    """Set the process's score; an ordinary user may only raise it, and a lower one is let be. Raises RuntimeFailure."""
    try:
        process.set_oom_score(pid, wanted.get("oomScoreAdj"))
    except RuntimeFailure as failure:
        if not (rootless and isinstance(failure.__cause__, PermissionError)):
            raise


def _set_limits(job: Job) -> None:
    try:
        control.apply(job.cgroups, job.spec["linux"].get("resources", {}))
    except RuntimeFailure as failure:
        raise failure.within(_LIMITS) from failure


def _set_device_rules(job: Job) -> None:
    if job.cgroups_are_optional:
        return  # they are for root of the machine alone to set
    try:
        control.apply_devices(job.cgroups, job.spec["linux"].get("resources", {}))
    except RuntimeFailure as failure:
        raise failure.within(_LIMITS) from failure


def _run_hooks(job: Job) -> None:
    described = state.oci_state(job.container, "creating")
    try:
        hooks.run("prestart", job.spec.get("hooks", {}), described)
        hooks.run("createRuntime", job.spec.get("hooks", {}), described)
    except RuntimeFailure as failure:
        raise failure.within("error during container init") from failure


def _close_ours(job: Job) -> None:
    job.joining.close()
    for fd in (job.fifo_fd, *job.source_trees.values(), job.launcher_fd):
        if fd >= 0:
            os.close(fd)
    for fd in job.opened_namespaces.values() if not job.namespaces.needs_middle else ():
        os.close(fd)
    if job.console is not None:
        job.console.close()


def _undo(job: Job, pid: int) -> None:
    """Take back what a failed creation made."""
    if pid:
        try:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it ended by itself
    try:
        control.remove(job.cgroups)
        if job.unit is not None:
            from runc.cgroups import systemd

            systemd.stop(job.unit.name)
    except RuntimeFailure as failure:
        job.log.warning(failure.message)
    job.container.remove_directory()


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid by rename, so that a reader finds it whole or not at all."""
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def send_pidfd(path: str, pid: int) -> None:
    """Send a pidfd of the process to the socket of --pidfd-socket."""
    sock = console.connect(path)
    pidfd = linux_process.pidfd_open(pid)
    try:
        unix.send_packet(sock, b"pidfd", (pidfd,))
    finally:
        os.close(pidfd)
        sock.close()
