"""Containers through their life, over a containerd that is a fake: what happens, in which order, what is left."""

from __future__ import annotations

import os
import threading

import pytest

from dockerd import errors
from dockerd.containers import Condition, Outcome, Status

from .conftest import TIMEOUT, World


def test_a_run_goes_from_creation_to_its_exit_code(world: World) -> None:
    """Created, running, exited: with the code that containerd told, and nothing left in containerd but the snapshot."""
    container_id = world.run()
    running = world.service.get("c1")
    assert running.state.status is Status.RUNNING
    assert running.state.pid == world.containerd.live_tasks[container_id].pid
    world.containerd.end(container_id, 3)
    assert world.events.wait_for("die")["exitCode"] == "3"
    ended = world.service.get("c1").state
    assert (ended.status, ended.exit_code, ended.pid) == (Status.EXITED, 3, 0)
    world.service.remove("c1")
    assert not world.containerd.records
    assert not world.containerd.live_tasks
    assert not world.networks.allocated
    assert not world.containerd.snapshot_keys
    assert world.events.actions() == ["create", "start", "die", "destroy"]


def test_streams_are_told_in_the_order_that_loses_nothing(world: World) -> None:
    """Attached before the start, drained after the exit."""
    container_id = world.run()
    world.containerd.end(container_id, 0)
    world.events.wait_for("die")
    assert world.streams.told == [("before_start", container_id), ("after_exit", container_id)]


def test_the_snapshot_is_kept_from_garbage_collection_by_its_label(world: World) -> None:
    """And it stands on the image's chain."""
    container, _ = world.service.create({"Image": "busybox"})
    assert world.containerd.snapshot_keys == {container.id: "sha256:c"}


def test_an_unknown_image_is_named(world: World) -> None:
    """The CLI pulls when it reads this."""
    with pytest.raises(errors.NotFound, match="No such image: nosuch:latest"):
        world.service.create({"Image": "nosuch"})


def test_a_name_that_is_taken_names_its_holder(world: World) -> None:
    """In the words that clients look for."""
    first, _ = world.service.create({"Image": "busybox"}, "web")
    with pytest.raises(errors.Conflict) as caught:
        world.service.create({"Image": "busybox"}, "/web")
    assert str(caught.value) == (
        f'Conflict. The container name "/web" is already in use by container "{first.id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


def test_a_creation_that_fails_leaves_nothing(world: World) -> None:
    """No row, no snapshot, no directory, no anonymous volume, and the name is free."""
    world.containerd.fail["Snapshots.Prepare"] = errors.SystemFailure("disk full")
    with pytest.raises(errors.SystemFailure):
        world.service.create({"Image": "busybox", "Volumes": {"/data": {}}}, "web")
    assert world.volumes.removed == ["anonymous0"]
    assert os.listdir(os.path.join(world.config.data_root, "containers")) == []
    assert world.service.all() == []
    world.service.create({"Image": "busybox"}, "web")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('OCI runtime create failed: exec: "x": executable file not found in $PATH', 127),
        ('exec: "/etc/passwd": permission denied', 126),
    ],
)
def test_a_command_that_cannot_run_is_undone_and_has_the_shells_code(world: World, text: str, code: int) -> None:
    """HTTP 400, State.ExitCode and State.Error as the real engine; network and task are gone."""
    container, _ = world.service.create({"Image": "busybox"}, "c1")
    world.containerd.fail["Tasks.Create"] = errors.SystemFailure(text)
    with pytest.raises(errors.InvalidParameter, match="failed to create task for container: "):
        world.service.start_container("c1")
    state = world.service.get("c1").state
    assert (state.status, state.exit_code) == (Status.CREATED, code)
    assert text in state.error
    assert not world.networks.allocated
    assert ("forget", container.id) in world.streams.told
    assert not world.containerd.records


def test_a_network_that_cannot_be_had_stops_the_start(world: World) -> None:
    """The error is the network's, the exit code 128."""
    world.service.create({"Image": "busybox"}, "c1")
    world.networks.fail = errors.SystemFailure("port is already allocated")
    with pytest.raises(errors.SystemFailure, match="port is already allocated"):
        world.service.start_container("c1")
    assert world.service.get("c1").state.exit_code == 128


