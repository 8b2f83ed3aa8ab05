#!/usr/bin/env python3
"""Measure two engines in one run, in turn, and print medians and their ratio.

side_by_side.py --ours unix:///run/gantry-bench/docker.sock --real unix:///run/docker.sock [--rounds 15] [ROW ...]

Both engines need an image ``busybox`` (scripts/busybox-image | docker import - busybox). Rows: run-bridge, run-none,
exec, burst, list, output, logs. benchmarks/memory.py tells what processes weigh.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

MIB = 1 << 20


class Client:
    """The docker CLI and a bare HTTP client for one engine."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.path = host.removeprefix("unix://")

    def docker(self, *arguments: str) -> str:
        """Run the CLI; its standard output."""
        argv = ["docker", "--host", self.host, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    def get(self, path: str, connection: http.client.HTTPConnection | None = None) -> bytes:
        """One GET over the socket."""
        connection = connection or self.connect()
        connection.request("GET", path)
        return connection.getresponse().read()

    def connect(self) -> http.client.HTTPConnection:
        """A kept-alive connection."""
        connection = http.client.HTTPConnection("engine")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        return connection


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternately(clients: list[Client], rounds: int, action: Callable[[Client], object]) -> list[float]:
    """Medians in milliseconds, the engines taking turns."""
    times: list[list[float]] = [[] for _ in clients]
    for _ in range(rounds):
        for client, row in zip(clients, times, strict=True):
            row.append(seconds(lambda client=client: action(client)) * 1000)
    return [statistics.median(row) for row in times]


def run_bridge(clients: list[Client], rounds: int) -> list[float]:
    """docker run --rm busybox true, default network, ms."""
    return alternately(clients, rounds, lambda c: c.docker("run", "--rm", "busybox", "true"))


def run_none(clients: list[Client], rounds: int) -> list[float]:
    """docker run --rm --network none busybox true, ms."""
    return alternately(clients, rounds, lambda c: c.docker("run", "--rm", "--network", "none", "busybox", "true"))


def exec_true(clients: list[Client], rounds: int) -> list[float]:
    """docker exec of true, ms."""
    for client in clients:
        client.docker("run", "-d", "--name", "bench-exec", "busybox", "sleep", "1000")
    try:
        return alternately(clients, rounds, lambda c: c.docker("exec", "bench-exec", "true"))
    finally:
        for client in clients:
            client.docker("rm", "-f", "bench-exec")


def burst(clients: list[Client], _rounds: int) -> list[float]:
    """40 containers started by 8 clients, per second."""
    rates = []
    for client in clients:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            begin = time.perf_counter()
            names = list(pool.map(lambda _, c=client: c.docker("run", "-d", "busybox", "sleep", "1000"), range(40)))
            rates.append(40 / (time.perf_counter() - begin))
        client.docker("rm", "-f", *[name.strip() for name in names])
    return rates


def listing(clients: list[Client], _rounds: int) -> list[float]:
    """GET /containers/json with 40 containers over 8 connections, per second."""
    rates = []
    for client in clients:
        names = [client.docker("run", "-d", "--network", "none", "busybox", "sleep", "1000").strip() for _ in range(40)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:

            def ask(_: int, client: Client = client) -> None:
                connection = client.connect()
                for _ in range(50):
                    client.get("/containers/json", connection)

            begin = time.perf_counter()
            list(pool.map(ask, range(8)))
            rates.append(400 / (time.perf_counter() - begin))
        client.docker("rm", "-f", *names)
    return rates


SIZE = 100 * MIB


def output(clients: list[Client], _rounds: int) -> list[float]:
    """100 MiB of container output through docker run, MB/s."""
    script = f"head -c {SIZE} /dev/zero | tr '\\0' x | fold -w 120"

    def once(client: Client) -> float:
        argv = ["docker", "--host", client.host, "run", "--name", "bench-output", "busybox", "sh", "-c", script]
        spent = seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))
        return SIZE / spent / 1e6

    return [once(client) for client in clients]


def logs(clients: list[Client], _rounds: int) -> list[float]:
    """The same back through docker logs, MB/s."""

    def once(client: Client) -> float:
        argv = ["docker", "--host", client.host, "logs", "bench-output"]
        spent = seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))
        client.docker("rm", "-f", "bench-output")
        return SIZE / spent / 1e6

    return [once(client) for client in clients]


ROWS: dict[str, Callable[[list[Client], int], list[float]]] = {
    "run-bridge": run_bridge,
    "run-none": run_none,
    "exec": exec_true,
    "burst": burst,
    "list": listing,
    "output": output,
    "logs": logs,
}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", required=True)
    parser.add_argument("--real", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    options = parser.parse_args()
    clients = [Client(options.ours), Client(options.real)]
    print(f"{'':60} {'ours':>9} {'real':>9} {'ratio':>6}")
    for name in options.rows or ROWS:
        row = ROWS[name]
        ours, real = row(clients, options.rounds)
        print(f"{(row.__doc__ or name).rstrip('.'):60} {ours:9.1f} {real:9.1f} {ours / real:6.2f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
