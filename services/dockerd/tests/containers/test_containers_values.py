"""The small pure parts: users, restart delays, filters, bodies, signals, times, tables, numbers, the store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dockerd import errors
from dockerd.containers import filters, restart, signals, stats, timestamps, top, users, views
from dockerd.containers.model import (
    ZERO_TIME,
    Container,
    ContainerConfig,
    HostConfig,
    MountPoint,
    RestartPolicy,
    State,
    Status,
)
from dockerd.containers.store import SCHEMA, ContainerStore
from dockerd.containers.wire import from_wire
from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as v1
from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as v2
from gantry.database import Database

from .conftest import fixture

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n#c:x:5:5\nbroken\n7:x:70:71::/:/bin/sh\n"
GROUP = "root:x:0:\nwheel:x:10:app\nextra:x:50:other,app\n"


def make(name: str = "c1", created: int = 1, **changes: Any) -> Container:
    """A container."""
    fields: dict[str, Any] = {
        "id": (name * 64)[:64],
        "name": name,
        "created": created,
        "image": "busybox",
        "image_id": "sha256:1",
        "chain_id": "sha256:c",
        "config": ContainerConfig(labels={"a": "1"}),
        "host_config": HostConfig(),
        "path": "sh",
        "args": ["-c", "exit 3"],
        "snapshotter": "overlayfs",
        "root": "/c",
    }
    return Container(**(fields | changes))


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", (), (0, 0, (0,))),
        ("app", (), (1000, 1001, (1001, 10, 50))),
        ("1000", (), (1000, 1001, (1001, 10, 50))),
        ("app:wheel", (), (1000, 10, (10,))),
        ("12:34", ("50", "wheel"), (12, 34, (34, 50, 10))),
        ("12", (), (12, 0, (0,))),
        ("7", (), (70, 71, (71,))),
    ],
)
def test_users_are_found_in_the_containers_own_files(
    user: str, extra: tuple[str, ...], expected: tuple[int, int, tuple[int, ...]]
) -> None:
    """By name or number; a named group takes the place of the user's own ones."""
    found = users.resolve(user, extra, PASSWD, GROUP)
    assert (found.uid, found.gid, found.additional_gids) == expected


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("app:nobody", "unable to find group nobody: no matching entries in group file"),
        ("4294967296", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_users_that_are_not_there(user: str, words: str) -> None:
    """In the real engine's words."""
    with pytest.raises(errors.InvalidParameter, match=words):
        users.resolve(user, (), PASSWD, GROUP)


def test_restart_delays_double_up_to_a_minute_and_begin_anew() -> None:
    """100 ms first; 10 seconds of running are a fresh start."""
    delays = [0.0]
    for _ in range(12):
        delays.append(restart.next_delay(delays[-1], 0.5))
    assert delays[1:4] == [0.1, 0.2, 0.4]
    assert delays[-1] == 60.0
    assert restart.next_delay(60.0, 10.0) == 0.1


@pytest.mark.parametrize(
    ("name", "count", "code", "restarts", "by_user", "expected"),
    [
        ("no", 0, 1, 0, False, False),
        ("always", 0, 0, 99, False, True),
        ("always", 0, 0, 0, True, False),
        ("unless-stopped", 0, 0, 0, False, True),
        ("on-failure", 0, 0, 0, False, False),
        ("on-failure", 0, 1, 99, False, True),
        ("on-failure", 3, 1, 2, False, True),
        ("on-failure", 3, 1, 3, False, False),
    ],
)
def test_restart_policies(name: str, count: int, code: int, restarts: int, by_user: bool, expected: bool) -> None:
    """Which ends are followed by a new start."""
    policy = RestartPolicy(name=name, maximum_retry_count=count)
    assert restart.should_restart(policy, code, restarts, by_user) is expected


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigterm", 15), ("9", 9), ("RTMIN+1", 35), ("SIGUSR1", 10), ("CLD", 17)]
)
def test_signals(text: str, number: int) -> None:
    """Names with and without SIG, in any case, and numbers."""
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "FOO", "0", "65", "-1", "SIG", "９"])
def test_signals_that_do_not_exist(text: str) -> None:
    """They are named."""
    with pytest.raises(errors.InvalidParameter, match="invalid signal: "):
        signals.parse(text)


