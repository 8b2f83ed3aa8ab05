"""docker update of a running container, and what --log-driver and --log-opt say."""

from __future__ import annotations

import pytest
from support.engine import Engine


def test_limits_of_a_running_container(clean: Engine) -> None:
    """They are shown, they hold, and they can be lifted again."""
    clean.docker("run", "-d", "--name", "up", "busybox", "sleep", "1000")
    clean.docker("update", "--memory", "64m", "--memory-swap", "128m", "--pids-limit", "50", "--cpus", "0.5",
        "--restart", "on-failure:3", "up")  # fmt: skip
    form = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}"
    assert clean.out("inspect", "-f", form, "up") == f"{64 << 20} {128 << 20} 50 500000000"
    assert clean.out("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "up") == "on-failure"
    limits = "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max"
    assert clean.out("exec", "up", "sh", "-c", limits) == "50"
    clean.docker("update", "--pids-limit", "-1", "up")
    assert clean.out("exec", "up", "sh", "-c", limits) == "max"
    assert clean.out("inspect", "-f", "{{.HostConfig.PidsLimit}}", "up") == "0"


def test_updates_that_contradict(clean: Engine) -> None:
    """In the real engine's words, and nothing changes."""
    identifier = clean.out(
        "run", "-d", "--memory", "64m", "--memory-swap", "128m", "--cpus", "1", "busybox", "sleep", "9"
    )
    for arguments, words in (
        (
            ("--memory", "512m"),
            f"Cannot update container {identifier}: Memory limit should be smaller than already set",
        ),
        (
            ("--cpu-period", "1000"),
            "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
        ),
        (("--memory", "1m"), "Minimum memory limit allowed is 6MB"),
        (("--cpuset-cpus", "900"), "Requested CPUs are not available - requested 900, available: 0"),
    ):
        done = clean.docker("update", *arguments, identifier, check=False)
        assert words in done.stderr
    assert clean.out("inspect", "-f", "{{.HostConfig.Memory}}", identifier) == str(64 << 20)


def test_a_container_for_one_run(clean: Engine) -> None:
    """Its policy cannot be changed; removed by force it is gone, without an error."""
    clean.docker("run", "-d", "--rm", "--name", "once", "busybox", "sleep", "1000")
    done = clean.docker("update", "--restart", "always", "once", check=False)
    assert "Restart policy cannot be updated because AutoRemove is enabled for the container" in done.stderr
    assert clean.out("rm", "-f", "once") == "once"
    assert clean.out("ps", "-aq") == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--log-opt", "foo=x"), "unknown log opt 'foo' for json-file log driver"),
        (("--log-opt", "mode=zzz"), "logger: logging mode not supported: zzz"),
        (("--log-opt", "max-buffer-size=1m"), "max-buffer-size option is only supported with 'mode=non-blocking'"),
        (("--log-driver", "nope"), 'error looking up logging plugin nope: plugin "nope" not found'),
        (("--log-opt", "max-size=x"), "failed to create task for container: failed to initialize logging driver: inv"),
        (("--log-opt", "max-file=0"), "failed to initialize logging driver: max-file cannot be less than 1"),
    ],
)
def test_bad_log_options(clean: Engine, options: tuple[str, str], words: str) -> None:
    """Each is named."""
    done = clean.docker("run", "--rm", *options, "busybox", "true", check=False)
    assert done.returncode == 125
    assert words in done.stderr


def test_logs_that_are_bounded_or_not_kept(clean: Engine) -> None:
    """With max-size and max-file the oldest lines go; with the driver none there is nothing to read."""
    clean.docker(
        "run", "--name", "small", "--log-opt", "max-size=1k", "--log-opt", "max-file=2", "busybox", "seq", "1", "200"
    )
    lines = clean.out("logs", "small").splitlines()
    assert 5 <= len(lines) < 100
    assert lines[-1] == "200"
    clean.docker("run", "--name", "silent", "--log-driver", "none", "busybox", "echo", "heard")
    done = clean.docker("logs", "silent", check=False)
    assert "configured logging driver does not support reading" in done.stderr
