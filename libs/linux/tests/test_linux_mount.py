from __future__ import annotations

import os

import pytest

from gantry.linux import mount, namespaces


def test_options_are_sorted_into_flags_propagation_and_data() -> None:
    """Flags, propagation, recursive attributes and file system data are told apart."""
    parsed = mount.parse_options(["nosuid", "ro", "rbind", "rslave", "rro", "size=64k", "mode=755", "tmpcopyup"])
    assert parsed.flags == mount.MS_NOSUID | mount.MS_RDONLY | mount.MS_BIND | mount.MS_REC
    assert parsed.propagation == [mount.MS_SLAVE | mount.MS_REC]
    assert parsed.recursive_set == mount.MOUNT_ATTR_RDONLY
    assert parsed.data_string == "size=64k,mode=755"
    assert parsed.extensions == ["tmpcopyup"]


def test_a_later_option_wins_over_an_earlier_one() -> None:
    """`ro` then `rw` is writable and says that read-only was cleared; the other way round it is not."""
    writable = mount.parse_options(["ro", "rw"])
    assert writable.flags & mount.MS_RDONLY == 0
    assert writable.cleared & mount.MS_RDONLY
    readonly = mount.parse_options(["rw", "ro"])
    assert readonly.flags & mount.MS_RDONLY
    assert readonly.cleared & mount.MS_RDONLY == 0


def test_recursive_access_time_options_clear_the_whole_field() -> None:
    """mount_setattr(2) demands that the access time field is cleared whole before it is set."""
    parsed = mount.parse_options(["rnoatime"])
    assert parsed.recursive_set == mount.MOUNT_ATTR_NOATIME
    assert parsed.recursive_clear == mount.MOUNT_ATTR_ATIME


def test_a_failed_mount_names_the_call_and_the_path(tmp_path: os.PathLike[str]) -> None:
    """The error tells what was tried and where."""
    with pytest.raises(OSError, match="mount tmpfs") as caught:
        mount.mount("tmpfs", f"{tmp_path}/missing", "tmpfs")
    assert caught.value.filename == f"{tmp_path}/missing"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_readonly_clone_can_not_be_reopened_for_writing(tmp_path: os.PathLike[str]) -> None:
    """What CVE-2019-5736 did: reopening through /proc for writing fails with EROFS, though we are root."""
    victim = os.path.join(tmp_path, "victim")
    with open(victim, "w", encoding="utf-8") as file:
        file.write("x")
    fd = mount.clone_readonly(victim)
    try:
        with pytest.raises(OSError, match="Read-only"):
            os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
        os.close(os.open(victim, os.O_WRONLY))
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_system_made_by_descriptor_is_attached_and_vanishes_with_its_namespace(
    tmp_path: os.PathLike[str],
) -> None:
    """fsopen, fsconfig, fsmount and move_mount in a child with its own mount namespace; the parent sees nothing."""
    pid = namespaces.fork(namespaces.CLONE_NEWNS)
    if pid == 0:
        status = 1
        try:
            mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
            context = mount.fsopen("tmpfs")
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "size", "64k")
            mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
            tree = mount.fsmount(context, mount.MOUNT_ATTR_NODEV)
            mount.move_mount(tree, str(tmp_path))
            status = 0 if os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize == 65536 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert str(tmp_path) not in file.read()
