"""Carrying out the mount plan: the container's root file system, from the first bind to pivot_root.

Everything is done by descriptor inside the root (openat2 RESOLVE_IN_ROOT): an image's links lead nowhere else. All
mounts, masks and read-only paths are made while the host's /proc is still there, so that none is reached through a
/proc that a container could have faked.
"""

from __future__ import annotations

import errno
import os
import stat

from gantry.linux import mount as linux
from gantry.linux import path as linux_path
from runc import copying
from runc.errors import RuntimeFailure, describe, system_text
from runc.mounts import BIND, CGROUP, DEFAULT_PROPAGATION, MountStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cgroups.hierarchy import Paths

_ORDINARY = ("proc", "sysfs", "mqueue")


class Sources:
    """Detached copies of bind sources that the runtime opened for an init in a user namespace, by index of the step."""

    __slots__ = ("trees",)

    def __init__(self, trees: dict[int, int]) -> None:
        self.trees = trees


def prepare_root(rootfs: str, propagation: int) -> int:
    """Cut the propagation to the host, make the root a mount of its own; gives its descriptor."""
    linux.mount(None, "/", flags=propagation or DEFAULT_PROPAGATION)
    _cut_parent(rootfs, linux.MS_SLAVE if propagation & linux.MS_SLAVE else linux.MS_PRIVATE)
    linux.mount(rootfs, rootfs, "bind", linux.MS_BIND | linux.MS_REC)
    return os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _cut_parent(rootfs: str, propagation: int) -> None:
    """pivot_root(2) refuses a root whose parent mount is shared, which it can be only when the spec asked for it."""
    path = rootfs
    while True:
        try:
            linux.mount(None, path, flags=propagation)
            return
        except OSError as error:
            if error.errno != errno.EINVAL or path == "/":  # EINVAL: not a mount point, its parent directory may be
                raise
            path = os.path.dirname(path)


def mount_all(root_fd: int, steps: list[MountStep], cgroups: Paths, cgroup_namespace: bool, sources: Sources) -> None:
    """Make every mount of the plan. Raises RuntimeFailure in the words `error mounting "X" to rootfs at "Y": ...`."""
    for index, step in enumerate(steps):
        try:
            if step.kind == BIND:
                _bind(root_fd, step, sources.trees.get(index))
            elif step.kind == CGROUP:
                _mount_cgroup(root_fd, step, cgroups, cgroup_namespace)
            else:
                _mount_filesystem(root_fd, step)
        except RuntimeFailure as failure:
            raise RuntimeFailure(
                f'error mounting "{step.source}" to rootfs at "{step.target}": {failure.message}'
            ) from failure
        except OSError as error:
            raise RuntimeFailure(
                f'error mounting "{step.source}" to rootfs at "{step.target}": {describe(error)}'
            ) from error


# Bind mounts: a detached copy of the source gets its attributes first and is attached finished, in one step.


def open_source(step: MountStep) -> int:
    """A detached copy of a bind's source, with its attributes set. Raises OSError or RuntimeFailure."""
    source = step.source
    try:
        os.stat(source)
    except OSError as error:
        raise RuntimeFailure(f"stat {source}: {system_text(error)}") from error
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if step.recursive else 0)
    tree = linux.open_tree(source, flags)
    try:
        if step.uid_mappings:
            from runc import idmap

            idmap.apply(tree, step)
        set_attributes(tree, step)
    except BaseException:
        os.close(tree)
        raise
    return tree


_AT_RECURSIVE = 0x8000

_ATTRIBUTES = (
    (linux.MS_RDONLY, linux.MOUNT_ATTR_RDONLY),
    (linux.MS_NOSUID, linux.MOUNT_ATTR_NOSUID),
    (linux.MS_NODEV, linux.MOUNT_ATTR_NODEV),
    (linux.MS_NOEXEC, linux.MOUNT_ATTR_NOEXEC),
    (linux.MS_NODIRATIME, linux.MOUNT_ATTR_NODIRATIME),
    (linux.MS_NOSYMFOLLOW, linux.MOUNT_ATTR_NOSYMFOLLOW),
)


