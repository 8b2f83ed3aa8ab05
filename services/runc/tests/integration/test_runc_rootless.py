"""Containers of an ordinary user: nobody, with a home below /tmp for the time of a test."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USER = 65534
pytestmark = pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")


class Home:
    """Where the user's bundle and containers are; the calls are the user's."""

    def __init__(self, path: Path, runtime) -> None:
        self.path = path
        self.bundle = runtime.bundle
        self.runtime = runtime
        self.run_directory = path / "run"
        self.prefix: list[str] = []

    def write(self, *args: str) -> None:
        """config.json, as `spec --rootless` has it, for these arguments."""
        self.bundle.write(*args)
        for top, directories, files in os.walk(self.path):
            for name in (*directories, *files):
                os.chown(os.path.join(top, name), USER, USER, follow_symlinks=False)

    def call(self, *args: str, **rest) -> subprocess.CompletedProcess[str]:
        """Call the runtime as the user."""
        argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", self.runtime.program, *args]
        rest.setdefault("stdout", subprocess.PIPE)
        rest.setdefault("stderr", subprocess.PIPE)
        return subprocess.run(
            [*self.prefix, *argv],
            cwd=self.bundle.path,
            env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(self.run_directory)},
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
            **rest,
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`run` in the foreground."""
        self.write(*args)
        return self.call("run", self.runtime.id)


@pytest.fixture
def home(runtime) -> Iterator[Home]:
    """The user's home, with the bundle moved into it."""
    reach = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", "test", "-r", runtime.program]
    if subprocess.run(reach, check=False).returncode != 0:
        pytest.skip(f"an ordinary user cannot reach {runtime.program}")
    path = Path(tempfile.mkdtemp(prefix="gantry-rootless-"))
    try:
        path.chmod(0o755)
        shutil.move(runtime.bundle.path, path / "bundle")
        runtime.bundle.path = path / "bundle"
        runtime.bundle.rootfs = path / "bundle/rootfs"
        made = Home(path, runtime)
        made.run_directory.mkdir(mode=0o700)
        os.chown(path / "bundle", USER, USER)
        os.chown(made.run_directory, USER, USER)
        (path / "bundle/config.json").unlink()
        assert made.call("spec", "--rootless").returncode == 0
        changed = json.loads((path / "bundle/config.json").read_text())
        changed["process"] |= {"terminal": False, "env": ["PATH=/bin"]}
        changed["process"]["rlimits"] = []
        changed["root"]["readonly"] = False
        runtime.bundle.config = changed
        yield made
        made.call("delete", "--force", runtime.id)
        assert not list(made.run_directory.glob("runc/*"))
    finally:
        shutil.rmtree(path)


def test_a_user_is_root_in_a_container_of_his_own(home: Home) -> None:
    """With his own id mapped, groups that can not be changed, and his containers kept in his own directory."""
    script = "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups; echo $$; hostname"
    done = home.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "0", str(USER), "1", "deny", "1", "runc"]
    assert (home.run_directory / "runc").stat().st_mode & 0o7777 == 0o1700


def test_the_life_of_a_container(home: Home) -> None:
    """Created, started, entered, listed, killed and deleted by the user."""
    home.write("sleep", "100")
    identity = home.runtime.id
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert home.call("create", identity, **quiet).returncode == 0
    assert json.loads(home.call("state", identity).stdout)["status"] == "created"
    assert home.call("start", identity).returncode == 0
    done = home.call(
        "exec", identity, "sh", "-c", "id -u; cat /proc/1/cmdline | tr '\\0' ' '; readlink /proc/self/ns/user"
    )
    assert done.returncode == 0, done.stderr
    user, *words, namespace = done.stdout.split()
    state = json.loads(home.call("state", identity).stdout)
    assert (user, words) == ("0", ["sleep", "100"])
    assert namespace == os.readlink(f"/proc/{state['pid']}/ns/user")
    assert os.stat(f"/proc/{state['pid']}").st_uid == USER
    assert [each["id"] for each in json.loads(home.call("list", "--format", "json").stdout)] == [identity]
    assert home.call("exec", identity, "sh", "-c", "exit 7").returncode == 7
    assert home.call("kill", identity, "KILL").returncode == 0
    assert home.call("delete", "--force", identity).returncode == 0


