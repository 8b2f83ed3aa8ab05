#!/usr/bin/env python3
"""Measure OCI runtimes in one run, in turn: medians in milliseconds of each step of a container's life.

runtime.py [--rounds 30] [NAME=PATH ...]

Runtimes default to this interpreter's own runc, and to runc and crun of the system where they are installed and work
on this machine. `cold` is a call of the program; `warm` a process forked from one that called `runc.preload()`, as a
shim does it, which only our own runtime has. Needs root and busybox.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS = ("run", "create", "start", "exec", "delete")
Call = Callable[[list[str]], None]


def make_bundle(directory: Path, runtime: str, args: list[str]) -> None:
    """A bundle over busybox."""
    (directory / "rootfs/bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not installed")
    shutil.copy2(busybox, directory / "rootfs/bin/busybox")
    for applet in ("true", "sleep"):
        (directory / "rootfs/bin" / applet).symlink_to("busybox")
    for name in ("dev", "proc", "sys"):
        (directory / "rootfs" / name).mkdir()
    subprocess.run([runtime, "spec"], cwd=directory, check=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": args}
    path.write_text(json.dumps(config))


def cold(program: str) -> Call:
    """Call the program."""

    def call(argv: list[str]) -> None:
        # Detached containers keep the streams: nobody may wait for their end.
        done = subprocess.run([program, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} {argv}: status {done.returncode}")

    return call


def warm() -> Call:
    """Fork, and call the entry point in the child."""
    import runc
    from runc.cli import main

    runc.preload()
    null = os.open("/dev/null", os.O_RDWR)

    def call(argv: list[str]) -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(null, 0)
                os.dup2(null, 1)
                sys.argv = ["runc", *argv]
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise RuntimeError(f"warm {argv}: status {code}")

    return call


def timed(call: Call, argv: list[str]) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    call(argv)
    return (time.perf_counter() - begin) * 1000


def one_life(call: Call, root: Path, bundles: tuple[Path, Path], number: int) -> dict[str, float]:
    """Every step once."""
    short, long = bundles
    name = f"bench-{os.getpid()}-{number}"
    glob = ["--root", str(root)]
    times = {"run": timed(call, [*glob, "run", "--bundle", str(short), f"{name}-run"])}
    times["create"] = timed(call, [*glob, "create", "--bundle", str(long), name])
    times["start"] = timed(call, [*glob, "start", name])
    times["exec"] = timed(call, [*glob, "exec", name, "true"])
    times["delete"] = timed(call, [*glob, "delete", "--force", name])
    return times


def candidates(given: list[str]) -> dict[str, str]:
    """Names and paths of the runtimes to measure."""
    if given:
        return dict(item.partition("=")[::2] for item in given)
    found = {"ours": str(Path(sys.executable).parent / "runc")}
    for name in ("runc", "crun"):
        path = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if path:
            found[name] = path
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("runtimes", nargs="*", metavar="NAME=PATH")
    arguments = parser.parse_args()
    if not arguments.runtimes:
        # As a template does it: what is forked from here need not start once more to be out of containers' reach.
        from gantry.linux import executable

        executable.restart_readonly([sys.executable, *sys.argv], dict(os.environ))
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        programs = candidates(arguments.runtimes)
        first = next(iter(programs.values()))
        bundles = top / "short", top / "long"
        make_bundle(bundles[0], first, ["true"])
        make_bundle(bundles[1], first, ["sleep", "1000"])
        calls = {f"{name} cold": cold(path) for name, path in programs.items()}
        if not arguments.runtimes:
            calls["ours warm"] = warm()
        for index, (name, call) in enumerate(list(calls.items())):
            try:
                one_life(call, top / f"root{index}", bundles, index)
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
                del calls[name]
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
        for number in range(arguments.rounds):
            for index, (name, call) in enumerate(calls.items()):
                rows[name].append(one_life(call, top / f"root{index}", bundles, 1000 + number * 10 + index))
    print(f"{'ms, median':12}" + "".join(f"{step:>9}" for step in STEPS))
    for name, lives in rows.items():
        print(f"{name:12}" + "".join(f"{statistics.median(life[step] for life in lives):9.1f}" for step in STEPS))


if __name__ == "__main__":
    main()