def test_a_container_for_one_run_goes_when_its_start_fails(world: World) -> None:
    """--rm holds for that too."""
    world.service.create({"Image": "busybox", "HostConfig": {"AutoRemove": True}}, "c1")
    world.containerd.fail["Tasks.Create"] = errors.SystemFailure("no")
    with pytest.raises(errors.SystemFailure):
        world.service.start_container("c1")
    with pytest.raises(errors.NotFound, match="No such container: c1"):
        world.service.get("c1")


def test_a_second_start_is_not_modified(world: World) -> None:
    """304."""
    world.run()
    with pytest.raises(errors.NotModified):
        world.service.start_container("c1")


def test_a_container_for_one_run_is_removed_after_it(world: World) -> None:
    """Who waits for its removal learns the exit code; its anonymous volumes go with it."""
    container_id = world.run(HostConfig={"AutoRemove": True}, Volumes={"/data": {}})
    outcomes: list[Outcome] = []
    done = threading.Event()
    world.service.on_exit(container_id, Condition.REMOVED, lambda outcome: (outcomes.append(outcome), done.set()))
    world.containerd.end(container_id, 4)
    assert done.wait(TIMEOUT)
    assert outcomes == [Outcome(4)]
    assert world.service.all() == []
    assert world.volumes.removed == ["anonymous0"]
    assert world.streams.answers[-1] == (container_id, tuple(Condition), 4)


def test_an_exit_during_the_start_is_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can end before Tasks.Start has answered: its end is handled right after the start, without being told
    again."""
    world.service.create({"Image": "busybox"}, "c1")
    handle = world.service._registry.find("c1")
    submit, submitted = handle.submit, threading.Event()
    monkeypatch.setattr(handle, "submit", lambda action: (submit(action), submitted.set()))

    def end(container_id: str) -> None:
        world.containerd.end(container_id, 7)
        assert submitted.wait(TIMEOUT)

    world.containerd.before_start = end
    world.service.start_container("c1")
    assert world.service.get("c1").state.exit_code == 7
    assert world.events.actions() == ["create", "start", "die"]


def test_an_exit_of_an_earlier_process_is_not_news(world: World) -> None:
    """It is told late, when the container runs again."""
    container_id = world.run()
    earlier = world.service.get("c1").state.pid
    world.service.restart("c1")
    handle = world.service._registry.find("c1")
    with handle.exclusive():
        world.service._exits.handle(handle, earlier, 1, "2026-11-24T06:38:59Z")
    assert world.service.get("c1").state.status is Status.RUNNING
    assert world.containerd.live_tasks[container_id].pid == world.service.get("c1").state.pid


def test_what_an_end_could_not_take_away_goes_with_the_removal(world: World) -> None:
    """A task that containerd would not delete."""
    container_id = world.run()
    refusing = errors.SystemFailure("busy")
    delete = world.containerd.tasks.Delete
    world.containerd.tasks.Delete = lambda request, timeout=None: (_ for _ in ()).throw(refusing)
    world.containerd.end(container_id, 0)
    world.events.wait_for("die")
    world.containerd.tasks.Delete = delete
    assert container_id in world.containerd.live_tasks
    world.service.remove("c1")
    assert not world.containerd.live_tasks
    assert not world.containerd.records


def test_stop_asks_and_then_kills(world: World) -> None:
    """SIGTERM, the time-out, SIGKILL; the events tell both."""
    container_id = world.run()
    world.containerd.dies_of = {9}
    task = world.containerd.live_tasks[container_id]
    world.service.stop("c1", timeout=0)
    assert task.signals == [15, 9]
    assert world.service.get("c1").state.exit_code == 137
    assert world.events.actions() == ["create", "start", "kill", "kill", "die", "stop"]


def test_stop_sends_the_signal_that_the_container_wants(world: World) -> None:
    """StopSignal of the settings."""
    container_id = world.run(StopSignal="SIGINT")
    world.containerd.dies_of = {2}
    task = world.containerd.live_tasks[container_id]
    world.service.stop("c1")
    assert task.signals == [2]


def test_stop_of_a_container_that_does_not_run_is_not_modified(world: World) -> None:
    """304."""
    world.service.create({"Image": "busybox"}, "c1")
    with pytest.raises(errors.NotModified):
        world.service.stop("c1")


def test_kill_needs_a_running_container_and_a_signal_that_exists(world: World) -> None:
    """In the real engine's words."""
    container, _ = world.service.create({"Image": "busybox"}, "c1")
    with pytest.raises(errors.Conflict, match=f"cannot kill container: c1: container {container.id} is not running"):
        world.service.kill("c1")
    with pytest.raises(errors.InvalidParameter, match="cannot kill container: c1: invalid signal: FOO"):
        world.service.kill("c1", "FOO")


