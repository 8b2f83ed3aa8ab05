from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, NotFound, Unimplemented, Unknown
from containerd.runtime.bootstrap import (
    Bootstrap,
    Exit,
    ShimBinary,
    parse_bootstrap,
    read_bootstrap,
    resolve_binary,
    write_bootstrap,
)
from containerd.runtime.bundle import Bundle, Bundles
from gantry.linux.mount import MS_BIND, mount


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable} -IS\nimport os, sys, time\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _bundle(tmp_path: Path) -> Bundle:
    return Bundles(str(tmp_path / "state"), str(tmp_path / "root")).create("ns", "web", b"{}")


def test_a_runtime_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two parts of the name make the program's name; an absolute path is taken as it is."""
    program = _script(tmp_path / "containerd-shim-foo-v9", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_binary("io.containerd.foo.v9") == program
    assert resolve_binary(program) == program
    with pytest.raises(NotFound, match=r'runtime "io.containerd.bar.v1" binary not installed "containerd-shim-bar-v1"'):
        resolve_binary("io.containerd.bar.v1")
    with pytest.raises(NotFound, match=r"invalid custom binary path"):
        resolve_binary("/nowhere/shim")
    for name in ("", "foo", "a/b.v1", "io..v1", "io.containerd.$(id).v1", "../x.v1"):
        with pytest.raises(InvalidArgument, match=r"runtime name"):
            resolve_binary(name)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"unix:///run/s/1\n", Bootstrap(2, "unix:///run/s/1")),
        (b'{"version":3,"address":"unix:///s","protocol":"ttrpc"}', Bootstrap(3, "unix:///s")),
        (b'{"version":2,"address":"unix:///s"}', Bootstrap(2, "unix:///s")),
    ],
)
def test_both_bootstrap_replies_are_read(output: bytes, expected: Bootstrap) -> None:
    """A bare address is the older protocol."""
    assert parse_bootstrap(output) == expected


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}', Unimplemented, r"unsupported shim version \(4\)"),
        (b'{"version":3,"address":"unix:///s","protocol":"grpc"}', Unimplemented, 'unexpected protocol: "grpc"'),
        (b'{"version":3', Unknown, "cannot be read"),
        (b"", Unknown, "no address"),
        (b"warning: something", Unknown, "no address"),
    ],
)
def test_other_replies_are_refused(output: bytes, error: type[Exception], message: str) -> None:
    """What cannot be used is said at once, not at the first call."""
    with pytest.raises(error, match=message):
        parse_bootstrap(output)


def test_start_tells_the_shim_what_containerd_tells_it(tmp_path: Path) -> None:
    """argv, working directory, environment and the options on standard input."""
    program = _script(
        tmp_path / "shim",
        "sys.stderr.write(' '.join(sys.argv[1:3] + sys.argv[-3:]) + '\\n')\n"
        "sys.stderr.write(' '.join([os.getcwd(), os.environ['TTRPC_ADDRESS'], os.environ['NAMESPACE']]) + '\\n')\n"
        "sys.stderr.write(repr(sys.stdin.buffer.read()))\nsys.exit(3)",
    )
    bundle = _bundle(tmp_path)
    binary = ShimBinary(program, "/c.sock", "/c.sock.ttrpc", "/s", debug=True)
    with pytest.raises(Unknown) as caught:
        asyncio.run(binary.start(bundle, AnyValue("containerd.runc.v1.Options", b"\x01"), 10))
    lines = str(caught.value).splitlines()
    assert lines[0] == "-namespace ns web -debug start"
    assert lines[1] == f"{bundle.path} /c.sock.ttrpc ns"
    assert "containerd.runc.v1.Options" in lines[2]
    assert lines[2].endswith(": exit status 3")


def test_delete_reads_the_reply(tmp_path: Path) -> None:
    """The reply is one protobuf message; what is on standard error is only a warning."""
    program = _script(
        tmp_path / "shim", "sys.stderr.write('careful')\nsys.stdout.buffer.write(bytes.fromhex('082a108901'))"
    )
    exit_ = asyncio.run(ShimBinary(program, "/c", "/t", "/s").delete(_bundle(tmp_path), 10))
    assert exit_ == Exit(status=137, exited_at=0, pid=42)


