from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runc import cli, flags, jsontext, logs, signals
from runc.commands import events, update
from runc.errors import RuntimeFailure, UsageFailure, describe

FLAGS = (
    flags.Flag("bundle", "the bundle", short="b", value=str),
    flags.Flag("env", "a variable", short="e", value=str, many=True),
    flags.Flag("number", "a number", value=int),
    flags.Flag("detach", "a switch", short="d"),
)


def test_flags_in_every_spelling() -> None:
    """Before and, unless told otherwise, behind arguments; `--` ends them."""
    options, words = flags.parse(FLAGS, ["-b", "x", "--env=A=1", "-e", "B", "id", "--detach", "--", "-x"])
    assert options.text("bundle") == "x"
    assert options.texts("env") == ["A=1", "B"]
    assert options.has("detach")
    assert words == ["id", "-x"]
    options, words = flags.parse(FLAGS, ["-d", "id", "-b", "x"], interspersed=False)
    assert words == ["id", "-b", "x"]
    assert not options.text("bundle")
    assert not flags.parse(FLAGS, ["--detach=false"])[0].has("detach")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--bundle"], "flag needs an argument: -bundle"),
        (["--number", "x"], 'invalid value "x" for flag -number: parse error'),
    ],
)
def test_wrong_flags(argv: list[str], message: str) -> None:
    """In the words of Go's flag package."""
    with pytest.raises(UsageFailure) as caught:
        flags.parse(FLAGS, argv)
    assert caught.value.message == message


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": [1, -2, 1.5, True, False, None, 'x\n"é\u2028'], "b": {"c": []}}, "text", [[[]]], {"\x00": "\x7f"}],
)
def test_json_is_what_the_standard_module_reads_and_writes(value: object) -> None:
    """Compact and indented."""
    assert json.loads(jsontext.dumps(value)) == value
    assert json.loads(jsontext.dumps(value, 2)) == value
    assert jsontext.loads(json.dumps(value).encode()) == value
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert jsontext.dumps(value, "\t") == json.dumps(value, indent="\t")


@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b'{"a" 1}', b"1 2", b"NaN", b"\xff", b"[" * 200_000])
def test_bad_json_is_a_value_error(text: bytes) -> None:
    """Never anything else."""
    with pytest.raises(ValueError):  # noqa: PT011
        jsontext.loads(text)


def test_log_lines(tmp_path: Path) -> None:
    """As text and as JSON, appended to the file."""
    path = tmp_path / "log"
    logs.Log(str(path)).error('a "quoted" text')
    logs.Log(str(path), "json").warning("b")
    text, line = path.read_text().splitlines()
    assert text.endswith('level=error msg="a \\"quoted\\" text"')
    assert text.startswith('time="20')
    record = json.loads(line)
    assert (record["level"], record["msg"]) == ("warning", "b")
    quiet = logs.Log(str(path))
    quiet.debug("c")
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN", 34), ("RTMIN+2", 36), ("RTMAX-1", 63), ("0", 0)],
)
def test_signals(text: str, number: int) -> None:
    """Names, numbers, and the ones without names."""
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "65", "-1", "NOPE", "RTMIN+99", "9 ", "RTMIN-1"])
def test_unknown_signals(text: str) -> None:
    """Are named."""
    with pytest.raises(RuntimeFailure, match="unknown signal"):
        signals.parse(text)


def test_sizes_and_durations() -> None:
    """With units where they make sense."""
    assert update.parse_number("memory", "64m") == update.parse_number("memory", "64MiB") == 64 << 20
    assert update.parse_number("memory", "-1") == -1
    with pytest.raises(RuntimeFailure, match="invalid value for cpu-quota"):
        update.parse_number("cpu-quota", "5m")
    assert events.parse_duration("500ms") == 0.5
    for bad in ("5", "0s", "x", ""):
        with pytest.raises(RuntimeFailure):
            events.parse_duration(bad)


def test_system_errors_are_told_in_go_s_words() -> None:
    """Call, path, reason."""
    assert describe(OSError(2, "No such file or directory", "/x")) == "/x: no such file or directory"
    assert describe(OSError(13, "mount tmpfs: Permission denied", "/x")) == "mount tmpfs /x: permission denied"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str) -> None:
    """And is a module of its name."""
    assert cli.command_help(name).startswith(f"NAME:\n   runc {name} - ")


