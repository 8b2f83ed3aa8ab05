"""The Prometheus endpoint, what it counts, and the debug socket."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import typing
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from containerd.anyvalue import AnyValue
from containerd.metrics import cgroups, process
from containerd.metrics.calls import Call, Calls
from containerd.metrics.endpoint import Endpoint
from containerd.metrics.text import Family, render
from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as v1
from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as v2

Daemon = typing.Any  # conftest.Daemon
SAMPLE = re.compile(r'^[a-z_]+(\{([a-z_]+="[^"]*",?)+\})? -?[0-9.e+-]+$')


def test_text_is_escaped() -> None:
    """A label may hold anything; a number of 64 bits keeps all its digits; a family without samples is left out."""
    family = Family("a_total", "two\nlines", "counter").add(2**64 - 1, {"b": 'q"\\\n'}).add(0.25)
    assert render([family, Family("empty", "nothing")]) == (
        "# HELP a_total two\\nlines\n"
        "# TYPE a_total counter\n"
        'a_total{b="q\\"\\\\\\n"} 18446744073709551615\n'
        "a_total 0.25\n"
    )


def test_calls_are_counted_with_the_names_of_go() -> None:
    """Started and handled by code; a histogram when it is wanted."""
    calls = Calls(histogram=True)
    get = Call("/containerd.services.tasks.v1.Tasks/Get", "unary")
    for code in ("OK", "OK", "NOT_FOUND", "CANCELLED"):
        calls.handle(get, code, calls.start(get))
    text = render(calls.families())
    names = 'grpc_method="Get",grpc_service="containerd.services.tasks.v1.Tasks",grpc_type="unary"'
    assert f"grpc_server_started_total{{{names}}} 4\n" in text
    assert f'grpc_server_handled_total{{grpc_code="OK",{names}}} 2\n' in text
    assert f'grpc_server_handled_total{{grpc_code="NotFound",{names}}} 1\n' in text
    assert f'grpc_server_handled_total{{grpc_code="Canceled",{names}}} 1\n' in text
    assert f'grpc_server_handling_seconds_bucket{{{names},le="+Inf"}} 4\n' in text
    assert f"grpc_server_handling_seconds_count{{{names}}} 4\n" in text


def _value(message: v1.Metrics | v2.Metrics) -> AnyValue:
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def test_cgroups_have_containerds_names() -> None:
    """Both versions side by side; what a shim says in another way is left out."""
    old = v1.Metrics()
    old.cpu.usage.total = 5
    old.cpu.usage.per_cpu.extend([2, 3])
    old.memory.usage.limit = 7
    old.memory.pg_fault = 1
    old.memory.hierarchical_swap_limit = 9
    old.blkio.io_service_bytes_recursive.add(op="Read", device="/dev/sda", major=8, value=4)
    new = v2.Metrics()
    new.memory.usage = 11
    new.io.usage.add(major=8, minor=1, rbytes=12)
    text = render(
        cgroups.families(
            [("n", "old", _value(old)), ("n", "new", _value(new)), ("n", "vm", AnyValue("other.Metrics", b"x"))]
        )
    )
    assert 'container_cpu_total_nanoseconds{container_id="old",namespace="n"} 5\n' in text
    assert 'container_per_cpu_nanoseconds{container_id="old",cpu="1",namespace="n"} 3\n' in text
    assert 'container_memory_usage_limit_bytes{container_id="old",namespace="n"} 7\n' in text
    assert 'container_memory_pgfault_bytes{container_id="old",namespace="n"} 1\n' in text
    assert 'container_memory_hierarchical_memsw_limit_bytes{container_id="old",namespace="n"} 9\n' in text
    assert (
        'container_blkio_io_service_bytes_recursive_bytes{container_id="old",device="/dev/sda",major="8",minor="0",'
        'namespace="n",op="Read"} 4\n' in text
    )
    assert 'container_memory_usage_bytes{container_id="new",namespace="n"} 11\n' in text
    assert 'container_io_rbytes_bytes{container_id="new",major="8",minor="1",namespace="n"} 12\n' in text
    assert "vm" not in text


def test_the_process_says_what_it_uses() -> None:
    """Numbers that can be checked: memory, descriptors, when it began."""
    found = {family.name: family.samples[0][2] for family in process.families()}
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_open_fds"] >= 3
    begun = os.stat("/proc/self").st_ctime
    assert abs(found["process_start_time_seconds"] - begun) < 600


def _ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


def test_requests_that_make_no_sense_are_refused() -> None:
    """Other paths, other methods, no HTTP at all, a head without an end: and the endpoint goes on."""

    async def page() -> tuple[str, str]:
        return "text/plain", "here"

    async def broken() -> tuple[str, str]:
        raise RuntimeError("secret")

    async def main() -> list[bytes]:
        endpoint = Endpoint({"/a": page, "/broken": broken})
        await endpoint.listen("127.0.0.1:0")
        heads = (b"GET /a?x HTTP/1.1", b"HEAD /a HTTP/1.1", b"POST /a HTTP/1.1", b"GET /b HTTP/1.1", b"hello")
        requests = [*(head + b"\r\n\r\n" for head in heads), b"GET /broken HTTP/1.1\r\n\r\n", b"x" * 100_000]
        found = []
        for request in requests:
            try:
                found.append(await asyncio.to_thread(_ask, endpoint.port, request))
            except ConnectionError:
                found.append(b"")
        await endpoint.close()
        return found

    get, head, post, other, nonsense, failed, endless = asyncio.run(main())
    assert get.startswith(b"HTTP/1.1 200 OK\r\n")
    assert get.endswith(b"\r\n\r\nhere")
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 4" in head
    assert [text.split()[1] for text in (post, other, nonsense, failed)] == [b"405", b"404", b"400", b"500"]
    assert b"secret" not in failed
    assert endless == b""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.root
def test_a_running_container_is_in_the_metrics(containerd: Daemon, rootfs: Path) -> None:
    """And the calls that made it, and the process; the debug socket says what the daemon is doing."""
    containerd.use(
        "/usr/bin/ctr", "/usr/sbin/runc", os.path.join(os.path.dirname(sys.executable), "containerd-shim-runc-v2")
    )
    config, port, debug = containerd.directory / "config.toml", _free_port(), containerd.directory / "d.sock"
    config.write_text(
        f'version = 2\n[metrics]\n  address = "127.0.0.1:{port}"\n  grpc_histogram = true\n'
        f'[debug]\n  address = "{debug}"\n'
    )
    containerd.start("--config", str(config))
    containerd.ctr("run", "-d", "--runc-binary", "/usr/sbin/runc", "--rootfs", str(rootfs), "c", "/bin/sleep", "1000")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    assert all(SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
    owner = f'container_id="c",namespace="{containerd.namespace}"'
    assert re.search(rf"^container_memory_usage(_usage)?_bytes\{{{owner}\}} [1-9]", text, re.MULTILINE)
    assert re.search(rf"^container_pids_current\{{{owner}\}} 1$", text, re.MULTILINE)
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="Start"' in text
    assert "grpc_server_handling_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
    assert debug.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(debug))
        connection.sendall(b"GET /debug/stacks HTTP/1.1\r\n\r\n")
        assert b"MainThread" in connection.recv(65536)
    containerd.ctr("tasks", "kill", "-s", "KILL", "c")
    containerd.ctr("tasks", "rm", "--force", "c")
    containerd.ctr("containers", "rm", "c")
    containerd.stop()
    assert not debug.exists()


@pytest.mark.root
def test_an_address_that_is_taken_is_said(containerd: Daemon) -> None:
    """The daemon does not start, and names the endpoint."""
    config = containerd.directory / "config.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config.write_text(f'version = 2\n[metrics]\n  address = "127.0.0.1:{taken.getsockname()[1]}"\n')
        with pytest.raises(AssertionError, match="metrics endpoint"):
            containerd.start("--config", str(config))
        containerd.process = None
