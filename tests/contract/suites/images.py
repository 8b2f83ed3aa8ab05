"""The images service."""

from __future__ import annotations

from contract.suites.peer import Peer, fails

from gantry.contracts.containerd.services.images.v1 import images_pb2 as messages
from gantry.contracts.containerd.types.descriptor_pb2 import Descriptor

TYPE = "application/vnd.oci.image.manifest.v1+json"


class ImagesSuite:
    """What every image store does."""

    def test_create_get_list_delete(self, peer: Peer) -> None:
        """The whole life of an image's record."""
        created = self._create(peer, "r.example/a:1", {"x": "1"})
        assert created.created_at.seconds > 0
        found = peer.call(peer.images.Get, messages.GetImageRequest(name="r.example/a:1")).image
        assert found == created
        self._create(peer, "r.example/b:1")
        assert self._list(peer) == ["r.example/a:1", "r.example/b:1"]
        peer.call(peer.images.Delete, messages.DeleteImageRequest(name="r.example/a:1", sync=True))
        assert self._list(peer) == ["r.example/b:1"]
        for call, request in (
            (peer.images.Get, messages.GetImageRequest(name="r.example/a:1")),
            (peer.images.Delete, messages.DeleteImageRequest(name="r.example/a:1")),
        ):
            with fails("NOT_FOUND"):
                peer.call(call, request)

    def test_a_name_is_taken_once(self, peer: Peer) -> None:
        """The second creation is refused."""
        self._create(peer, "a")
        with fails("ALREADY_EXISTS"):
            self._create(peer, "a")

    def test_what_makes_no_image(self, peer: Peer) -> None:
        """No name, no digest, no size, a label that is too long."""
        digest = f"sha256:{'1' * 64}"
        for image in (
            messages.Image(target=Descriptor(media_type=TYPE, digest=digest, size=5)),
            messages.Image(name="a", target=Descriptor(media_type=TYPE, digest="nonsense", size=5)),
            messages.Image(name="a", target=Descriptor(media_type=TYPE, digest=digest)),
            messages.Image(
                name="a", target=Descriptor(media_type=TYPE, digest=digest, size=5), labels={"k": "v" * 4096}
            ),
        ):
            with fails("INVALID_ARGUMENT"):
                peer.call(peer.images.Create, messages.CreateImageRequest(image=image))
        assert self._list(peer) == []

    def test_update_by_field_mask(self, peer: Peer) -> None:
        """A label, all labels, the target; without a mask everything; and the rest is kept."""
        self._create(peer, "a", {"x": "1", "y": "2"})
        target = Descriptor(media_type=TYPE, digest=f"sha256:{'2' * 64}", size=7)
        image = messages.Image(name="a", labels={"x": "9"}, target=target)
        updated = self._update(peer, image, "labels.x")
        assert dict(updated.labels) == {"x": "9", "y": "2"}
        assert updated.target.size == 5
        updated = self._update(peer, image, "labels")
        assert dict(updated.labels) == {"x": "9"}
        assert self._update(peer, image, "target").target == target
        assert self._update(peer, messages.Image(name="a", target=target)).labels == {}
        with fails("NOT_FOUND"):
            self._update(peer, messages.Image(name="b", target=target))
        with fails("INVALID_ARGUMENT"):
            self._update(peer, image, "created_at")

    def test_filters(self, peer: Peer) -> None:
        """Name, media type, digest, labels; several filters are alternatives."""
        self._create(peer, "r.example/a:1", {"x": "1"})
        self._create(peer, "r.example/b:1")
        for filters, expected in (
            (['name=="r.example/a:1"'], ["r.example/a:1"]),
            (["name~=|/b:|"], ["r.example/b:1"]),
            (["labels.x"], ["r.example/a:1"]),
            (["labels.x==2"], []),
            ([f'target.mediatype=="{TYPE}"'], ["r.example/a:1", "r.example/b:1"]),
            ([f"target.digest==sha256:{'1' * 64},name~=a"], ["r.example/a:1", "r.example/b:1"]),
            (["labels.x==1", "name~=b:1$"], ["r.example/a:1", "r.example/b:1"]),
        ):
            assert self._list(peer, *filters) == expected, filters
        with fails("INVALID_ARGUMENT"):
            self._list(peer, 'name=="')

    def test_a_namespace_sees_its_own(self, peer: Peer) -> None:
        """The same name in two namespaces is two images; and without a namespace there is nothing."""
        self._create(peer, "a")
        other = Peer(peer.channel, f"{peer.namespace}-other", real=peer.real)
        assert self._list(other) == []
        with fails("FAILED_PRECONDITION"):
            peer.images.List(messages.ListImagesRequest(), timeout=20)

    @staticmethod
    def _create(peer: Peer, name: str, labels: dict[str, str] | None = None) -> messages.Image:
        target = Descriptor(media_type=TYPE, digest=f"sha256:{'1' * 64}", size=5)
        image = messages.Image(name=name, labels=labels, target=target)
        created: messages.Image = peer.call(peer.images.Create, messages.CreateImageRequest(image=image)).image
        return created

    @staticmethod
    def _update(peer: Peer, image: messages.Image, *paths: str) -> messages.Image:
        request = messages.UpdateImageRequest(image=image)
        request.update_mask.paths.extend(paths)
        updated: messages.Image = peer.call(peer.images.Update, request).image
        return updated

    @staticmethod
    def _list(peer: Peer, *filters: str) -> list[str]:
        found = peer.call(peer.images.List, messages.ListImagesRequest(filters=filters)).images
        return sorted(image.name for image in found)