def test_moments_survive_a_round_trip() -> None:
    """With nanoseconds, and without zeros at the end."""
    for nanoseconds in (1795502339564071695, 1795502339_500000000, 1795502339_000000000):
        assert timestamps.to_nanoseconds(timestamps.from_nanoseconds(nanoseconds)) == nanoseconds
    assert timestamps.from_nanoseconds(1795502339_500000000) == "2026-11-24T06:38:59.5Z"
    assert timestamps.to_nanoseconds(ZERO_TIME) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (86400 * 3, "3 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    """As ``docker ps`` shows them."""
    assert views.duration(seconds) == words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State(), "Created"),
        (State(status=Status.RUNNING, started_at="2026-11-24T06:38:59Z"), "Up 2 minutes"),
        (State(status=Status.PAUSED, started_at="2026-11-24T06:38:59Z"), "Up 2 minutes (Paused)"),
        (
            State(
                status=Status.EXITED,
                exit_code=3,
                started_at="2026-11-24T06:38:59Z",
                finished_at="2026-11-24T06:40:59Z",
            ),
            "Exited (3) Less than a second ago",
        ),
        (State(status=Status.DEAD), "Dead"),
        (State(status=Status.REMOVING), "Removal In Progress"),
    ],
)
def test_status_in_words(state: State, words: str) -> None:
    """The column of ``docker ps``."""
    now = timestamps.to_nanoseconds("2026-11-24T06:40:59.5Z")
    assert views.status_text(make(state=state), now) == words


def _shape(value: Any) -> Any:
    """Keys and types of a body."""
    if isinstance(value, dict):
        return {key: _shape(entry) for key, entry in value.items()}
    return type(value).__name__


def test_inspect_has_the_real_engines_shape() -> None:
    """Every key in its order and type, from the settings that the real engine was given."""
    real = fixture("inspect_running.json")
    settings = from_wire(real["HostConfig"], HostConfig)
    made = make(
        name="web",
        path="sleep",
        args=["1000"],
        config=from_wire(real["Config"], ContainerConfig),
        host_config=settings,
        mounts=[
            MountPoint(type="volume", name="data", source="/v", destination="/data", driver="local", mode="z"),
            MountPoint(type="bind", source="/s", destination="/mnt", mode="ro", rw=False, propagation="rprivate"),
        ],
        state=State(status=Status.RUNNING, pid=5, started_at="2026-11-24T06:38:59Z"),
    )
    body = msgspec.json.decode(msgspec.json.encode(views.inspect(made, real["NetworkSettings"], [])))
    expected = {key: value for key, value in real.items() if not key.startswith("Size")}
    assert list(body) == list(expected)
    body["GraphDriver"]["Data"] = expected["GraphDriver"]["Data"]
    assert _shape(body) == _shape(expected)
    assert body["HostConfig"] == expected["HostConfig"]
    assert body["Config"] == expected["Config"]
    assert [sorted(mount) for mount in body["Mounts"]] == [sorted(mount) for mount in expected["Mounts"]]


def test_a_listing_has_the_real_engines_shape() -> None:
    """The same for one entry of the list."""
    (real,) = fixture("list.json")
    running = State(status=Status.RUNNING, started_at=timestamps.now())
    made = make(
        name="web",
        path="sleep",
        args=["1000"],
        state=running,
        config=ContainerConfig(labels={"x": "y"}),
        host_config=HostConfig(network_mode="bridge"),
    )
    settings = fixture("inspect_running.json")["NetworkSettings"]
    body = views.listed(made, settings, {"SizeRw": 0, "SizeRootFs": 1982599})
    assert list(body) == list(real)
    for key in ("Names", "Command", "Ports", "SizeRootFs", "Labels", "State", "Status", "HostConfig"):
        assert body[key] == real[key]
    assert body["NetworkSettings"] == real["NetworkSettings"]


def test_a_word_with_blanks_is_quoted_in_the_command() -> None:
    """As the real engine shows it."""
    assert views.listed(make(), {})["Command"] == "sh -c 'exit 3'"


LOOKUPS = filters.Selection(
    image_id=lambda reference: "sha256:1" if reference == "busybox" else "",
    container=lambda reference: make(reference, created=5),
    settings=lambda _container: {
        "Networks": {"bridge": {"NetworkID": "n1"}},
        "Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "53/udp": None},
    },
)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ({}, ["up"]),
        ({"status": ["exited"]}, ["old"]),
        ({"status": ["exited", "running"]}, ["up", "old"]),
        ({"exited": ["3"]}, ["old"]),
        ({"exited": ["4"]}, []),
        ({"name": ["^/up$"]}, ["up"]),
        ({"name": ["o"]}, []),
        ({"label": ["a=1"]}, ["up"]),
        ({"label": ["a=2"]}, []),
        ({"label": ["a", "b"]}, []),
        ({"ancestor": ["busybox"]}, ["up"]),
        ({"ancestor": ["other"]}, []),
        ({"id": ["upup"]}, ["up"]),
        ({"since": ["x"]}, ["up"]),
        ({"before": ["x"]}, []),
        ({"network": ["n1"]}, ["up"]),
        ({"network": ["n2"]}, []),
        ({"publish": ["8000-9000"]}, ["up"]),
        ({"publish": ["53/udp"]}, []),
        ({"expose": ["53/udp"]}, ["up"]),
        ({"volume": ["/data"]}, ["up"]),
        ({"health": ["healthy"]}, []),
        ({"health": ["none"]}, ["up"]),
    ],
)
def test_list_filters(wanted: dict[str, list[str]], chosen: list[str]) -> None:
    """Each alone; only running ones unless a filter is about others."""
    up = make(
        "up",
        created=9,
        state=State(status=Status.RUNNING),
        mounts=[MountPoint(type="volume", name="v", destination="/data")],
    )
    old = make("old", created=2, state=State(status=Status.EXITED, exit_code=3))
    found = filters.select([up, old], wanted, LOOKUPS, everything=False)
    assert [container.name for container in found] == chosen


def test_a_limit_shows_stopped_ones_too() -> None:
    """The newest so many."""
    containers = [make(f"c{number}", created=number) for number in (3, 2, 1)]
    assert [entry.name for entry in filters.select(containers, {}, LOOKUPS, everything=False, limit=2)] == ["c3", "c2"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"status": ["x"]}, "invalid value for state"), ({"exited": ["x"]}, "exited"), ({"name": ["("]}, "name=")],
)
def test_filter_values_that_cannot_be(wanted: dict[str, list[str]], words: str) -> None:
    """HTTP 400."""
    with pytest.raises(errors.InvalidParameter, match=words):
        filters.select([], wanted, LOOKUPS, everything=True)


def test_prune_filters() -> None:
    """until, label and label!."""
    old, new = make("old", created=1), make("new", created=2**62)
    assert filters.prune_predicate({"until": ["1h"]})(old)
    assert not filters.prune_predicate({"until": ["2026-01-01T00:00:00Z"]})(new)
    assert filters.prune_predicate({"label": ["a=1"]})(old)
    assert not filters.prune_predicate({"label!": ["a"]})(old)
    with pytest.raises(errors.InvalidParameter, match="until=x"):
        filters.prune_predicate({"until": ["x"]})


def test_top_shows_this_process() -> None:
    """From /proc, with the titles of ``ps -ef``."""
    table = top.table([os.getpid()])
    assert table.titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    (row,) = table.rows
    assert (row[1], row[2]) == (str(os.getpid()), str(os.getppid()))
    assert "python" in row[7] or "pytest" in row[7]


def test_top_leaves_out_what_has_ended() -> None:
    """A process may go between the list and the look."""
    assert top.table([2**22 + 1]).rows == []


def test_stats_of_a_v1_cgroup() -> None:
    """The numbers under their names in the API; the reading before becomes precpu_stats."""
    metrics = v1.Metrics()
    metrics.cpu.usage.total = 500
    metrics.cpu.usage.per_cpu.extend([300, 200])
    metrics.memory.usage.usage, metrics.memory.usage.limit, metrics.memory.cache = 1000, 64 << 20, 7
    metrics.memory.pg_fault = 3
    metrics.pids.current = 2
    made = make(state=State(status=Status.RUNNING, pid=os.getpid()), host_config=HostConfig(network_mode="none"))
    first = stats.sample(made, "io.containerd.cgroups.v1.Metrics", metrics.SerializeToString(), None)
    assert first["cpu_stats"]["cpu_usage"]["total_usage"] == 500
    assert first["memory_stats"]["limit"] == 64 << 20
    assert first["memory_stats"]["stats"]["cache"] == 7
    assert first["memory_stats"]["stats"]["pgfault"] == 3
    assert first["pids_stats"] == {"current": 2}
    second = stats.sample(made, "io.containerd.cgroups.v1.Metrics", metrics.SerializeToString(), first)
    assert second["precpu_stats"] == first["cpu_stats"]
    assert second["preread"] == first["read"]


def test_stats_of_a_v2_cgroup() -> None:
    """Microseconds become nanoseconds; memory.stat's numbers go through, pressures and what else there is do not."""
    metrics = v2.Metrics()
    metrics.cpu.usage_usec, metrics.memory.usage, metrics.pids.current = 5, 1000, 1
    metrics.pids.limit = (1 << 64) - 1
    metrics.memory.anon, metrics.memory.psi.some.total, metrics.memory_events.oom = 7, 8, 2
    made = make(state=State(status=Status.RUNNING, pid=os.getpid()))
    body = stats.sample(made, "io.containerd.cgroups.v2.Metrics", metrics.SerializeToString(), None)
    assert body["cpu_stats"]["cpu_usage"]["total_usage"] == 5000
    assert (body["memory_stats"]["usage"], body["memory_stats"]["failcnt"]) == (1000, 2)
    assert body["memory_stats"]["stats"]["anon"] == 7
    assert len(body["memory_stats"]["stats"]) == 31
    assert body["pids_stats"] == {"current": 1, "limit": (1 << 64) - 1}
    json.dumps(body)


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    """Settings, state and name; a row is incomplete until it is said to be whole."""
    store = ContainerStore(Database(tmp_path / "engine.db", [SCHEMA]))
    made = make(host_config=HostConfig(binds=["/a:/b"], memory=5), mounts=[MountPoint(type="bind", destination="/b")])
    store.reserve(made)
    assert list(store.load()) == [(made, False)]
    store.complete(made)
    changed = made.with_state(status=Status.EXITED, exit_code=3)
    store.save_state(changed)
    store.rename(made.id, "other")
    assert list(store.load()) == [(msgspec.structs.replace(changed, name="other"), True)]
    store.delete(made.id)
    assert list(store.load()) == []


def test_the_store_refuses_a_name_twice(tmp_path: Path) -> None:
    """Also when two engines' threads come at the same time: the database decides."""
    store = ContainerStore(Database(tmp_path / "engine.db", [SCHEMA]))
    store.reserve(make("one"))
    store.reserve(make("two"))
    with pytest.raises(errors.Conflict, match='"/one" is already in use'):
        store.rename(make("two").id, "one")
