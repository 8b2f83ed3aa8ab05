from __future__ import annotations

from typing import Any

import pytest

from runc.cgroups import systemd
from runc.cgroups.hierarchy import HYBRID, V2, Hierarchies, Paths
from runc.errors import RuntimeFailure


def test_units() -> None:
    """A scope in a slice, the slice of the system where none is named; a slice when it is named so."""
    made = systemd.plan_unit("user-1.slice:docker:abc", "id")
    assert (made.name, made.slice, made.description) == (
        "docker-abc.scope",
        "user-1.slice",
        "libcontainer container abc",
    )
    made = systemd.plan_unit("", "id")
    assert (made.name, made.slice) == ("runc-id.scope", "system.slice")
    assert systemd.plan_unit(":p:n", "id", rootless=True).slice == "user.slice"
    assert systemd.plan_unit("a.slice:p:b.slice", "id").name == "b.slice"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/plain/path", 'to be of format "slice:prefix:name" for systemd cgroups, got "/plain/path" instead'),
        ("a:b", "slice:prefix:name"),
        ("noslice:p:n", "invalid slice name: noslice"),
        ("a--b.slice:p:n", "invalid slice name"),
        (".slice:p:n", "invalid slice name"),
        ("a/b.slice:p:n", "invalid slice name"),
        ("a.slice:p:../x", "invalid unit name"),
    ],
)
def test_paths_that_name_no_unit(path: str, message: str) -> None:
    """Are refused."""
    with pytest.raises(RuntimeFailure, match=message):
        systemd.plan_unit(path, "id")


def test_where_a_unit_is() -> None:
    """Each dash of a slice is a level."""
    assert systemd.expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert systemd.expand_slice("-.slice") == "/"
    found = Hierarchies(HYBRID, {"memory": ("/sys/fs/cgroup/memory", "/own")}, ("/sys/fs/cgroup/unified", "/own"))
    paths = systemd.container_paths(found, systemd.plan_unit("a-b.slice:p:n", "id"))
    assert paths.controllers == {"memory": "/sys/fs/cgroup/memory/a.slice/a-b.slice/p-n.scope"}
    assert paths.unified == "/sys/fs/cgroup/unified/a.slice/a-b.slice/p-n.scope"
    root = Hierarchies(V2, {}, ("/sys/fs/cgroup", "/"))
    assert systemd.container_paths(root, systemd.plan_unit("-.slice:p:n", "id")).unified == "/sys/fs/cgroup/p-n.scope"
    assert systemd.container_paths(root, systemd.plan_unit("a.slice:p:a-b.slice", "id")).unified.endswith(
        "/a.slice/a-b.slice"
    )


def test_properties_of_a_unit() -> None:
    """A scope is delegated and holds the process; a slice wants its parent; annotations add."""
    scope = dict(systemd.unit_properties(systemd.plan_unit("", "id"), 7, unified=False, annotations={"a": "b"}))
    assert scope["Slice"] == ("s", "system.slice")
    assert (scope["Delegate"], scope["PIDs"], scope["DefaultDependencies"]) == (("b", True), ("au", [7]), ("b", False))
    assert "BlockIOAccounting" in scope
    assert "IOAccounting" not in scope
    unit = systemd.plan_unit("x.slice:p:x-y.slice", "id")
    annotations = {"org.systemd.property.TimeoutStopSec": "3"}
    inner = dict(systemd.unit_properties(unit, 7, unified=True, annotations=annotations))
    assert inner["Wants"] == ("as", ["x.slice"])
    assert inner["TimeoutStopUSec"] == ("t", 3_000_000)
    assert "Delegate" not in inner


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", ("b", True)),
        ("'a b'", ("s", "a b")),
        ('"x"', ("s", "x")),
        ("uint64 5", ("t", 5)),
        ("-7", ("i", -7)),
        ("['a', 'b']", ("as", ["a", "b"])),
    ],
)
def test_values_of_annotations(text: str, value: tuple[str, Any]) -> None:
    """In GVariant's text format."""
    assert systemd.parse_variant(text) == value


@pytest.mark.parametrize(("name", "text"), [("Fine", "nonsense"), ("Fine", "[1]"), ("x", "1"), ("Bad-Name", "1")])
def test_annotations_that_are_none(name: str, text: str) -> None:
    """Are refused, not ignored."""
    with pytest.raises(RuntimeFailure, match=f"annotation org.systemd.property.{name}"):
        systemd.annotated_properties({f"org.systemd.property.{name}": text})