def attribute_changes(flags: int, cleared: int) -> tuple[int, int]:
    """MOUNT_ATTR_* to set and to clear for MS_* flags to set and to clear."""
    add = clear = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            add |= attribute
        elif cleared & flag:
            clear |= attribute
    if flags & linux.MS_NOATIME:
        add, clear = add | linux.MOUNT_ATTR_NOATIME, clear | linux.MOUNT_ATTR_ATIME
    elif flags & linux.MS_STRICTATIME:
        add, clear = add | linux.MOUNT_ATTR_STRICTATIME, clear | linux.MOUNT_ATTR_ATIME
    elif flags & linux.MS_RELATIME or cleared & linux.MS_NOATIME:
        clear |= linux.MOUNT_ATTR_ATIME
    return add, clear


def set_attributes(tree: int, step: MountStep) -> None:
    """Give a detached mount its flags, its recursive attributes and its propagation."""
    options = step.options
    add, clear = attribute_changes(options.flags, options.cleared)
    if add or clear:
        linux.mount_setattr(tree, set_attributes=add, clear_attributes=clear)
    if options.recursive_set or options.recursive_clear:
        linux.mount_setattr(
            tree, set_attributes=options.recursive_set, clear_attributes=options.recursive_clear, recursive=True
        )
    for propagation in options.propagation:
        linux.mount_setattr(tree, propagation=propagation & ~linux.MS_REC, recursive=bool(propagation & linux.MS_REC))


