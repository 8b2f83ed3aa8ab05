"""An engine that comes up over what another one left, at whatever moment that one was killed."""

from __future__ import annotations

import pytest

from dockerd.containers import Condition, Status
from dockerd.containers.model import Container
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.containerd.types import mount_pb2
from gantry.contracts.containerd.v1.types import task_pb2

from .conftest import World


def test_a_running_container_is_adopted(world: World) -> None:
    """Same process, streams taken up, network kept; its later exit is noticed."""
    container_id = world.run()
    service = world.restart_engine()
    assert service.get("c1").state.status is Status.RUNNING
    assert world.networks.live == [container_id]
    assert ("restore", container_id) in world.streams.told
    world.containerd.end(container_id, 6)
    assert world.events.wait_for("die")["exitCode"] == "6"


def test_an_exit_while_no_engine_was_there_keeps_its_code(world: World) -> None:
    """The task still knows it."""
    container_id = world.run()
    world.service.close()
    world.containerd.end(container_id, 9, tell=False)
    service = world.restart_engine()
    state = service.get("c1").state
    assert (state.status, state.exit_code) == (Status.EXITED, 9)
    assert not world.networks.allocated


def test_a_task_that_is_gone_ended_unseen(world: World) -> None:
    """255, as the real engine has it."""
    container_id = world.run()
    world.service.close()
    del world.containerd.live_tasks[container_id]
    assert world.restart_engine().get("c1").state.exit_code == 255


def test_an_unfinished_creation_is_undone(world: World) -> None:
    """The row was written first, so the snapshot is found and the name is free again."""
    draft = Container(
        id="f" * 64,
        name="half",
        created=1,
        image="busybox",
        image_id="sha256:1",
        chain_id="sha256:c",
        config={},  # type: ignore[arg-type]
        host_config={},  # type: ignore[arg-type]
        path="sh",
        args=[],
        snapshotter="overlayfs",
        root=world.config.container_root("f" * 64),
    )
    world.service._parts.store.reserve(draft)
    world.containerd.snapshot_keys[draft.id] = "sha256:c"
    service = world.restart_engine()
    assert not world.containerd.snapshot_keys
    service.create({"Image": "busybox"}, "half")


def test_an_unfinished_start_is_undone(world: World) -> None:
    """A task without a recorded run is ended: its client saw no success."""
    container, _ = world.service.create({"Image": "busybox"}, "c1")
    world.containerd.create_container(_request(container.id))
    world.containerd.create_task(_request(container.id))
    world.containerd.live_tasks[container.id].status = task_pb2.CREATED
    service = world.restart_engine()
    assert service.get("c1").state.status is Status.CREATED
    assert not world.containerd.live_tasks
    assert not world.containerd.records


def test_an_unfinished_removal_is_finished(world: World) -> None:
    """REMOVING was recorded first."""
    world.service.create({"Image": "busybox"}, "c1")
    handle = world.service._registry.find("c1")
    world.service._parts.change(handle, status=Status.REMOVING)
    assert world.restart_engine().all() == []
    assert not world.containerd.snapshot_keys


def test_a_container_for_one_run_that_ended_meanwhile_is_removed(world: World) -> None:
    """--rm holds over the engine's absence."""
    container_id = world.run(HostConfig={"AutoRemove": True})
    world.service.close()
    world.containerd.end(container_id, 0, tell=False)
    assert world.restart_engine().all() == []


def test_a_container_for_one_run_that_did_not_start_is_removed(world: World) -> None:
    """Its client may wait for that: the engine that was to start it is gone."""
    container, _ = world.service.create({"Image": "busybox", "HostConfig": {"AutoRemove": True}}, "c1")
    assert world.restart_engine().all() == []
    assert world.streams.answers == [(container.id, tuple(Condition), 0)]


def test_what_has_no_record_is_removed_from_containerd(world: World) -> None:
    """Snapshots and containers that this engine made and does not know."""
    world.containerd.snapshot_keys["stranger"] = "sha256:c"
    world.containerd.create_container(_request("stranger"))
    world.restart_engine()
    assert not world.containerd.snapshot_keys
    assert not world.containerd.records


@pytest.mark.parametrize(
    ("policy", "stopped", "starts"),
    [("always", True, True), ("unless-stopped", True, False), ("unless-stopped", False, True), ("no", False, False)],
)
def test_restart_policies_hold_when_the_engine_comes_up(world: World, policy: str, stopped: bool, starts: bool) -> None:
    """``always`` starts even what the user had stopped."""
    container_id = world.run(HostConfig={"RestartPolicy": {"Name": policy}})
    if stopped:
        world.service.stop("c1")
    else:
        world.service.close()
        world.containerd.end(container_id, 0, tell=False)
    service = world.restart_engine()
    if starts:
        world.events.wait_for("start", 2)
        assert service.get("c1").state.status is Status.RUNNING
    else:
        assert service.get("c1").state.status is Status.EXITED
        assert world.events.actions().count("start") == 1


def test_an_exit_during_containerds_absence_is_noticed_when_it_is_back(world: World) -> None:
    """The subscription is renewed, and tasks are compared with what was known."""
    container_id = world.run()
    world.containerd.end(container_id, 2, tell=False)
    for stream in list(world.containerd.streams):
        stream.cancel()
    assert world.events.wait_for("die")["exitCode"] == "2"


def test_an_exit_that_is_told_twice_counts_once(world: World) -> None:
    """Event and comparison may both bring it."""
    container_id = world.run()
    world.containerd.end(container_id, 1)
    world.events.wait_for("die")
    world.service._reconciler.resynchronize()
    assert world.events.actions().count("die") == 1


def test_a_start_that_the_list_of_tasks_missed_is_no_exit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers come and go while the tasks are listed: what the list lacks is looked at again."""
    world.run()
    nothing = tasks_pb2.ListTasksResponse(tasks=[])
    monkeypatch.setattr(world.containerd.tasks, "List", lambda request, timeout=None: nothing)
    world.service._reconciler.resynchronize()
    assert world.service.get("c1").state.status is Status.RUNNING
    assert "die" not in world.events.actions()


def _request(container_id: str) -> object:
    class Request:
        """Enough of a request for the fake."""

        def __init__(self) -> None:
            self.container_id = container_id
            self.container = self
            self.id = container_id
            self.rootfs: list[mount_pb2.Mount] = []

    return Request()