def test_limits_as_properties() -> None:
    """What systemd has a property for; it counts processor time in whole percents."""
    resources: Any = {
        "memory": {"limit": 100, "reservation": 50, "swap": 300},
        "cpu": {"shares": 1024, "quota": 1234, "period": 100_000, "cpus": "0-1,8"},
        "pids": {"limit": 0},
        "blockIO": {"weight": 10},
    }
    old = dict(systemd.resource_properties(resources, unified=False))
    assert (old["MemoryLimit"], old["CPUShares"], old["BlockIOWeight"]) == (("t", 100), ("t", 1024), ("t", 10))
    assert (old["CPUQuotaPeriodUSec"], old["CPUQuotaPerSecUSec"]) == (("t", 100_000), ("t", 20_000))
    assert (old["TasksMax"], old["AllowedCPUs"]) == (("t", 1), ("ay", [3, 1]))
    new = dict(systemd.resource_properties(resources, unified=True))
    assert (new["MemoryMax"], new["MemoryLow"], new["MemorySwapMax"]) == (("t", 100), ("t", 50), ("t", 200))
    assert "CPUWeight" in new
    unlimited: Any = {"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}
    assert set(dict(systemd.resource_properties(unlimited, unified=True)).values()) == {("t", systemd.INFINITY)}
    assert systemd.resource_properties({}, unified=True) == []


@pytest.fixture
def systemd_bus(fake_systemd, monkeypatch: pytest.MonkeyPatch):
    """The fake, found as root finds the system bus."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", fake_systemd.address)
    return fake_systemd


PATHS = Paths(V2, {}, "/sys/fs/cgroup/x")


def test_a_unit_is_started_and_stopped(systemd_bus) -> None:
    """Over the bus, waiting for the jobs."""
    unit = systemd.plan_unit("", "id")
    systemd.start(unit, 7, PATHS, {"pids": {"limit": 5}}, {})
    assert systemd_bus.members() == ["Hello", "AddMatch", "Subscribe", "StartTransientUnit", "SetUnitProperties"]
    assert systemd_bus.properties("StartTransientUnit")["PIDs"] == ("au", [7])
    assert systemd_bus.properties("SetUnitProperties") == {"TasksMax": ("t", 5)}
    systemd.stop(unit.name)
    assert systemd_bus.members()[-2:] == ["StopUnit", "ResetFailedUnit"]
    systemd.update(unit.name, PATHS, {})
    assert systemd_bus.members()[-1] == "ResetFailedUnit"


def test_a_failed_unit_that_is_left_over_goes(systemd_bus) -> None:
    """Once; then it is an error."""
    exists = "org.freedesktop.systemd1.UnitExists"
    systemd_bus.errors["StartTransientUnit"] = [exists]
    systemd.start(systemd.plan_unit("", "id"), 7, PATHS, {}, {})
    assert systemd_bus.members()[3:] == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]
    systemd_bus.errors["StartTransientUnit"] = [exists, exists]
    with pytest.raises(RuntimeFailure, match=r'unable to start unit "runc-id\.scope": it did not work'):
        systemd.start(systemd.plan_unit("", "id"), 7, PATHS, {}, {})


def test_a_job_that_fails(systemd_bus) -> None:
    """Is told with its result."""
    systemd_bus.result = "failed"
    with pytest.raises(RuntimeFailure, match=r"error creating systemd unit `runc-id\.scope`: got `failed`"):
        systemd.start(systemd.plan_unit("", "id"), 7, PATHS, {}, {})


def test_a_unit_that_is_gone_is_stopped(systemd_bus) -> None:
    """Other errors are errors."""
    systemd_bus.errors["StopUnit"] = ["org.freedesktop.systemd1.NoSuchUnit"]
    systemd_bus.errors["ResetFailedUnit"] = ["org.freedesktop.systemd1.NoSuchUnit"]
    systemd.stop("x.scope")
    systemd_bus.errors["StopUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    with pytest.raises(RuntimeFailure, match="it did not work"):
        systemd.stop("x.scope")


def test_units_of_a_user_are_below_his_systemd(fake_systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says where that is; root's are below the root."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert systemd.own_base() == ""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", fake_systemd.address)
    base = systemd.own_base()
    root = Hierarchies(V2, {}, ("/sys/fs/cgroup", "/"))
    paths = systemd.container_paths(root, systemd.plan_unit("", "id", rootless=True), base)
    assert paths.unified == "/sys/fs/cgroup/user.slice/of-the-user/user.slice/runc-id.scope"


def test_no_bus(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Is an error; a user without a session is told so."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(systemd, "PRIVATE_SOCKET", str(tmp_path / "private"))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(RuntimeFailure, match="failed to connect to dbus: dial unix"):
        systemd.stop("x.scope")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(RuntimeFailure, match="could not detect DBUS_SESSION_BUS_ADDRESS"):
        systemd.stop("x.scope")


def test_systemd_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Is told in the words that callers know."""
    monkeypatch.setattr(systemd, "RUNNING", str(tmp_path / "none"))
    with pytest.raises(RuntimeFailure, match="systemd not running on this host, cannot use systemd cgroups manager"):
        systemd.require_running()
