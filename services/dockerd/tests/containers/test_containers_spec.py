"""The runtime specification of a container, against what the real engine gives for the same options."""

from __future__ import annotations

from typing import Any

import pytest

from dockerd import errors
from dockerd.config import Config
from dockerd.containers import capabilities, create, devices, mounts, seccomp, spec
from dockerd.containers.host import Host
from dockerd.containers.model import Container, MountPoint
from dockerd.containers.users import Identity

ID = "ab" * 32


def container(host: Host, points: list[MountPoint] | None = None, **body: Any) -> Container:
    """A container made from a request."""
    request = create.parse({"Image": "busybox", "Cmd": ["sleep", "100"], **body})
    settings = create.settle(request, {"Env": ["FOO=bar"]}, ID, Config(), host)
    return Container(
        id=ID,
        name="c1",
        created=1,
        image="busybox",
        image_id="sha256:1",
        chain_id="sha256:c",
        config=settings.config,
        host_config=settings.host_config,
        path=settings.path,
        args=settings.args,
        mounts=points or [],
        snapshotter="overlayfs",
        root=f"/c/{ID}",
    )


def build(host: Host, points: list[MountPoint] | None = None, around: Any = None, **body: Any) -> dict[str, Any]:
    """Its specification."""
    surroundings = around or spec.Surroundings(user=Identity(0, 0, (0,)), network_namespace="/netns/x")
    return spec.build(container(host, points, **body), surroundings)


def destinations(document: dict[str, Any]) -> list[str]:
    """Where it mounts, in order."""
    return [mount["destination"] for mount in document["mounts"]]