def test_pause_and_unpause_know_the_state(world: World) -> None:
    """Twice is a conflict."""
    container_id = world.run()
    world.service.pause("c1")
    assert world.service.get("c1").state.status is Status.PAUSED
    with pytest.raises(errors.Conflict, match=f"Container {container_id} is already paused"):
        world.service.pause("c1")
    with pytest.raises(errors.Conflict, match="cannot start a paused container, try unpause instead"):
        world.service.start_container("c1")
    world.service.unpause("c1")
    with pytest.raises(errors.Conflict, match=f"Container {container_id} is not paused"):
        world.service.unpause("c1")


def test_a_running_container_is_not_removed_without_force(world: World) -> None:
    """And with it, it is killed first."""
    container_id = world.run()
    with pytest.raises(errors.Conflict, match='cannot remove container "c1": container is running: stop the container'):
        world.service.remove("c1")
    world.service.remove("c1", force=True)
    assert container_id not in world.containerd.live_tasks
    assert world.events.actions() == ["create", "start", "kill", "die", "destroy"]


def test_a_removal_that_fails_can_be_repeated(world: World) -> None:
    """The container is dead meanwhile, and its waiters learn why."""
    world.service.create({"Image": "busybox"}, "c1")
    outcomes: list[Outcome] = []
    world.service.on_exit("c1", Condition.REMOVED, outcomes.append)
    world.containerd.fail["Snapshots.Remove"] = errors.SystemFailure("busy")
    with pytest.raises(errors.SystemFailure, match="busy"):
        world.service.remove("c1")
    assert world.service.get("c1").state.status is Status.DEAD
    assert outcomes == [Outcome(0, "busy")]
    world.service.remove("c1")
    assert world.service.all() == []


