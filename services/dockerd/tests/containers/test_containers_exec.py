"""Execs: what is run as whom, and their ends."""

from __future__ import annotations

import threading

import pytest

from dockerd import errors
from dockerd.containers import exec as execs
from dockerd.containers.users import Identity
from gantry.contracts.containerd.events import task_pb2 as task_events

from .conftest import World


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """No container's /proc is looked at."""
    monkeypatch.setattr(execs, "_identity", lambda container, user: Identity(7 if user else 0, 0, (0,)))


def test_an_exec_runs_with_the_containers_settings_and_its_own(world: World) -> None:
    """Variables, directory, capabilities and user."""
    world.run(Env=["A=1"], WorkingDir="/w")
    made = world.execs.create("c1", {"Cmd": ["ls", "-l"], "Env": ["B=2"], "User": "app", "Tty": True})
    world.execs.prepare(made.id, console_size=[24, 80])
    process = world.containerd.exec_specs[made.id]
    assert process["args"] == ["ls", "-l"]
    assert process["user"]["uid"] == 7
    assert process["cwd"] == "/w"
    assert {"A=1", "B=2", "TERM=xterm"} <= set(process["env"])
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "CAP_SYS_ADMIN" not in process["capabilities"]["bounding"]


def test_the_end_of_an_exec_is_recorded_and_told(world: World) -> None:
    """Exit code, event, drained streams."""
    container_id = world.run()
    made = world.execs.create("c1", {"Cmd": ["sh", "-c", "exit 4"]})
    world.execs.prepare(made.id)
    world.execs.start(made.id)
    assert world.execs.ids(container_id) == [made.id]
    world.containerd.send("/tasks/exit", task_events.TaskExit(container_id=container_id, id=made.id, exit_status=4))
    attributes = world.events.wait_for("exec_die")
    assert (attributes["execID"], attributes["exitCode"]) == (made.id, "4")
    assert world.execs.get(made.id).exit_code == 4
    assert ("after_exit", made.id) in world.streams.told
    assert [action for action in world.events.actions() if action.startswith("exec")] == [
        "exec_create: sh -c exit 4",
        "exec_start: sh -c exit 4",
        "exec_die",
    ]


def test_the_exit_code_is_known_before_its_event_came(world: World) -> None:
    """A client asks as soon as it has read the end of the output."""
    world.run()
    made = world.execs.create("c1", {"Cmd": ["true"]})
    world.execs.prepare(made.id)
    world.execs.start(made.id)
    found = world.execs.get(made.id)
    assert (found.running, found.exit_code) == (False, 5)


def test_who_asks_during_the_start_waits_for_it(world: World) -> None:
    """The output can end before Tasks.Start has answered here."""
    world.run()
    made = world.execs.create("c1", {"Cmd": ["true"]})
    world.execs.prepare(made.id)
    asked, codes = threading.Event(), []

    def ask() -> None:
        asked.set()
        codes.append(world.execs.get(made.id).exit_code)

    asker = threading.Thread(target=ask)

    def during(_container_id: str) -> None:
        asker.start()
        asked.wait(5)

    world.containerd.before_start = during
    world.execs.start(made.id)
    asker.join(5)
    assert codes == [5]


def test_a_command_that_cannot_run_has_the_shells_code(world: World) -> None:
    """And the exec is deleted at containerd once its client knows."""
    world.run()
    made = world.execs.create("c1", {"Cmd": ["nosuch"]})
    world.execs.prepare(made.id)
    world.containerd.fail["Tasks.Start"] = errors.SystemFailure('exec: "nosuch": executable file not found in $PATH')
    with pytest.raises(errors.InvalidParameter, match="executable file not found"):
        world.execs.start(made.id)
    assert world.execs.get(made.id).exit_code == 127
    assert "Tasks.DeleteProcess" not in world.containerd.calls
    world.execs.clean(made.id)
    assert "Tasks.DeleteProcess" in world.containerd.calls


def test_what_an_exec_needs(world: World) -> None:
    """A running container that is not paused, and a command; it runs once."""
    container, _ = world.service.create({"Image": "busybox"}, "c1")
    with pytest.raises(errors.InvalidParameter, match="No exec command specified"):
        world.execs.create("c1", {"Cmd": []})
    with pytest.raises(errors.Conflict, match=f"container {container.id} is not running"):
        world.execs.create("c1", {"Cmd": ["ls"]})
    world.service.start_container("c1")
    made = world.execs.create("c1", {"Cmd": ["ls"]})
    world.execs.prepare(made.id)
    with pytest.raises(errors.Conflict, match=f"exec command {made.id} is already running"):
        world.execs.prepare(made.id)
    world.service.pause("c1")
    with pytest.raises(errors.Conflict, match="Container c1 is paused, unpause the container before exec"):
        world.execs.create("c1", {"Cmd": ["ls"]})
    with pytest.raises(errors.NotFound, match="No such exec instance: nope"):
        world.execs.get("nope")


def test_execs_go_with_their_container(world: World) -> None:
    """404 after the removal."""
    world.run()
    made = world.execs.create("c1", {"Cmd": ["ls"]})
    world.service.remove("c1", force=True)
    with pytest.raises(errors.NotFound):
        world.execs.get(made.id)