def test_a_plain_container_is_the_real_engines(host: Host) -> None:
    """Process, namespaces, mounts, paths and device rules as recorded from it."""
    document = build(host)
    process = document["process"]
    assert process["args"] == ["sleep", "100"]
    assert process["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"HOSTNAME={ID[:12]}",
        "FOO=bar",
    ]
    assert process["cwd"] == "/"
    assert process["user"] == {"uid": 0, "gid": 0, "additionalGids": [0]}
    assert process["capabilities"]["bounding"] == list(capabilities.DEFAULT)
    assert "ambient" not in process["capabilities"]
    assert document["hostname"] == ID[:12]
    assert document["linux"]["cgroupsPath"] == f"/docker/{ID}"
    assert document["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "network", "path": "/netns/x"},
        {"type": "uts"},
        {"type": "pid"},
        {"type": "ipc"},
    ]
    assert destinations(document) == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
    ]
    assert document["linux"]["maskedPaths"][0] == "/proc/asound"
    assert document["linux"]["readonlyPaths"][0] == "/proc/bus"
    assert document["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert document["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert document["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"


def test_privileged_lifts_every_fence(host: Host) -> None:
    """All capabilities, no seccomp, nothing masked, every device, a writable /sys."""
    document = build(host, HostConfig={"Privileged": True})
    assert document["process"]["capabilities"]["effective"] == list(capabilities.available())
    assert "seccomp" not in document["linux"]
    assert document["linux"]["maskedPaths"] == []
    assert document["linux"]["readonlyPaths"] == []
    assert document["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    (sysfs,) = [mount for mount in document["mounts"] if mount["destination"] == "/sys"]
    assert "ro" not in sysfs["options"]


def test_host_modes_leave_namespaces_out(host: Host) -> None:
    """pid, ipc, uts and network of the host; the cgroup namespace only when asked for."""
    modes = {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "NetworkMode": "host", "CgroupnsMode": "private"}
    around = spec.Surroundings(user=Identity(0, 0), shm_path="/dev/shm")
    document = build(host, around=around, HostConfig=modes)
    assert [entry["type"] for entry in document["linux"]["namespaces"]] == ["mount", "cgroup"]
    assert "hostname" not in document
    assert "sysctl" not in document["linux"]
    (shm,) = [mount for mount in document["mounts"] if mount["destination"] == "/dev/shm"]
    assert (shm["type"], shm["source"]) == ("bind", "/dev/shm")


def test_other_containers_namespaces_are_joined_by_path(host: Host) -> None:
    """pid and ipc."""
    around = spec.Surroundings(user=Identity(0, 0), pid_namespace="/proc/9/ns/pid", ipc_namespace="/proc/9/ns/ipc")
    document = build(host, around=around, HostConfig={"PidMode": "container:x", "IpcMode": "container:x"})
    assert {"type": "pid", "path": "/proc/9/ns/pid"} in document["linux"]["namespaces"]
    assert {"type": "ipc", "path": "/proc/9/ns/ipc"} in document["linux"]["namespaces"]


def test_limits_become_resources(host: Host) -> None:
    """Memory, processors, processes."""
    limits = {
        "Memory": 64 << 20,
        "MemoryReservation": 32 << 20,
        "MemorySwappiness": 5,
        "NanoCpus": 500_000_000,
        "CpuShares": 512,
        "CpusetCpus": "0-1",
        "PidsLimit": 50,
        "BlkioWeight": 500,
    }
    found = build(host, HostConfig=limits)["linux"]["resources"]
    assert found["memory"] == {
        "limit": 64 << 20,
        "reservation": 32 << 20,
        "swap": 128 << 20,
        "swappiness": 5,
    }
    assert found["cpu"] == {"shares": 512, "period": 100_000, "quota": 50_000, "cpus": "0-1"}
    assert found["pids"] == {"limit": 50}
    assert found["blockIO"] == {"weight": 500}


def test_options_of_the_process(host: Host) -> None:
    """Terminal, init, limits, no new privileges, OOM score, user."""
    around = spec.Surroundings(user=Identity(1000, 1001, (1001, 10)), init="/usr/bin/docker-init")
    options = {
        "Init": True,
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": -1}],
        "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],
        "OomScoreAdj": 100,
        "ReadonlyRootfs": True,
        "ConsoleSize": [24, 80],
        "Annotations": {"a": "b"},
        "CgroupParent": "/foo",
    }
    document = build(host, around=around, Tty=True, WorkingDir="/tmp", Domainname="example", HostConfig=options)
    process = document["process"]
    assert process["args"] == ["/sbin/docker-init", "--", "sleep", "100"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in process["env"]
    assert process["noNewPrivileges"] is True
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": (1 << 64) - 1, "soft": 100}]
    assert process["oomScoreAdj"] == 100
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 10]}
    assert document["root"]["readonly"] is True
    assert document["annotations"] == {"a": "b"}
    assert document["linux"]["cgroupsPath"] == f"/foo/{ID}"
    assert document["linux"]["sysctl"]["kernel.domainname"] == "example"
    assert "seccomp" not in document["linux"]
    assert "/sbin/docker-init" in destinations(document)


def test_capabilities_are_added_and_dropped(host: Host) -> None:
    """In any spelling; ALL means those that the engine has."""
    document = build(host, HostConfig={"CapAdd": ["net_admin"], "CapDrop": ["CAP_MKNOD"]})
    bounding = document["process"]["capabilities"]["bounding"]
    assert "CAP_NET_ADMIN" in bounding
    assert "CAP_MKNOD" not in bounding
    nothing = build(host, HostConfig={"CapDrop": ["ALL"], "CapAdd": ["CHOWN"]})
    assert nothing["process"]["capabilities"]["bounding"] == ["CAP_CHOWN"]
    everything = build(host, HostConfig={"CapAdd": ["ALL"], "CapDrop": ["SYS_ADMIN"]})
    granted = everything["process"]["capabilities"]["bounding"]
    assert granted == [name for name in capabilities.available() if name != "CAP_SYS_ADMIN"]


def test_a_device_gets_a_node_and_a_rule(host: Host) -> None:
    """And device cgroup rules are added as they are."""
    device = devices.Device("/dev/zz", "c", 1, 5, 0o666, 0, 0, "r")
    around = spec.Surroundings(user=Identity(0, 0), devices=[device])
    linux = build(host, around=around, HostConfig={"DeviceCgroupRules": ["c 42:* rmw"]})["linux"]
    assert linux["devices"][0]["path"] == "/dev/zz"
    assert linux["resources"]["devices"][-2:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
        {"allow": True, "type": "c", "major": 42, "minor": -1, "access": "rmw"},
    ]


def test_own_mounts_replace_default_ones_and_come_by_depth(host: Host) -> None:
    """A mount must not hide one that was made before it."""
    points = [
        MountPoint(type="bind", source="/a", destination="/x/y"),
        MountPoint(type="bind", source="/b", destination="/x"),
        MountPoint(type="bind", source="/c", destination="/dev/shm"),
    ]
    around = spec.Surroundings(user=Identity(0, 0), network_files=[("/c/hosts", "/etc/hosts")])
    found = destinations(build(host, points, around))
    assert found.count("/dev/shm") == 1
    assert found.index("/x") < found.index("/x/y")
    assert "/etc/hosts" in found


def test_a_dev_of_ones_own_is_left_alone(host: Host) -> None:
    """Nothing of the default ones is mounted below it."""
    found = destinations(build(host, [MountPoint(type="bind", source="/dev", destination="/dev")]))
    assert [path for path in found if path.startswith("/dev")] == ["/dev"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", ("bind", "/a", "/b", True, "rprivate")),
        ("/a:/b:ro", ("bind", "/a", "/b", False, "rprivate")),
        ("/a:/b:ro,rslave", ("bind", "/a", "/b", False, "rslave")),
        ("/a/../c:/b/", ("bind", "/c", "/b", True, "rprivate")),
    ],
)
def test_binds(text: str, expected: tuple[object, ...]) -> None:
    """Source, destination, mode and propagation."""
    point = mounts.parse_bind(text)
    assert (point.type, point.source, point.destination, point.rw, point.propagation) == expected


def test_a_bind_of_a_name_is_a_volume() -> None:
    """With the mode that the real engine shows; a destination alone is an anonymous one."""
    point = mounts.parse_bind("data:/d:nocopy")
    assert (point.type, point.name, point.mode, point.copy_up) == ("volume", "data", "nocopy", False)
    assert mounts.parse_bind("data:/d").mode == "z"
    assert mounts.parse_bind("/d").anonymous


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
        ("/a:b", "mount path must be absolute"),
        ("/a:/", "destination can't be '/'"),
        ("/a:/b:often", "invalid mode: often"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("../a:/b", "includes invalid characters for a local volume name"),
        (":/b", "invalid volume specification"),
    ],
)
def test_binds_that_make_no_sense(text: str, words: str) -> None:
    """The text is named."""
    with pytest.raises(errors.InvalidParameter, match=words):
        mounts.parse_bind(text)