def _bind(root_fd: int, step: MountStep, tree: int | None) -> None:
    if tree is None:
        tree = open_source(step)
    try:
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            target = linux_path.mkdir_all_in_root(root_fd, step.target)
        else:
            target = linux_path.create_file_in_root(root_fd, step.target)
        try:
            if step.target == "/proc" and linux_path.filesystem_magic(tree) != linux_path.PROC_SUPER_MAGIC:
                raise RuntimeFailure('"/proc" cannot be mounted because it is not of type proc')
            _refuse_procfs(target, step)
            linux.move_mount(tree, "", to_fd=target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


# File systems


def _mount_filesystem(root_fd: int, step: MountStep) -> None:
    if step.fstype in _ORDINARY:
        _require_ordinary_directory(root_fd, step)
    target, made = _mount_directory(root_fd, step.target)
    try:
        _refuse_procfs(target, step)
        where = linux_path.descriptor_path(target)
        data = step.data
        flags = step.options.flags
        if step.fstype == "tmpfs" and "mode=" not in data and not made:
            mode = stat.S_IMODE(os.fstat(target).st_mode)
            data = ",".join(part for part in (data, f"mode={mode:o}") if part)
        # /dev must take device nodes before it can become read-only; a copied-up tmpfs its files.
        late_readonly = flags & linux.MS_RDONLY and step.fstype == "tmpfs" and (step.target == "/dev" or step.copies_up)
        try:
            linux.mount(step.source, where, step.fstype, flags & ~linux.MS_RDONLY if late_readonly else flags, data)
        except OSError as error:
            raise OSError(error.errno, f"mount {step.fstype}: {os.strerror(error.errno or 0)}", step.target) from None
        if step.copies_up:
            _copy_up(target, root_fd, step.target)
    finally:
        os.close(target)
    if late_readonly and step.target != "/dev":
        remount_readonly(root_fd, step.target)
    _set_after(root_fd, step)


def _mount_directory(root_fd: int, target: str) -> tuple[int, bool]:
    """A descriptor of the place, and whether it had to be made."""
    try:
        return linux_path.open_in_root(root_fd, target, os.O_PATH | os.O_DIRECTORY), False
    except FileNotFoundError:
        return linux_path.mkdir_all_in_root(root_fd, target), True


def _refuse_procfs(target: int, step: MountStep) -> None:
    """`mounts.check_place` for a place that a link of the image led to: the plan knows its name only."""
    if linux_path.filesystem_magic(target) == linux_path.PROC_SUPER_MAGIC and not step.may_cover_procfs:
        raise RuntimeFailure(f'"{step.target}" cannot be mounted because it is inside /proc')


def _require_ordinary_directory(root_fd: int, step: MountStep) -> None:
    """procfs and its like on a link would be mounted where an image, not the user, wants it."""
    try:
        fd = linux_path.open_in_root(root_fd, step.target, os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if not linux_path.is_directory(fd):
            raise RuntimeFailure(f'filesystem "{step.fstype}" must be mounted on ordinary directory')
    finally:
        os.close(fd)


def _set_after(root_fd: int, step: MountStep) -> None:
    options = step.options
    if not (options.propagation or options.recursive_set or options.recursive_clear):
        return
    fd = linux_path.open_in_root(root_fd, step.target)
    try:
        for propagation in options.propagation:
            linux.mount_setattr(fd, propagation=propagation & ~linux.MS_REC, recursive=bool(propagation & linux.MS_REC))
        if options.recursive_set or options.recursive_clear:
            linux.mount_setattr(
                fd, set_attributes=options.recursive_set, clear_attributes=options.recursive_clear, recursive=True
            )
    finally:
        os.close(fd)


def _copy_up(below: int, root_fd: int, target: str) -> None:
    """Copy what the tmpfs hides into it: from the descriptor of the hidden directory to the one now in its place."""
    above = linux_path.open_in_root(root_fd, target, os.O_RDONLY | os.O_DIRECTORY)
    source = os.open(linux_path.descriptor_path(below), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copying.copy_tree(source, above)
    finally:
        os.close(source)
        os.close(above)


def remount_readonly(root_fd: int, target: str) -> None:
    """Make the mount at this place read-only, its other flags as they are."""
    fd = linux_path.open_in_root(root_fd, target)
    try:
        linux.mount_setattr(fd, set_attributes=linux.MOUNT_ATTR_RDONLY)
    finally:
        os.close(fd)


# Control groups as the container sees them


def _mount_cgroup(root_fd: int, step: MountStep, paths: Paths, own_namespace: bool) -> None:
    if paths.mode == "v2":
        _mount_cgroup2(root_fd, step, paths)
        return
    readonly = step.options.flags & linux.MS_RDONLY
    flags = step.options.flags & ~linux.MS_RDONLY
    target = linux_path.mkdir_all_in_root(root_fd, step.target)
    try:
        linux.mount("tmpfs", linux_path.descriptor_path(target), "tmpfs", flags, "mode=755")
    finally:
        os.close(target)
    done: set[str] = set()
    for name, directory in paths.controllers.items():
        mount_name = _mount_name(name, directory, paths)
        if mount_name not in done:
            done.add(mount_name)
            _mount_controller(root_fd, f"{step.target}/{mount_name}", name, directory, step, own_namespace)
        short = name.removeprefix("name=")
        if short != mount_name:
            top = linux_path.open_in_root(root_fd, step.target)
            try:
                os.symlink(mount_name, short, dir_fd=top)
            finally:
                os.close(top)
    if readonly:
        remount_readonly(root_fd, step.target)


def _mount_name(name: str, directory: str, paths: Paths) -> str:
    together = [other for other, path in paths.controllers.items() if path == directory]
    return name.removeprefix("name=") if len(together) < 2 else ",".join(together)


def _mount_controller(
    root_fd: int, target: str, name: str, directory: str, step: MountStep, own_namespace: bool
) -> None:
    target_fd = linux_path.mkdir_all_in_root(root_fd, target)
    try:
        if own_namespace:
            data = name if not name.startswith("name=") else f"none,{name}"
            linux.mount("cgroup", linux_path.descriptor_path(target_fd), "cgroup", step.options.flags, data)
            return
        tree = linux.open_tree(directory)
        try:
            add, clear = attribute_changes(step.options.flags, step.options.cleared)
            linux.mount_setattr(tree, set_attributes=add, clear_attributes=clear)
            linux.move_mount(tree, "", to_fd=target_fd)
        finally:
            os.close(tree)
    finally:
        os.close(target_fd)


def _mount_cgroup2(root_fd: int, step: MountStep, paths: Paths) -> None:
    target = linux_path.mkdir_all_in_root(root_fd, step.target)
    try:
        try:
            linux.mount("cgroup", linux_path.descriptor_path(target), "cgroup2", step.options.flags, step.data)
        except OSError as error:
            # Not allowed in a user namespace without a cgroup namespace: the container's own group is bound instead.
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise
            tree = linux.open_tree(paths.unified)
            try:
                add, clear = attribute_changes(step.options.flags, step.options.cleared)
                linux.mount_setattr(tree, set_attributes=add, clear_attributes=clear)
                linux.move_mount(tree, "", to_fd=target)
            finally:
                os.close(tree)
    finally:
        os.close(target)


# Masked and read-only paths


def make_readonly(root_fd: int, path: str) -> None:
    """Bind a path onto itself, read-only; one that is missing is fine (config-linux.md "Readonly Paths")."""
    try:
        target = linux_path.open_in_root(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        tree = linux.open_tree(
            linux_path.descriptor_path(target), linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | _AT_RECURSIVE
        )
        try:
            linux.mount_setattr(tree, set_attributes=linux.MOUNT_ATTR_RDONLY)
            linux.move_mount(tree, "", to_fd=target)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def mask(root_fd: int, path: str) -> None:
    """Hide a path: a directory under an empty read-only tmpfs, a file under /dev/null; a missing one is fine."""
    try:
        target = linux_path.open_in_root(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        where = linux_path.descriptor_path(target)
        if linux_path.is_directory(target):
            linux.mount("tmpfs", where, "tmpfs", linux.MS_RDONLY)
        else:
            # Read-only, so that not even the mode of the host's /dev/null can be changed through it.
            tree = linux.clone_readonly("/dev/null")
            try:
                linux.move_mount(tree, "", to_fd=target)
            finally:
                os.close(tree)
    finally:
        os.close(target)


# The change of root


def set_root_readonly(root_fd: int) -> None:
    """Make the root mount itself read-only; mounts below it keep their own flags."""
    linux.mount_setattr(root_fd, set_attributes=linux.MOUNT_ATTR_RDONLY)


def pivot(root_fd: int) -> None:
    """Make the root the root: stack the old one on it, and let go of that (pivot_root(2), NOTES)."""
    old = os.open("/", os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchdir(root_fd)
        linux.pivot_root(".", ".")
        os.fchdir(old)
        # Nothing unmounted here may be unmounted on the host.
        linux.mount(None, ".", flags=linux.MS_SLAVE | linux.MS_REC)
        linux.umount2(".", linux.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")


def move(root_fd: int, rootfs: str) -> None:
    """Without pivot_root, on an initial RAM disk (--no-pivot): move the root over `/` and chroot.

    What of procfs and sysfs stays mounted elsewhere would be reachable by the container as a full, unmasked one (kernel
    rule: a new procfs may be mounted where one is visible): it is unmounted or covered first.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().decode("utf-8", "surrogateescape").splitlines()
    for line in lines:
        fields, _, tail = line.partition(" - ")
        place = _unescape(fields.split()[4])
        if tail.split()[0] in ("proc", "sysfs") and place != rootfs and not place.startswith(rootfs + "/"):
            linux.mount(None, place, flags=linux.MS_SLAVE | linux.MS_REC)
            try:
                linux.umount2(place, linux.MNT_DETACH)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                linux.mount("tmpfs", place, "tmpfs")
    os.fchdir(root_fd)
    linux.mount(rootfs, "/", flags=linux.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _unescape(text: str) -> str:
    """mountinfo's octal escapes (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def set_root_propagation(propagation: int) -> None:
    """Give the new root the propagation that the spec asked for, where it does not have it from its parent."""
    if propagation and not propagation & (linux.MS_PRIVATE | linux.MS_SLAVE):
        linux.mount(None, "/", flags=propagation)