def test_a_restart_policy_starts_it_again_until_its_count_is_reached(world: World) -> None:
    """on-failure:1: one more run, then it stays."""
    container_id = world.run(HostConfig={"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1}})
    world.containerd.end(container_id, 1)
    world.events.wait_for("start", 2)
    assert world.service.get("c1").state.restart_count == 1
    world.containerd.end(container_id, 1)
    world.events.wait_for("die", 2)
    world.service.on_exit("c1", Condition.NOT_RUNNING, lambda _outcome: None)
    assert world.service.get("c1").state.status in (Status.EXITED, Status.RUNNING)
    assert world.service.get("c1").state.restart_count == 1


def test_a_stopped_container_is_not_restarted(world: World) -> None:
    """Whatever its policy."""
    world.run(HostConfig={"RestartPolicy": {"Name": "always"}})
    world.service.stop("c1")
    assert world.service.get("c1").state.status is Status.EXITED
    assert world.service.get("c1").state.stopped_by_user


def test_restart_keeps_a_container_for_one_run(world: World) -> None:
    """--rm does not apply to the stop in between."""
    world.run(HostConfig={"AutoRemove": True})
    world.service.restart("c1")
    assert world.service.get("c1").state.status is Status.RUNNING
    assert world.events.actions()[-2:] == ["start", "restart"]


def test_rename_frees_the_old_name(world: World) -> None:
    """And refuses what is taken, malformed or the same."""
    world.service.create({"Image": "busybox"}, "one")
    other, _ = world.service.create({"Image": "busybox"}, "two")
    with pytest.raises(errors.Conflict, match=r'allocating new name: Conflict[.] The container name "/two"'):
        world.service.rename("one", "two")
    with pytest.raises(
        errors.InvalidParameter, match=r"Error when allocating new name: Invalid container name \(/#b\)"
    ):
        world.service.rename("one", "#b")
    with pytest.raises(errors.InvalidParameter, match="Renaming a container with the same name as its current name"):
        world.service.rename("one", "one")
    world.service.rename("two", "three")
    assert world.service.get("three").id == other.id
    with pytest.raises(errors.NotFound):
        world.service.get("two")


def test_waiting_for_a_container_that_does_not_run_is_answered_at_once(world: World) -> None:
    """With the code of its last run; the next exit is another matter."""
    world.service.create({"Image": "busybox"}, "c1")
    outcomes: list[Outcome] = []
    world.service.on_exit("c1", Condition.NOT_RUNNING, outcomes.append)
    assert outcomes == [Outcome(0)]
    world.service.on_exit("c1", Condition.NEXT_EXIT, outcomes.append)
    assert len(outcomes) == 1


def test_a_busy_container_does_not_block_others_or_listings(world: World) -> None:
    """A start that hangs holds that container alone."""
    world.service.create({"Image": "busybox"}, "stuck")
    reached, go_on = threading.Event(), threading.Event()

    def hang(_container_id: str) -> None:
        reached.set()
        go_on.wait(TIMEOUT)

    world.containerd.before_start = hang
    starter = threading.Thread(target=world.service.start_container, args=("stuck",))
    starter.start()
    assert reached.wait(TIMEOUT)
    world.containerd.before_start = lambda _container_id: None
    world.run("free")
    assert {entry.name for entry in world.service.all()} == {"stuck", "free"}
    go_on.set()
    starter.join(TIMEOUT)
    assert world.service.get("stuck").state.status is Status.RUNNING


def test_prune_takes_what_does_not_run(world: World) -> None:
    """And tells which."""
    world.run("runs")
    world.service.create({"Image": "busybox"}, "idle")
    removed = world.service.prune(lambda _container: True)
    assert [entry.name for entry in removed] == ["idle"]
    assert [entry.name for entry in world.service.all()] == ["runs"]


def test_an_update_reaches_the_running_task(world: World) -> None:
    """Limits go to the task; what cannot change is refused by name."""
    world.run()
    world.service.update("c1", {"CpuShares": 512})
    assert "Tasks.Update" in world.containerd.calls
    assert world.service.get("c1").host_config.cpu_shares == 512
    with pytest.raises(errors.NotSupported, match="Privileged cannot be changed by an update"):
        world.service.update("c1", {"Privileged": True})


def test_a_stop_that_takes_its_time_keeps_no_thread(world: World) -> None:
    """Begun, it comes back at once; the second signal and the news of the end find their way by themselves."""
    container_id = world.run()
    world.containerd.dies_of = {9}
    told: list[errors.EngineError | None] = []
    done = threading.Event()

    def tell(error: errors.EngineError | None) -> None:
        told.append(error)
        done.set()

    world.service.begin_stop("c1", 1, "", tell)
    assert world.containerd.live_tasks[container_id].signals == [15]
    assert not done.is_set()
    assert done.wait(TIMEOUT)
    assert told == [None]
    assert world.events.actions()[-4:] == ["kill", "kill", "die", "stop"]


def test_a_begun_restart_ends_with_a_running_container(world: World) -> None:
    """Also when it did not run before."""
    world.run()
    for _ in range(2):
        done = threading.Event()
        world.service.begin_restart("c1", None, "", lambda error, done=done: done.set())  # type: ignore[misc]
        assert done.wait(TIMEOUT)
        assert world.service.get("c1").state.status is Status.RUNNING
        world.service.stop("c1")
    assert world.events.actions().count("restart") == 2


def test_a_stop_of_what_does_not_run_says_so_at_once(world: World) -> None:
    """Nothing is begun, and nobody is told."""
    world.service.create({"Image": "busybox"}, "c1")
    with pytest.raises(errors.NotModified):
        world.service.begin_stop("c1", None, "", lambda error: pytest.fail(str(error)))


def test_a_removal_by_force_of_a_container_for_one_run(world: World) -> None:
    """It goes with its end; that it is gone then is no error."""
    world.service.create({"Image": "busybox", "HostConfig": {"AutoRemove": True}}, "c1")
    world.service.start_container("c1")
    world.service.remove("c1", force=True)
    with pytest.raises(errors.NotFound):
        world.service.get("c1")


def test_an_update_that_lifts_the_limit_of_processes(world: World) -> None:
    """Any number that is no limit; the policy of a container for one run stays."""
    world.service.create({"Image": "busybox", "HostConfig": {"PidsLimit": 5, "AutoRemove": True}}, "c1")
    world.service.update("c1", {"PidsLimit": -1})
    assert world.service.get("c1").host_config.pids_limit == 0
    with pytest.raises(errors.Conflict, match="because AutoRemove is enabled"):
        world.service.update("c1", {"RestartPolicy": {"Name": "always"}})
