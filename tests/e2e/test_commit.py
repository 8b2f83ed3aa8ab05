"""docker commit: a container becomes an image that runs, with its settings, its history and its changes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.engine import Engine


@pytest.fixture
def tidy(clean: Engine) -> Iterator[Engine]:
    """The engine; the images that a test names ``made`` go."""
    yield clean
    clean.remove_containers()
    for name in clean.out("images", "-q", "made").split():
        clean.docker("rmi", "-f", name, check=False)


def test_a_running_container_becomes_an_image(tidy: Engine) -> None:
    """Its files, its configuration and the instructions are in the image; it goes on running."""
    tidy.docker("run", "-d", "--name", "source", "-e", "A=b", "-l", "x=y", "busybox", "sleep", "1000")
    tidy.docker("exec", "source", "sh", "-c", "echo new > /new; rm /etc/group; echo more >> /etc/passwd")
    identifier = tidy.out("commit", "-m", "a comment", "-a", "an author", "-c", "ENV C=d", "source", "made:one")
    assert identifier.startswith("sha256:")
    assert tidy.out("inspect", "-f", "{{.State.Status}}", "source") == "running"
    (image,) = json.loads(tidy.out("inspect", "made:one"))
    assert image["Id"] == identifier
    assert (image["Comment"], image["Author"]) == ("a comment", "an author")
    assert image["Config"]["Cmd"] == ["sleep", "1000"]
    assert image["Config"]["Labels"] == {"x": "y"}
    assert {"A=b", "C=d"} <= set(image["Config"]["Env"])
    assert len(image["RootFS"]["Layers"]) == 2
    newest = tidy.out("history", "--no-trunc", "--format", "{{.ID}}|{{.CreatedBy}}|{{.Comment}}", "made:one")
    assert newest.splitlines()[0] == f"{identifier}|sleep 1000|a comment"
    script = "cat /new; echo $A$C; ls /etc/group 2>/dev/null; tail -n1 /etc/passwd"
    assert tidy.out("run", "--rm", "made:one", "sh", "-c", script).split() == ["new", "bd", "more"]


def test_an_image_without_a_name(tidy: Engine) -> None:
    """A container that was never started can be committed; the image has an id only, and is removed by it."""
    tidy.docker("create", "--name", "source", "busybox", "true")
    identifier = tidy.out("commit", "--change", 'CMD ["echo", "changed"]', "source")
    assert tidy.out("run", "--rm", identifier) == "changed"
    assert tidy.out("inspect", "-f", "{{.RepoTags}}", identifier) == "[]"
    tidy.docker("rmi", identifier)


def test_a_commit_of_a_commit(tidy: Engine) -> None:
    """Layers are stacked; a tag that is taken over leaves the older image without a name."""
    tidy.docker("run", "--name", "first", "busybox", "sh", "-c", "echo 1 > /one")
    older = tidy.out("commit", "first", "made:two")
    tidy.docker("run", "--name", "second", "made:two", "sh", "-c", "echo 2 > /two")
    newer = tidy.out("commit", "second", "made:two")
    assert older != newer
    assert tidy.out("run", "--rm", "made:two", "cat", "/one", "/two").split() == ["1", "2"]
    assert tidy.out("inspect", "-f", "{{.RepoTags}}", older) == "[]"
    tidy.docker("rm", "first", "second")
    tidy.docker("rmi", "made:two")
    tidy.docker("rmi", older, check=False)  # the real engine knows it as the newer one's parent, and took it along


def test_what_cannot_be_committed(tidy: Engine) -> None:
    """An unknown container, a bad name and a bad instruction, in the real engine's words."""
    tidy.docker("create", "--name", "source", "busybox")
    done = tidy.docker("commit", "missing", check=False)
    assert "No such container: missing" in done.stderr
    done = tidy.docker("commit", "source", "UPPER", check=False)
    assert "must be lowercase" in done.stderr
    done = tidy.docker("commit", "-c", "FROM x", "source", check=False)
    assert "is not a valid change command" in done.stderr


def test_the_event(tidy: Engine) -> None:
    """The commit is told with the image that it made."""
    tidy.docker("create", "--name", "source", "busybox")
    since = tidy.out("inspect", "-f", "{{.Created}}", "source")
    identifier = tidy.out("commit", "source", "made:three")
    events = tidy.popen("events", "--since", since, "-f", "event=commit", "--format", "{{json .}}")
    assert events.stdout is not None
    event = json.loads(events.stdout.readline())
    events.kill()
    events.communicate()
    assert event["Actor"]["Attributes"]["imageID"] == identifier
    assert event["Actor"]["Attributes"]["imageRef"] == "made:three"