def test_what_a_user_can_not_have(home: Home) -> None:
    """Is refused: no user namespace, other groups, limits, a cgroup of root's."""
    linux, process = home.bundle.linux, home.bundle.process
    process["user"]["additionalGids"] = [5]
    done = home.run("true")
    assert done.returncode == 1
    assert "cannot set any additional groups in a rootless container" in done.stderr
    del process["user"]["additionalGids"]
    linux["cgroupsPath"] = "/gantry-test-rootless"
    done = home.run("true")
    assert done.returncode == 1
    assert re.search(r"mkdir /sys/fs/cgroup/.*gantry-test-rootless: permission denied", done.stderr)
    del linux["cgroupsPath"]
    linux["resources"] = {"memory": {"limit": 100 << 20}}
    done = home.run("true")
    assert done.returncode == 1
    assert "cannot set memory limit: container could not join or create cgroup" in done.stderr
    del linux["resources"]
    mappings = {key: linux.pop(key) for key in ("uidMappings", "gidMappings")}
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "user"]
    done = home.run("true")
    assert done.returncode == 1
    assert "rootless container requires user namespaces" in done.stderr
    linux.update(mappings)


def test_device_rules_of_a_user_are_let_be(home: Home) -> None:
    """Every engine gives them, and only root of the machine can set them."""
    home.bundle.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    done = home.run("echo", "fine")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.skipif(not shutil.which("newuidmap") or not shutil.which("unshare"), reason="needs newuidmap and unshare")
def test_many_ids_by_newuidmap(home: Home, tmp_path: Path) -> None:
    """Those that /etc/subuid grants; others are refused in the tool's words."""
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text(f"nobody:200000:1000\n{USER}:200000:1000\n")
    script = f'mount --bind {tmp_path}/subuid /etc/subuid && mount --bind {tmp_path}/subgid /etc/subgid && exec "$@"'
    home.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if not Path("/etc/subuid").exists():
        pytest.skip("there is no /etc/subuid to put another one over")
    linux = home.bundle.linux
    for key in ("uidMappings", "gidMappings"):
        linux[key] = [{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 200000, "size": 1000}]
    home.bundle.process["user"] = {"uid": 7, "gid": 7}
    done = home.run("sh", "-c", "id -u; cat /proc/self/setgroups; sed -n 2p /proc/self/uid_map")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "allow", "1", "200000", "1000"]
    linux["uidMappings"][1]["hostID"] = 300000
    done = home.run("true")
    assert done.returncode == 1
    assert "newuidmap" in done.stderr


@pytest.mark.usefixtures("ours_only")
def test_a_container_without_groups_is_not_paused(home: Home) -> None:
    """And says why; its processes are those of its pid namespace."""
    home.write("sleep", "100")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert home.call("run", "-d", home.runtime.id, **quiet).returncode == 0
    done = home.call("pause", home.runtime.id)
    assert done.returncode == 1
    assert "cannot toggle freezer: cgroups not configured for container" in done.stderr
    pid = json.loads(home.call("state", home.runtime.id).stdout)["pid"]
    assert json.loads(home.call("ps", "--format", "json", home.runtime.id).stdout) == [pid]
    fd = os.pidfd_open(pid)
    try:
        assert home.call("kill", "--all", home.runtime.id, "KILL").returncode == 0
        assert select.select([fd], [], [], 30)[0], "the process did not end"
    finally:
        os.close(fd)


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_root_of_a_user_namespace(home: Home) -> None:
    """As engines of ordinary users call: root already, in a namespace that they made, over nothing of the machine."""
    config = home.bundle.config
    for key in ("uidMappings", "gidMappings"):
        del config["linux"][key]
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "user"]
    config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    home.write("sleep", "100")
    identity, program = home.runtime.id, home.runtime.program
    script = f"{program} run -d {identity} </dev/null >/dev/null && {program} exec {identity} id; "
    script += f"{program} delete --force {identity}"
    argv = [
        "setpriv",
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "--",
        "unshare",
        "-Urm",
        "sh",
        "-c",
        script,
    ]
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home.run_directory)}
    done = subprocess.run(
        argv, cwd=home.bundle.path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uid=0(root) gid=0"), done.stderr