def test_a_shim_that_hangs_is_killed(tmp_path: Path) -> None:
    """The deadline holds, and the process is gone."""
    mark = tmp_path / "pid"
    program = _script(tmp_path / "shim", f"open({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")

    async def work() -> None:
        with pytest.raises(DeadlineExceeded, match=r"no reply within 1 s"):
            await ShimBinary(program, "/c", "/t", "/s").info(None, 1)
        pid = int(mark.read_text())
        for _ in range(500):
            if not os.path.exists(f"/proc/{pid}"):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the shim still runs")

    asyncio.run(work())


def test_a_bundle_is_all_or_nothing(tmp_path: Path) -> None:
    """What the shim needs is there; a second bundle of the name is refused; a bad spec leaves nothing."""
    bundles = Bundles(str(tmp_path / "state"), str(tmp_path / "root"))
    bundle = bundles.create("ns", "web", b'{"ociVersion":"1"}')
    assert sorted(os.listdir(bundle.path)) == ["config.json", "rootfs", "work"]
    assert os.path.realpath(bundle.file("work")) == str(tmp_path / "root" / "ns" / "web")
    assert os.stat(bundle.path).st_mode & 0o777 == 0o700
    with pytest.raises(AlreadyExists):
        bundles.create("ns", "web", b"{}")
    with pytest.raises(InvalidArgument, match=r"spec is not JSON"):
        bundles.create("ns", "bad", b"{")
    with pytest.raises(InvalidArgument, match=r"invalid task id"):
        bundles.create("ns", "../bad", b"{}")
    assert [found.id for found in bundles.all()] == ["web"]
    bundle.delete()
    bundle.delete()
    assert list(bundles.all()) == []
    assert os.listdir(tmp_path / "root" / "ns") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another group")
def test_the_root_of_a_user_namespace_gets_into_its_bundle(tmp_path: Path) -> None:
    """The group that root in the container is mapped to may pass, nobody else."""
    spec = b'{"linux":{"gidMappings":[{"containerID":0,"hostID":100000,"size":65536}]}}'
    bundle = Bundles(str(tmp_path / "state"), str(tmp_path / "root")).create("ns", "web", spec)
    status = os.stat(bundle.path)
    assert (status.st_gid, status.st_mode & 0o777) == (100000, 0o710)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_mounts_are_undone_and_data_is_kept(tmp_path: Path) -> None:
    """What is still mounted in a bundle is unmounted first: its content belongs to somebody else."""
    data = tmp_path / "da ta"
    data.mkdir()
    (data / "file").write_text("precious")
    bundle = Bundles(str(tmp_path / "st ate"), str(tmp_path / "root")).create("ns", "web", b"{}")
    mount(str(data), bundle.file("rootfs"), flags=MS_BIND)
    mount(str(data), bundle.file("rootfs"), flags=MS_BIND)
    bundle.delete()
    assert not os.path.exists(bundle.path)
    assert (data / "file").read_text() == "precious"
    assert str(tmp_path).replace(" ", "\\040") not in Path("/proc/self/mountinfo").read_text()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """A removal that was cut short is finished, and work without a bundle goes too."""
    bundles = Bundles(str(tmp_path / "state"), str(tmp_path / "root"))
    bundles.create("ns", "web", b"{}")
    (tmp_path / "state" / "ns" / ".old" / "rootfs").mkdir(parents=True)
    (tmp_path / "root" / "ns" / "gone" / "deep").mkdir(parents=True)
    assert [bundle.id for bundle in bundles.all()] == ["web"]
    bundles.remove_orphaned_work()
    assert os.listdir(tmp_path / "state" / "ns") == ["web"]
    assert os.listdir(tmp_path / "root" / "ns") == ["web"]


def test_a_shim_is_found_again_by_either_file(tmp_path: Path) -> None:
    """bootstrap.json is written by daemons, address by older shims; a bundle without either had no shim."""
    bundle = _bundle(tmp_path)
    assert read_bootstrap(bundle) is None
    bundle.write("address", "unix:///old")
    assert read_bootstrap(bundle) == Bootstrap(2, "unix:///old")
    write_bootstrap(bundle, Bootstrap(3, "unix:///new"))
    assert read_bootstrap(bundle) == Bootstrap(3, "unix:///new")
    assert not bundle.exited()
    bundle.mark_exited()
    assert bundle.exited()
