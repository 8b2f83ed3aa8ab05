"""The namespaces service."""

from __future__ import annotations

from contract.suites.peer import Peer, fails

from gantry.contracts.containerd.services.namespaces.v1 import namespace_pb2 as messages
from gantry.contracts.containerd.services.namespaces.v1.namespace_pb2_grpc import NamespacesStub


class NamespacesSuite:
    """What every namespace service does."""

    def test_create_update_delete(self, peer: Peer) -> None:
        """Labels change by field mask, an empty one goes."""
        stub, name = NamespacesStub(peer.channel), peer.namespace
        created = peer.call(stub.Create, self._request(name, {"a": "1"})).namespace
        assert (created.name, dict(created.labels)) == (name, {"a": "1"})
        assert name in self._names(peer)
        assert self._update(peer, stub, name, {"b": "2"}, "labels.b") == {"a": "1", "b": "2"}
        assert self._update(peer, stub, name, {"b": ""}, "labels.b") == {"a": "1"}
        with fails("INVALID_ARGUMENT"):
            self._update(peer, stub, name, {}, "name")
        peer.call(stub.Delete, messages.DeleteNamespaceRequest(name=name))
        assert name not in self._names(peer)
        with fails("NOT_FOUND"):
            peer.call(stub.Delete, messages.DeleteNamespaceRequest(name=name))

    def test_names(self, peer: Peer) -> None:
        """One is taken once; an impossible one is refused."""
        stub = NamespacesStub(peer.channel)
        peer.call(stub.Create, self._request(peer.namespace))
        with fails("ALREADY_EXISTS"):
            peer.call(stub.Create, self._request(peer.namespace))
        for name in ("", "a/b", "-a", "a" * 80):
            with fails("INVALID_ARGUMENT"):
                peer.call(stub.Create, self._request(name))

    def test_one_that_is_not_empty_stays(self, peer: Peer) -> None:
        """Until what is in it is gone."""
        stub = NamespacesStub(peer.channel)
        peer.write(peer.data, labels={"containerd.io/gc.root": "now"})
        assert peer.namespace in self._names(peer)
        with fails("FAILED_PRECONDITION"):
            peer.call(stub.Delete, messages.DeleteNamespaceRequest(name=peer.namespace))

    @staticmethod
    def _request(name: str, labels: dict[str, str] | None = None) -> messages.CreateNamespaceRequest:
        return messages.CreateNamespaceRequest(namespace=messages.Namespace(name=name, labels=labels))

    @staticmethod
    def _names(peer: Peer) -> list[str]:
        found = peer.call(NamespacesStub(peer.channel).List, messages.ListNamespacesRequest()).namespaces
        return [namespace.name for namespace in found]

    @staticmethod
    def _update(peer: Peer, stub: NamespacesStub, name: str, labels: dict[str, str], *paths: str) -> dict[str, str]:
        request = messages.UpdateNamespaceRequest(namespace=messages.Namespace(name=name, labels=labels))
        request.update_mask.paths.extend(paths)
        peer.call(stub.Update, request)
        # Asked for again: 1.6 answers an update by field mask without the labels.
        return dict(peer.call(stub.Get, messages.GetNamespaceRequest(name=name)).namespace.labels)
