"""The leases service, and what a lease is for: content stays while its lease does."""

from __future__ import annotations

from contract.suites.peer import Peer, fails

from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.contracts.containerd.services.leases.v1 import leases_pb2 as messages


class LeasesSuite:
    """What every lease service does."""

    def test_create_list_delete(self, peer: Peer) -> None:
        """With an id and labels, chosen by filters."""
        lease = self._create(peer, "one", {"x": "1"})
        assert (lease.id, dict(lease.labels)) == ("one", {"x": "1"})
        assert lease.created_at.seconds > 0
        self._create(peer, "two")
        assert self._list(peer) == ["one", "two"]
        assert self._list(peer, "labels.x==1") == ["one"]
        assert self._list(peer, "id==two") == ["two"]
        peer.call(peer.leases.Delete, messages.DeleteRequest(id="one"))
        assert self._list(peer) == ["two"]
        with fails("NOT_FOUND"):
            peer.call(peer.leases.Delete, messages.DeleteRequest(id="one"))

    def test_an_id_is_taken_once(self, peer: Peer) -> None:
        """And there has to be one."""
        self._create(peer, "one")
        with fails("ALREADY_EXISTS"):
            self._create(peer, "one")

    def test_content_stays_as_long_as_its_lease(self, peer: Peer) -> None:
        """What is written under a lease is one of its resources, and goes with it."""
        self._create(peer, "keep")
        digest = peer.write(peer.data, lease="keep")
        assert self._resources(peer, "keep") == [("content", digest)]
        self._create(peer, "other")
        peer.call(peer.leases.Delete, messages.DeleteRequest(id="other", sync=True))
        assert peer.call(peer.content.Info, content_pb2.InfoRequest(digest=digest)).info.size == len(peer.data)
        peer.call(peer.leases.Delete, messages.DeleteRequest(id="keep", sync=True))
        with fails("NOT_FOUND"):
            peer.call(peer.content.Info, content_pb2.InfoRequest(digest=digest))

    def test_resources_come_and_go(self, peer: Peer) -> None:
        """Of the kinds that there are; to a lease that there is."""
        self._create(peer, "one")
        for kind, name in (("content", f"sha256:{'1' * 64}"), ("snapshots/overlayfs", "k"), ("ingests", "r")):
            resource = messages.Resource(id=name, type=kind)
            peer.call(peer.leases.AddResource, messages.AddResourceRequest(id="one", resource=resource))
            assert (kind, name) in self._resources(peer, "one")
            peer.call(peer.leases.DeleteResource, messages.DeleteResourceRequest(id="one", resource=resource))
        assert self._resources(peer, "one") == []
        with fails("NOT_FOUND"):
            resource = messages.Resource(id=f"sha256:{'1' * 64}", type="content")
            peer.call(peer.leases.AddResource, messages.AddResourceRequest(id="none", resource=resource))
        with fails("NOT_FOUND"):
            self._resources(peer, "none")
        with fails("UNIMPLEMENTED"):
            resource = messages.Resource(id="x", type="wishes")
            peer.call(peer.leases.AddResource, messages.AddResourceRequest(id="one", resource=resource))

    @staticmethod
    def _create(peer: Peer, name: str, labels: dict[str, str] | None = None) -> messages.Lease:
        lease: messages.Lease = peer.call(peer.leases.Create, messages.CreateRequest(id=name, labels=labels)).lease
        return lease

    @staticmethod
    def _list(peer: Peer, *filters: str) -> list[str]:
        return sorted(lease.id for lease in peer.call(peer.leases.List, messages.ListRequest(filters=filters)).leases)

    @staticmethod
    def _resources(peer: Peer, name: str) -> list[tuple[str, str]]:
        found = peer.call(peer.leases.ListResources, messages.ListResourcesRequest(id=name)).resources
        return [(resource.type, resource.id) for resource in found]
