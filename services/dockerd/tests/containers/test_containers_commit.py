"""docker commit over fakes: the settings that the image gets, the pause, the event."""

from __future__ import annotations

from typing import Any

import pytest

from dockerd import errors
from dockerd.containers.commit import Commit
from dockerd.images.commit import CommitRequest

from .conftest import World


@pytest.fixture
def committed(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, CommitRequest, str]]:
    """What the images were asked to make."""
    asked: list[tuple[str, CommitRequest, str]] = []

    def commit(parent: str, request: CommitRequest, reference: str) -> str:
        asked.append((parent, request, reference))
        return "sha256:made"

    monkeypatch.setattr(world.images, "commit", commit, raising=False)
    return asked


def test_the_image_has_the_containers_settings(world: World, committed: list[Any]) -> None:
    """Its own, changed by the instructions; what the client says takes their place."""
    world.service.create({"Image": "busybox", "Cmd": ["run", "me"], "Env": ["A=b"], "User": "7"}, "c1")
    asked = Commit("made:one", "a comment", "an author", ("ENV C=d",), config={"User": "8"})
    assert world.service.commit("c1", asked) == "sha256:made"
    ((parent, request, reference),) = committed
    assert (parent, reference) == ("sha256:1", "made:one")
    assert (request.command, request.comment, request.author) == ("run me", "a comment", "an author")
    assert request.config["User"] == "8"
    assert set(request.config["Env"]) == {"A=b", "FOO=bar", "C=d"}
    assert world.events.wait_for("commit")["imageRef"] == "made:one"


@pytest.mark.parametrize("pause", [True, False])
def test_a_running_container_is_paused_meanwhile(world: World, committed: list[Any], pause: bool) -> None:
    """Unless the client says that it may go on."""
    world.run()
    world.service.commit("c1", Commit(pause=pause))
    assert ("Tasks.Pause" in world.containerd.calls) is pause
    assert ("Tasks.Resume" in world.containerd.calls) is pause


def test_a_bad_instruction_changes_nothing(world: World, committed: list[Any]) -> None:
    """It is refused before the container is paused."""
    world.run()
    with pytest.raises(errors.InvalidParameter, match="FROM is not a valid change command"):
        world.service.commit("c1", Commit(changes=("FROM x",)))
    assert "Tasks.Pause" not in world.containerd.calls
    assert not committed
