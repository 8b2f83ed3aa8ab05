from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest


def test_namespaces_are_new(runtime) -> None:
    """Every kind that the configuration lists is not the host's; user and time are not listed, and are."""
    runtime.bundle.namespace("cgroup")
    kinds = ("pid", "net", "ipc", "uts", "mnt", "cgroup", "user")
    inside = runtime.output("sh", "-c", "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)).split()
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert [a != b for a, b in zip(inside, outside, strict=True)] == [True] * 6 + [False]


def test_the_process_is_number_one_and_sees_only_its_own(runtime) -> None:
    """In a pid namespace of its own."""
    assert runtime.output("sh", "-c", "echo $$; ps | wc -l").split() == ["1", "4"]


def test_the_host_name_is_the_container_s(runtime) -> None:
    """And the host keeps its own."""
    runtime.bundle.config["hostname"] = "inside"
    before = os.uname().nodename
    assert runtime.output("hostname") == "inside"
    assert os.uname().nodename == before


def test_a_network_namespace_has_its_loopback_up(runtime) -> None:
    """127.0.0.1 is there from the start."""
    flags = int(runtime.output("sh", "-c", "cat /sys/class/net/lo/flags"), 16)
    assert flags & 1


def test_a_namespace_is_joined_by_path(runtime) -> None:
    """Of any kind; here those of a waiting process."""
    with subprocess.Popen(
        ["unshare", "-n", "-i", "-u", "sh", "-c", "hostname joined; echo ok; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ok\n"
        try:
            for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
                runtime.bundle.namespace(kind, f"/proc/{holder.pid}/ns/{name}")
            del runtime.bundle.config["hostname"]
            inside = runtime.output("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname")
            expected = [os.readlink(f"/proc/{holder.pid}/ns/{name}") for name in ("net", "ipc")]
            assert inside.split() == [*expected, "joined"]
        finally:
            holder.kill()


def test_a_pid_namespace_is_joined(runtime, tmp_path: Path) -> None:
    """The container's process is then one of its processes, and still ours to wait for."""
    with subprocess.Popen(
        ["unshare", "-p", "-f", "--kill-child", "sh", "-c", "echo ok; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ok\n"
        try:
            (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            runtime.bundle.namespace("pid", f"/proc/{child}/ns/pid")
            assert runtime.output("readlink", "/proc/self/ns/pid") == os.readlink(f"/proc/{child}/ns/pid")
            done = runtime.run("sh", "-c", "exit 9")
            assert done.returncode == 9
        finally:
            holder.kill()


def test_a_missing_namespace_is_told(runtime) -> None:
    """With its path."""
    runtime.bundle.namespace("network", "/no/such/ns")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "/no/such/ns" in done.stderr
    assert "no such file or directory" in done.stderr


def test_a_user_namespace_maps_ids(runtime) -> None:
    """Root inside is a plain user outside; devices and mounts work all the same."""
    for directory, _, files in os.walk(runtime.bundle.rootfs):
        os.chown(directory, 100000, 100000)
        for file in files:
            os.lchown(os.path.join(directory, file), 100000, 100000)
    for parent in (runtime.bundle.path, *runtime.bundle.path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    runtime.bundle.namespace("user")
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    runtime.bundle.linux["uidMappings"] = runtime.bundle.linux["gidMappings"] = mapping
    script = (
        "id -u; tr -s ' ' </proc/self/uid_map; echo x >/dev/null && echo null; touch /tmp/file;"
        "test -c /dev/tty && echo tty"
    )
    assert runtime.output("sh", "-c", script).split() == ["0", "0", "100000", "65536", "null", "tty"]
    assert (runtime.bundle.rootfs / "tmp/file").stat().st_uid == 100000
    runtime.detached("sleep", "100")
    done = runtime.exec("sh", "-c", "id -u; tr -s ' ' </proc/self/uid_map")
    assert done.stdout.split() == ["0", "0", "100000", "65536"]
    assert os.stat(f"/proc/{runtime.state()['pid']}").st_uid == 100000


@pytest.mark.usefixtures("ours_only")
def test_a_time_namespace_shifts_clocks(runtime) -> None:
    """By the offset asked for."""
    runtime.bundle.namespace("time")
    runtime.bundle.linux["timeOffsets"] = {"boottime": {"secs": 1_000_000}}
    uptime = float(runtime.output("cut", "-d ", "-f1", "/proc/uptime"))
    assert uptime > 1_000_000
    assert time.clock_gettime(time.CLOCK_BOOTTIME) < 1_000_000
    runtime.detached("sleep", "100")
    assert float(runtime.exec("cut", "-d ", "-f1", "/proc/uptime").stdout) > 1_000_000


def test_kernel_parameters_of_own_namespaces_are_set(runtime) -> None:
    """net.* in the network namespace; the host's stay."""
    path = Path("/proc/sys/net/ipv4/ip_default_ttl")
    before = path.read_text()
    runtime.bundle.linux["sysctl"] = {"net.ipv4.ip_default_ttl": "99"}
    assert runtime.output("cat", str(path)) == "99"
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["kernel.panic", "vm.swappiness", "net.ipv4.ip_forward"])
def test_kernel_parameters_of_the_host_are_refused(runtime, name: str) -> None:
    """They are the machine's, not the container's."""
    if name.startswith("net."):
        runtime.bundle.linux["namespaces"] = [n for n in runtime.bundle.linux["namespaces"] if n["type"] != "network"]
    runtime.bundle.linux["sysctl"] = {name: "1"}
    done = runtime.run("true")
    assert done.returncode == 1
    assert name in done.stderr


# Mounts


def test_bind_mounts_read_write_and_read_only(runtime, tmp_path: Path) -> None:
    """A directory and a file; a read-only one takes no write."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("content\n")
    runtime.bundle.mount("/data", "bind", str(tmp_path / "dir"), "rbind", "rw")
    runtime.bundle.mount("/etc/one/file", "bind", str(tmp_path / "dir/file"), "bind", "ro", "nosuid")
    done = runtime.run("sh", "-c", "cat /etc/one/file; echo new >/data/made; echo x >/etc/one/file")
    assert done.stdout == "content\n"
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "dir/made").read_text() == "new\n"


@pytest.mark.usefixtures("ours_only")
def test_recursive_read_only_reaches_mounts_below(runtime, tmp_path: Path) -> None:
    """`rro`: a tmpfs below the bind is read-only as well."""
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
    try:
        runtime.bundle.mount("/data", "bind", str(outer), "rbind", "rro")
        done = runtime.run("touch", "/data/inner/x")
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", str(inner)], check=True)


def test_tmpfs_takes_its_options(runtime) -> None:
    """Size and mode."""
    runtime.bundle.mount("/scratch", "tmpfs", "tmpfs", "nosuid", "nodev", "size=64k", "mode=1770")
    out = runtime.output("sh", "-c", "stat -c %a /scratch; grep ' /scratch ' /proc/mounts")
    assert out.split()[0] == "1770"
    assert "size=64k" in out
    assert "nosuid,nodev" in out


def test_a_tmpfs_copies_up_what_it_hides(runtime) -> None:
    """With `tmpcopyup`, links and modes included."""
    (runtime.bundle.rootfs / "etc/deep").mkdir()
    (runtime.bundle.rootfs / "etc/deep/file").write_text("deep\n")
    (runtime.bundle.rootfs / "etc/deep/file").chmod(0o640)
    (runtime.bundle.rootfs / "etc/link").symlink_to("deep/file")
    runtime.bundle.mount("/etc", "tmpfs", "tmpfs", "tmpcopyup", "ro")
    out = runtime.output("sh", "-c", "cat /etc/link; stat -c %a /etc/deep/file; touch /etc/x 2>/dev/null || echo ro")
    assert out.split() == ["deep", "640", "ro"]


@pytest.mark.parametrize("destination", ["/escape/made", "escape2/made", "/abs/made"])
def test_links_of_the_image_lead_nowhere_else(runtime, tmp_path: Path, destination: str) -> None:
    """A mount point behind a link that points out of the root is made inside the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (runtime.bundle.rootfs / "escape").symlink_to("../../../../../../../.." + str(outside))
    (runtime.bundle.rootfs / "escape2").symlink_to(str(outside))
    (runtime.bundle.rootfs / "abs").symlink_to("/tmp/../.." + str(outside))
    runtime.bundle.mount(destination, "tmpfs", "tmpfs", "mode=755")
    assert runtime.run("true").returncode == 0
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(("target", "kind"), [("/proc", "proc"), ("/sys", "sysfs")])
def test_proc_on_a_link_is_refused(runtime, target: str, kind: str) -> None:
    """procfs where an image, not the user, wants it."""
    (runtime.bundle.rootfs / target.strip("/")).rmdir()
    (runtime.bundle.rootfs / "elsewhere").mkdir()
    (runtime.bundle.rootfs / target.strip("/")).symlink_to("elsewhere")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "must be mounted on ordinary directory" in done.stderr
    assert "unable to start container process: error during container init: error mounting" in done.stderr


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("target", ["/proc/sys", "/proc/self/attr", "/proc/../proc/1", "/link/sys"])
def test_mounts_inside_proc_are_refused(runtime, tmp_path: Path, target: str) -> None:
    """A process that enters the container trusts /proc. A link of the image is no way around."""
    (runtime.bundle.rootfs / "link").symlink_to("proc")
    runtime.bundle.mount(target, "tmpfs", "tmpfs")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "cannot be mounted because it is inside /proc" in done.stderr


def test_a_missing_bind_source_is_told(runtime) -> None:
    """With source, place and reason."""
    runtime.bundle.mount("/data", "bind", "/no/such/source", "rbind")
    done = runtime.run("true")
    assert done.returncode == 1
    assert 'error mounting \\"/no/such/source\\" to rootfs at \\"/data\\"' in done.stderr
    assert "no such file or directory" in done.stderr


def test_masked_and_read_only_paths(runtime) -> None:
    """Masked files are empty, masked directories empty and read-only, read-only paths not writable."""
    (runtime.bundle.rootfs / "secret").mkdir()
    (runtime.bundle.rootfs / "secret/key").write_text("x")
    (runtime.bundle.rootfs / "hidden").write_text("x")
    (runtime.bundle.rootfs / "fixed").mkdir()
    runtime.bundle.linux["maskedPaths"] += ["/secret", "/hidden", "/not/there"]
    runtime.bundle.linux["readonlyPaths"] += ["/fixed", "/not/there"]
    script = "ls /secret; cat /hidden; touch /fixed/x; touch /secret/x; wc -c </proc/keys"
    done = runtime.run("sh", "-c", script)
    assert done.stdout == "0\n"
    assert done.stderr.count("Read-only file system") == 2


@pytest.mark.usefixtures("ours_only")
def test_a_mask_is_no_way_to_the_host_s_null_device(runtime) -> None:
    """chmod on a masked file changes nothing on the host."""
    runtime.bundle.capabilities("CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE")
    before = os.stat("/dev/null").st_mode
    done = runtime.run("chmod", "600", "/proc/keys")
    assert done.returncode != 0
    assert os.stat("/dev/null").st_mode == before


def test_a_read_only_root(runtime) -> None:
    """Takes no write; a tmpfs in it does."""
    runtime.bundle.config["root"]["readonly"] = True
    done = runtime.run("sh", "-c", "touch /x; touch /dev/shm/x && echo shm")
    assert done.stdout == "shm\n"
    assert "Read-only file system" in done.stderr


def test_devices_and_links(runtime) -> None:
    """The default devices, with their numbers and modes, the links, and no others."""
    script = (
        "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty; "
        "for link in fd stdin stdout stderr ptmx; do readlink $link; done; test ! -e kmsg"
    )
    lines = runtime.output("sh", "-c", script).splitlines()
    assert lines[:6] == [
        "null 1:3 666",
        "zero 1:5 666",
        "full 1:7 666",
        "random 1:8 666",
        "urandom 1:9 666",
        "tty 5:0 666",
    ]
    assert lines[6:11] == [
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ]


def test_a_device_of_the_configuration(runtime) -> None:
    """With its mode and owner; and the device rules let it be used."""
    runtime.bundle.linux["devices"] = [
        {"path": "/dev/own/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 5, "gid": 6}
    ]
    out = runtime.output("sh", "-c", "stat -c '%t:%T %a %u %g' /dev/own/full; echo x >/dev/own/full || echo full")
    assert out.splitlines() == ["1:7 640 5 6", "full"]


def test_device_rules_deny_what_they_do_not_allow(runtime) -> None:
    """A node of another device can be made, but not opened, unless a rule lets it, for what the rule names."""
    runtime.bundle.capabilities("CAP_MKNOD", "CAP_DAC_OVERRIDE")
    rules = [{"allow": False, "access": "rwm"}]
    runtime.bundle.linux["resources"] = {"devices": rules}
    script = "rm -f /tmp/fuse; mknod /tmp/fuse c 10 229; (: </tmp/fuse) && echo read; (: >/tmp/fuse) && echo write"
    done = runtime.run("sh", "-c", script)
    assert done.stdout == ""
    assert done.stderr.count("Operation not permitted") == 2
    rules.append({"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"})
    done = runtime.run("sh", "-c", script)
    assert done.stdout == "read\n"
    assert done.stderr.count("Operation not permitted") == 1


def test_no_descriptor_leaks(runtime) -> None:
    """Whatever the caller had open; those of --preserve-fds come through."""
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    try:
        for fd in extra:
            os.set_inheritable(fd, True)
        runtime.bundle.write("sh", "-c", "ls /proc/self/fd")
        done = runtime.call("run", runtime.id, close_fds=False)
        assert [int(fd) for fd in done.stdout.split()] == [0, 1, 2, 3]  # 3 is the directory that ls reads
    finally:
        for fd in extra:
            os.close(fd)


def test_preserved_descriptors_come_through(runtime, tmp_path: Path) -> None:
    """--preserve-fds 1 gives descriptor 3 to the process."""
    (tmp_path / "file").write_text("preserved\n")
    runtime.bundle.write("sh", "-c", "cat <&3")
    call = runtime.argv("run", "--preserve-fds", "1", runtime.id)
    done = subprocess.run(
        ["sh", "-c", 'exec 3<"$0"; exec "$@"', str(tmp_path / "file"), *call],
        cwd=runtime.bundle.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "preserved\n"


def test_a_preserved_descriptor_that_is_not_open_is_told(runtime) -> None:
    """Before anything is made."""
    done = runtime.run("true", flags=("--preserve-fds", "5"))
    assert done.returncode == 1
    assert "preserved-fd" in done.stderr


def test_socket_activation_variables(runtime, tmp_path: Path) -> None:
    """LISTEN_FDS of the caller reach the process, whose number is 1."""
    (tmp_path / "file").write_text("")
    script = 'export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<"$0"; exec "$@"'
    runtime.bundle.write("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; readlink /proc/self/fd/3 >/dev/null && echo open")
    done = subprocess.run(
        ["sh", "-c", script, str(tmp_path / "file"), *runtime.argv("run", runtime.id)],
        cwd=runtime.bundle.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["1", "1", "open"]


def test_no_pivot(runtime) -> None:
    """With --no-pivot the root is moved and the container works the same; no second /proc is in reach."""
    out = runtime.output("sh", "-c", "ls /; grep -c ' proc ' /proc/mounts", flags=("--no-pivot",))
    assert "bin" in out.split()


def test_cgroup_mount_shows_only_the_container_s(runtime, groups) -> None:
    """Read-only, the container's own group at the top."""
    (procs,) = groups.files(("pids/cgroup.procs", "cgroup.procs"))
    runtime.bundle.namespace("cgroup")
    out = runtime.output("sh", "-c", f"cat {procs}; mkdir {os.path.dirname(procs)}/x || echo ro")
    assert out.split()[0] == "1"
    assert out.split()[-1] == "ro"


@pytest.mark.parametrize(("word", "shared"), [("", False), ("shared", True), ("private", False)])
def test_root_propagation(runtime, word: str, shared: bool) -> None:
    """rootfsPropagation is what / has in mountinfo."""
    if shared and not runtime.ours:
        pytest.skip("older ones lose it")
    if word:
        runtime.bundle.linux["rootfsPropagation"] = word
    line = runtime.output("grep", "-m1", "/rootfs / ", "/proc/self/mountinfo")
    assert ("shared:" in line) is shared


@pytest.mark.usefixtures("ours_only")
def test_an_id_mapped_mount(runtime, tmp_path: Path) -> None:
    """A file of one user outside belongs to another inside."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("")
    os.chown(tmp_path / "data/file", 1000, 1000)
    runtime.bundle.mount("/data", "bind", str(tmp_path / "data"), "rbind", "idmap")
    mapping = [{"containerID": 1000, "hostID": 4242, "size": 1}]
    runtime.bundle.config["mounts"][-1] |= {"uidMappings": mapping, "gidMappings": mapping}
    assert runtime.output("stat", "-c", "%u %g", "/data/file") == "4242 4242"


# Limits


def test_memory_pids_and_cpu_limits(runtime, groups) -> None:
    """Are in force, and a fork beyond them fails."""
    runtime.bundle.linux["resources"] |= {
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20},
        "pids": {"limit": 5},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    }
    files = groups.files(
        ("memory/memory.limit_in_bytes", "memory.max"),
        ("memory/memory.soft_limit_in_bytes", "memory.low"),
        ("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
        ("pids/pids.max", "pids.max"),
        ("cpu/cpu.shares", "cpu.weight"),
        ("cpu/cpu.cfs_quota_us", "cpu.max"),
    )
    done = runtime.run("sh", "-c", f"cat {' '.join(files)}; for i in 1 2 3 4 5 6 7; do sleep 1 & done")
    swap, cpu = ("0", ["20", "50000 100000"]) if groups.unified else (str(64 << 20), ["512", "50000"])
    assert done.stdout.splitlines() == [str(64 << 20), str(32 << 20), swap, "5", *cpu]
    assert "can't fork" in done.stderr


def test_processors_and_memory_nodes(runtime, groups) -> None:
    """Are those of the cpuset."""
    if "cpuset" not in groups.controllers():
        pytest.skip("the kernel has no cpusets")
    runtime.bundle.linux["resources"] |= {"cpu": {"cpus": "0", "mems": "0"}}
    script = (
        f"cat {' '.join(groups.files(*[(f'cpuset/cpuset.{name}', f'cpuset.{name}') for name in ('cpus', 'mems')]))}"
    )
    out = runtime.output("sh", "-c", f"{script}; grep Cpus_allowed_list /proc/self/status")
    assert out.split() == ["0", "0", "Cpus_allowed_list:", "0"]


def test_update_changes_limits(runtime, groups, tmp_path: Path) -> None:
    """By flags, by a file, by standard input."""
    runtime.detached("sleep", "100")
    runtime.call("update", "--memory", "50m", "--pids-limit", "10", runtime.id, check=True)
    read = ("cat", *groups.files(("memory/memory.limit_in_bytes", "memory.max"), ("pids/pids.max", "pids.max")))
    assert runtime.exec(*read).stdout.split() == [str(50 << 20), "10"]
    (tmp_path / "r.json").write_text(json.dumps({"memory": {"limit": 60 << 20, "swap": 0}, "cpu": {}}))
    runtime.call("update", "--resources", str(tmp_path / "r.json"), runtime.id, check=True)
    assert runtime.exec(*read).stdout.split() == [str(60 << 20), "10"]
    with (tmp_path / "r.json").open() as file:
        (tmp_path / "r.json").write_text(json.dumps({"pids": {"limit": 20}}))
        runtime.call("update", "--resources", "-", runtime.id, check=True, stdin=file)
    assert runtime.exec(*read).stdout.split() == [str(60 << 20), "20"]


def test_memory_and_swap_are_updated_in_the_order_the_kernel_takes(runtime, groups) -> None:
    """Up, and down again."""
    runtime.bundle.linux["resources"] |= {"memory": {"limit": 64 << 20, "swap": 64 << 20}}
    runtime.detached("sleep", "100")
    files = groups.files(
        ("memory/memory.limit_in_bytes", "memory.max"), ("memory/memory.memsw.limit_in_bytes", "memory.swap.max")
    )
    for size in (128 << 20, 32 << 20):
        runtime.call("update", "--memory", str(size), "--memory-swap", str(size), runtime.id, check=True)
        both = [str(size), "0" if groups.unified else str(size)]  # v2 limits swap alone
        assert runtime.exec("cat", *files).stdout.split() == both


def test_a_limit_without_its_controller_is_an_error(runtime, groups) -> None:
    """Named; without the limit the missing controller is none."""
    if "hugetlb" in groups.controllers():
        pytest.skip("this machine has hugetlb")
    runtime.bundle.linux["resources"] |= {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}
    done = runtime.run("true")
    assert done.returncode == 1
    assert "cannot set hugetlb limit: container could not join or create cgroup" in done.stderr


def test_an_absolute_cgroups_path(runtime, groups) -> None:
    """Is from the root of each hierarchy; `..` does not lead above it."""
    runtime.bundle.linux["cgroupsPath"] = f"/../gantry-test-parent/../{runtime.id}"
    runtime.bundle.linux["namespaces"] = [n for n in runtime.bundle.linux["namespaces"] if n["type"] != "cgroup"]
    assert groups.of(runtime.output("cat", "/proc/self/cgroup")) == f"/{runtime.id}"


@pytest.mark.usefixtures("ours_only")  # older ones only warn
def test_a_cgroup_in_use_is_refused(runtime) -> None:
    """Two containers in one group could not be told apart."""
    runtime.bundle.linux["cgroupsPath"] = f"/{runtime.id}"
    runtime.detached("sleep", "100")
    done = runtime.call("run", f"{runtime.id}-second")
    assert done.returncode == 1
    assert "container's cgroup is not empty" in done.stderr


def test_stats_are_one_line_of_json(runtime) -> None:
    """With what callers read."""
    runtime.detached("sleep", "100")
    line = json.loads(runtime.call("events", "--stats", runtime.id, check=True).stdout)
    assert (line["type"], line["id"]) == ("stats", runtime.id)
    assert line["data"]["pids"]["current"] == 1
    assert line["data"]["memory"]["usage"]["usage"] > 0
    assert line["data"]["cpu"]["usage"]["total"] > 0


def test_running_out_of_memory_is_an_event(runtime) -> None:
    """`events` prints a line of type oom."""
    runtime.bundle.linux["resources"] |= {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    runtime.bundle.mount("/big", "tmpfs", "tmpfs", "size=64m")
    runtime.detached("sleep", "100")
    events = subprocess.Popen(
        runtime.argv("events", "--interval", "60s", runtime.id), stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 10
        while "anon_inode:[eventfd]" not in _links(events.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        runtime.exec("sh", "-c", "cat /dev/zero | head -c 60000000 >/big/file")
        assert events.stdout is not None
        assert json.loads(events.stdout.readline())["type"] == "oom"
    finally:
        events.kill()
        events.wait()


def _links(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        return []
