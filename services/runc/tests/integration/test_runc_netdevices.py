"""Devices that move, in network namespaces of the test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.usefixtures("ours_only"),  # the last release of another runtime may not know them yet
    pytest.mark.skipif(not shutil.which("ip") or not shutil.which("nsenter"), reason="needs ip and nsenter"),
]


class Namespace:
    """A network namespace with a name."""

    def __init__(self) -> None:
        self.name = f"gantry-{uuid.uuid4().hex[:8]}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)

    def ip(self, *args: str) -> str:
        """Call ip(8) in there."""
        return subprocess.run(["ip", "-n", self.name, *args], check=True, capture_output=True, text=True).stdout

    def addresses(self, device: str) -> set[str]:
        """Addresses of a device, with their prefix lengths."""
        (found,) = json.loads(self.ip("-j", "address", "show", "dev", device))
        return {f"{each['local']}/{each['prefixlen']}" for each in found["addr_info"] if each["scope"] == "global"}


@pytest.fixture
def host() -> Iterator[Namespace]:
    """What stands for the host, with a device `outer0`."""
    made = Namespace()
    made.ip("link", "add", "outer0", "type", "veth", "peer", "name", "peer0")
    yield made
    subprocess.run(["ip", "netns", "delete", made.name], check=True)


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A namespace for the container to join."""
    made = Namespace()
    yield made
    subprocess.run(["ip", "netns", "delete", made.name], check=True)


def run_in(runtime, host: Namespace, *args: str) -> subprocess.CompletedProcess[str]:
    """`run`, from the namespace that stands for the host."""
    runtime.bundle.write(*args)
    argv = ["nsenter", f"--net={host.path}", "--", *runtime.argv("run", runtime.id)]
    return subprocess.run(argv, cwd=runtime.bundle.path, text=True, capture_output=True, timeout=60, check=False)


def wanted(runtime, **devices: dict[str, Any]) -> None:
    """Have these devices in the container."""
    runtime.bundle.linux["netDevices"] = devices


def test_a_device_moves_with_its_addresses(runtime, host: Namespace, pod: Namespace) -> None:
    """By another name, up, and it stays where its namespace is."""
    for address in ("192.0.2.7/24", "192.0.2.8/32", "2001:db8::7/64"):
        host.ip("address", "add", address, "dev", "outer0")
    host.ip("address", "add", "127.0.0.33/8", "dev", "outer0")
    host.ip("link", "set", "outer0", "mtu", "1400", "address", "02:00:00:00:00:77")
    runtime.bundle.namespace("network", pod.path)
    wanted(runtime, outer0={"name": "inner0"})
    done = run_in(runtime, host, "cat", "/sys/class/net/inner0/flags")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout, 16) & 1
    assert pod.addresses("inner0") == {"192.0.2.7/24", "192.0.2.8/32", "2001:db8::7/64"}
    (link,) = json.loads(pod.ip("-j", "link", "show", "inner0"))
    assert (link["mtu"], link["address"]) == (1400, "02:00:00:00:00:77")
    assert "outer0" not in host.ip("link", "show")


def test_a_new_namespace_takes_the_device_with_it(runtime, host: Namespace) -> None:
    """A virtual device ends there."""
    wanted(runtime, outer0={})
    done = run_in(runtime, host, "cat", "/sys/class/net/outer0/operstate")
    assert done.returncode == 0, done.stderr
    assert "outer0" not in host.ip("link", "show")


def test_a_name_that_is_taken(runtime, host: Namespace, pod: Namespace) -> None:
    """Is an error, with the device still on the host; a template has the kernel choose."""
    pod.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    runtime.bundle.namespace("network", pod.path)
    wanted(runtime, outer0={"name": "lan0"})
    done = run_in(runtime, host, "true")
    assert done.returncode == 1
    assert "fail to move network device outer0: " in done.stderr
    assert "outer0" in host.ip("link", "show")
    wanted(runtime, outer0={"name": "lan%d"})
    assert run_in(runtime, host, "true").returncode == 0
    assert "lan2" in pod.ip("link", "show")


def test_a_device_that_is_not_there(runtime, host: Namespace) -> None:
    """There is no container then."""
    wanted(runtime, nothing0={})
    done = run_in(runtime, host, "true")
    assert done.returncode == 1
    assert "link not found for interface nothing0" in done.stderr


def test_intel_rdt_is_refused_where_there_is_none(runtime) -> None:
    """In the words that engines know."""
    if Path("/sys/fs/resctrl/info").exists():
        pytest.skip("this machine has it")
    runtime.bundle.linux["intelRdt"] = {"closID": "x"}
    done = runtime.run("true")
    assert done.returncode == 1
    assert "intelRdt is specified in config, but Intel RDT is not enabled" in done.stderr