def test_mount_requests_are_checked(tmp_path: Any, host: Host) -> None:
    """--mount needs an existing source; options of another type are refused."""
    missing = {"Mounts": [{"Type": "bind", "Source": f"{tmp_path}/x", "Target": "/m"}]}
    for mounted, words in (
        (missing, "bind source path does not exist"),
        ({"Mounts": [{"Type": "bind", "Source": "/", "Target": "/m", "TmpfsOptions": {}}]}, "TmpfsOptions must not"),
        ({"Mounts": [{"Type": "odd", "Target": "/m"}]}, "mount type unknown"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "m"}]}, "mount path must be absolute"),
    ):
        with pytest.raises(errors.InvalidParameter, match=words):
            mounts.plan(container(host, HostConfig=mounted).host_config, (), {})


def test_a_tmpfs_has_its_options(host: Host) -> None:
    """Size in bytes, mode in octal."""
    request = {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1024, "Mode": 0o700}}
    points = mounts.plan(container(host, HostConfig={"Mounts": [request]}).host_config, (), {})
    (mount,) = mounts.oci_mounts(points)
    assert mount["options"] == ["noexec", "nosuid", "nodev", "size=1024", "mode=700", "rprivate"]


def test_one_destination_has_one_mount(host: Host) -> None:
    """Explicit before inherited before the image's; twice the same explicitly is an error."""
    host_config = container(host, HostConfig={"Binds": ["/a:/d"], "VolumesFrom": ["other:ro"]}).host_config
    inherited = {
        "other": [
            MountPoint(type="volume", name="v", destination="/d"),
            MountPoint(type="volume", name="w", destination="/e"),
        ]
    }
    points = mounts.plan(host_config, ["/d", "/f"], inherited)
    assert [(point.destination, point.type, point.rw) for point in points] == [
        ("/d", "bind", True),
        ("/e", "volume", False),
        ("/f", "volume", True),
    ]
    with pytest.raises(errors.InvalidParameter, match="Duplicate mount point: /d"):
        mounts.plan(container(host, HostConfig={"Binds": ["/a:/d", "/b:/d"]}).host_config, (), {})


def test_read_only_binds_are_so_to_the_bottom() -> None:
    """Mounts below the source too, unless that is not wanted."""
    point = MountPoint(type="bind", source="/a", destination="/b", rw=False, propagation="rprivate")
    assert mounts.oci_mounts([point])[0]["options"] == ["rbind", "rro", "rprivate"]


def _rules(profile: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in profile["syscalls"] if name in rule["names"]]


def test_the_default_profile_guards_what_capabilities_guard() -> None:
    """mount only with CAP_SYS_ADMIN; without it no new namespaces, and clone3 does not exist."""
    plain = seccomp.default_profile(list(capabilities.DEFAULT), "x86_64")
    assert not _rules(plain, "mount")
    assert not _rules(plain, "bpf")
    assert not _rules(plain, "keyctl")
    assert _rules(plain, "chroot")
    assert _rules(plain, "clone3") == [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    assert _rules(plain, "clone")[0]["args"][0]["value"] == 0x7E020000
    admin = seccomp.default_profile(["CAP_SYS_ADMIN"], "x86_64")
    assert _rules(admin, "mount")
    assert _rules(admin, "clone")[0].get("args") is None


def test_the_default_profile_keeps_from_the_hypervisor() -> None:
    """No AF_VSOCK socket."""
    (rule,) = _rules(seccomp.default_profile([], "x86_64"), "socket")
    assert rule["args"] == [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]


def test_a_profile_of_the_users_is_reduced_to_what_applies() -> None:
    """includes and excludes by capability; the rest is passed on."""
    text = (
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":['
        '{"names":["read"],"action":"SCMP_ACT_ALLOW"},'
        '{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},'
        '{"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}'
    )
    profile = seccomp.profile_for(text, [])
    assert profile is not None
    assert [rule["names"] for rule in profile["syscalls"]] == [["read"], ["clone"]]
    with pytest.raises(errors.InvalidParameter, match="Decoding seccomp profile failed"):
        seccomp.profile_for("{", [])


def test_a_variable_without_a_value_is_taken_away(host: Host) -> None:
    """``-e NAME`` of a variable that the client does not have."""
    made = container(host, Env=["A=1", "PATH"])
    assert spec.environment(made, ["B=2", "A"]) == [f"HOSTNAME={ID[:12]}", "FOO=bar", "B=2"]
