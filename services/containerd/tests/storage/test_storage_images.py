"""The image store."""

from __future__ import annotations

from typing import Any

import pytest

from containerd.descriptors import OCI_INDEX, Descriptor
from containerd.errors import AlreadyExists, InvalidArgument, NotFound
from containerd.images import Image
from containerd.scope import Scope

NAME = "docker.io/library/busybox:latest"


def _image(helpers: Any, name: str = NAME, data: bytes = b"a", **labels: str) -> Image:
    return Image(name, Descriptor(OCI_INDEX, helpers.digest_of(data), 7, {"note": "x"}), labels)


def test_create_get_list_and_delete(world: Any, helpers: Any) -> None:
    """An image is what it was created as, in its namespace alone, until it is deleted."""
    created = world.images.create(world.scope, _image(helpers, a="1"))
    assert created.created_at == created.updated_at > 0
    assert world.images.get(world.scope, NAME) == created
    assert world.images.list(world.scope) == [created]
    assert world.images.list(Scope("other")) == []
    world.images.delete(world.scope, NAME)
    with pytest.raises(NotFound, match=f'image "{NAME}": not found'):
        world.images.get(world.scope, NAME)
    with pytest.raises(NotFound):
        world.images.delete(world.scope, NAME)
    assert [topic for _, topic, _ in world.events] == ["/images/create", "/images/delete"]
    assert world.dirty == 1


def test_a_name_is_taken_once(world: Any, helpers: Any) -> None:
    """A second image of the name is refused in the known words; store replaces it."""
    world.images.create(world.scope, _image(helpers))
    with pytest.raises(AlreadyExists, match=f'image "{NAME}": already exists'):
        world.images.create(world.scope, _image(helpers))
    assert world.images.store(world.scope, _image(helpers, data=b"b")).target.digest == helpers.digest_of(b"b")


def test_update_by_field_mask(world: Any, helpers: Any) -> None:
    """Target, annotations and single labels change alone; other fields are refused."""
    world.images.create(world.scope, _image(helpers, a="1", b="2"))
    changed = _image(helpers, data=b"new", b="3")
    assert world.images.update(world.scope, changed, ["labels.b"]).labels == {"a": "1", "b": "3"}
    assert world.images.update(world.scope, changed, ["target"]).target.digest == helpers.digest_of(b"new")
    assert world.images.update(world.scope, changed, ["labels.a"]).labels == {"b": "3"}
    with pytest.raises(InvalidArgument, match='cannot update "name"'):
        world.images.update(world.scope, changed, ["name"])
    assert world.images.update(world.scope, changed).labels == {"b": "3"}


def test_delete_with_a_target_only_deletes_that(world: Any, helpers: Any) -> None:
    """A client that knows an old target does not delete the name's new one."""
    world.images.create(world.scope, _image(helpers))
    with pytest.raises(NotFound, match="has target"):
        world.images.delete(world.scope, NAME, helpers.digest_of(b"old"))
    world.images.delete(world.scope, NAME, helpers.digest_of(b"a"))


def test_filters_that_docker_uses(world: Any, helpers: Any) -> None:
    """By name, by target digest, and by labels with dots in their keys."""
    world.images.create(world.scope, _image(helpers, "a", b"1", **{"org.mobyproject.image.parent": "p"}))
    world.images.create(world.scope, _image(helpers, "b", b"2"))

    def names(*filters: str) -> list[str]:
        return [image.name for image in world.images.list(world.scope, filters)]

    assert names("name==b") == ["b"]
    assert names("name==b", "name==a", "name==c") == ["a", "b"]
    assert names("name~=^[ab]$") == ["a", "b"]
    digest = helpers.digest_of(b"1")
    assert names(f"target.digest=={digest},labels.org.mobyproject.image.parent") == ["a"]
    assert names(f"target.digest=={digest},labels.nothing") == []


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("", Descriptor(OCI_INDEX, "sha256:" + "0" * 64, 1), "image name must not be empty"),
        ("x", Descriptor(OCI_INDEX, "sha256:zz", 1), "target.Digest"),
        ("x", Descriptor(OCI_INDEX, "sha256:" + "0" * 64, 0), "target.Size must be greater than zero"),
        ("x", Descriptor("", "sha256:" + "0" * 64, 1), "target.MediaType must be set"),
    ],
)
def test_what_cannot_be_an_image_is_refused(world: Any, name: str, target: Descriptor, message: str) -> None:
    """The message names the field."""
    with pytest.raises(InvalidArgument, match=message):
        world.images.create(world.scope, Image(name, target))