def test_main_can_be_called_again_and_again(tmp_path: Path) -> None:
    """In one process, also after failures: it keeps nothing."""
    script = (
        "import os, sys, runc\n"
        "runc.preload()\n"
        "from runc.cli import main\n"
        "for argv in (['--version'], ['state', 'x'], ['bogus'], ['list', '-q'], ['--log', '/no/dir/x', 'list']) * 2:\n"
        "    sys.argv = ['runc', '--root', sys.argv[-1] if False else os.environ['ROOT'], *argv]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        os.write(1, f'{end.code};'.encode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"ROOT": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    codes = [line.rpartition("\n")[2] for line in done.stdout.split(";")[:-1]]
    assert codes == ["0", "1", "3", "0", "1"] * 2


# fmt: off
COLD_MODULES = frozenset((
    "__future__", "_ctypes", "_json", "_signal", "_socket", "_struct", "ctypes", "ctypes._endian", "errno", "fcntl",
    "gantry", "gantry.linux", "gantry.linux.capabilities", "gantry.linux.executable", "gantry.linux.libc",
    "gantry.linux.mount", "gantry.linux.namespaces", "gantry.linux.path", "gantry.linux.process",
    "gantry.linux.unix", "gc", "runc", "runc.cgroups", "runc.cgroups.control", "runc.cgroups.devices",
    "runc.cgroups.hierarchy", "runc.cgroups.resources", "runc.cli", "runc.commands", "runc.commands.create",
    "runc.commands.run", "runc.console", "runc.copying", "runc.creation", "runc.deletion", "runc.devices",
    "runc.errors", "runc.flags", "runc.foreground", "runc.hooks", "runc.init", "runc.job", "runc.jsontext",
    "runc.keyring", "runc.launcher", "runc.logs", "runc.messages", "runc.mounts", "runc.namespaces", "runc.process",
    "runc.protection", "runc.rootfs", "runc.security", "runc.spec", "runc.starting", "runc.state", "select",
    "struct", "types"
))
# fmt: on
"""All that `runc run` may import. What is added here is paid for by every cold start: weigh it."""


def test_imports_of_a_cold_run_are_budgeted() -> None:
    """Nothing is imported that is not listed: no argparse, re, typing, dataclasses, subprocess, logging, json."""
    paths = [path for path in sys.path if path]
    script = (
        f"import os, sys; sys.path[:] = {paths!r}; before = set(sys.modules)\n"
        "import runc.cli, runc.protection, runc.commands.run\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert imported - COLD_MODULES == set()
    assert len(imported) <= len(COLD_MODULES)


@pytest.mark.parametrize("command", ["start", "state", "kill", "delete", "list"])
def test_short_commands_do_without_ctypes(command: str) -> None:
    """It costs more than all that they do."""
    paths = [path for path in sys.path if path]
    script = (
        f"import sys; sys.path[:] = {paths!r}\nimport runc.cli, runc.commands.{command}\nprint('ctypes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_program_of_its_own_just_ends(tmp_path: Path) -> None:
    """No exit handler of Python's runs; in any other process the exit code is raised."""
    paths = [path for path in sys.path if path]
    text = (
        f"import sys; sys.path[:] = {paths!r}; sys.argv = ['runc', '--version']\n"
        "import atexit; atexit.register(print, 'handled')\n"
        "from runc.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('raised')\n"
    )
    for name, rest in (("runc", []), ("shim", ["raised", "handled"])):
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("runc version")
        assert done.stdout.splitlines()[3:] == rest


def test_preload_covers_every_call(tmp_path: Path) -> None:
    """After it, no command imports anything more of ours."""
    script = (
        "import sys, pkgutil, runc\n"
        "runc.preload()\n"
        "ours = {m.name for m in pkgutil.walk_packages(runc.__path__, 'runc.')} - {'runc._restart'}\n"
        "print(*sorted(ours - set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert os.path.exists(os.path.join(os.path.dirname(cli.__file__), "_restart.py"))
