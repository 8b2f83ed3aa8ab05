"""The content service: ingests, blobs, labels."""

from __future__ import annotations

from queue import SimpleQueue

import grpc
from contract.suites.peer import ROOT, Peer, fails

from gantry.contracts.containerd.services.content.v1 import content_pb2 as messages


class Ingest:
    """An open Write call: requests go in one at a time, each has its reply."""

    def __init__(self, peer: Peer, lease: str = "") -> None:
        self._queue: SimpleQueue[messages.WriteContentRequest | None] = SimpleQueue()
        self._replies = peer.content.Write(iter(self._queue.get, None), metadata=peer.metadata(lease), timeout=20)

    def send(self, **fields: object) -> messages.WriteContentResponse:
        """Send a request and return its reply."""
        self._queue.put(messages.WriteContentRequest(**fields))  # type: ignore[arg-type]
        try:
            reply: messages.WriteContentResponse = next(self._replies)
        except grpc.RpcError:
            self._queue.put(None)  # ends the thread that sends
            raise
        return reply

    def close(self) -> None:
        """End the call from our side."""
        self._queue.put(None)
        for _ in self._replies:
            pass


class ContentSuite:
    """What every content service does."""

    def test_what_is_written_can_be_read(self, peer: Peer) -> None:
        """Whole, from an offset, and a piece of it; Info has size, digest and labels."""
        assert peer.write(peer.data, labels={"a": "1"}) == peer.digest
        info = peer.call(peer.content.Info, messages.InfoRequest(digest=peer.digest)).info
        assert (info.size, info.digest, dict(info.labels)) == (len(peer.data), peer.digest, {**ROOT, "a": "1"})
        assert info.created_at.seconds > 0
        for offset, size, expected in ((0, 0, peer.data), (9995, 0, peer.data[9995:]), (3, 4, peer.data[3:7])):
            request = messages.ReadContentRequest(digest=peer.digest, offset=offset, size=size)
            assert b"".join(reply.data for reply in peer.listed(peer.content.Read, request)) == expected

    def test_reading_past_the_end_is_refused(self, peer: Peer) -> None:
        """An offset that is not there, and content that is not there."""
        peer.write(peer.data)
        with fails("OUT_OF_RANGE"):
            peer.listed(peer.content.Read, messages.ReadContentRequest(digest=peer.digest, offset=len(peer.data) + 1))
        with fails("NOT_FOUND"):
            peer.listed(peer.content.Read, messages.ReadContentRequest(digest=f"sha256:{'0' * 64}"))

    def test_writing_the_same_again(self, peer: Peer) -> None:
        """Content that is there is not written a second time."""
        peer.write(peer.data)
        with fails("ALREADY_EXISTS"):
            peer.write(peer.data)

    def test_an_ingest_is_resumed(self, peer: Peer) -> None:
        """A call that ends leaves what came so far; Status knows it, and the next call goes on from there."""
        first = Ingest(peer)
        reply = first.send(
            action=messages.WRITE, ref="r", total=len(peer.data), expected=peer.digest, data=peer.data[:4000]
        )
        assert reply.offset == 4000
        first.close()
        status = peer.call(peer.content.Status, messages.StatusRequest(ref="r")).status
        assert (status.ref, status.offset, status.total) == ("r", 4000, len(peer.data))
        second = Ingest(peer)
        assert second.send(action=messages.STAT, ref="r", total=len(peer.data), expected=peer.digest).offset == 4000
        reply = second.send(
            action=messages.COMMIT, offset=4000, data=peer.data[4000:], total=len(peer.data), expected=peer.digest
        )
        assert (reply.offset, reply.digest) == (len(peer.data), peer.digest)
        second.close()
        assert [status.ref for status in self._statuses(peer)] == []
        assert peer.call(peer.content.Info, messages.InfoRequest(digest=peer.digest)).info.size == len(peer.data)

    def test_one_ref_has_one_writer(self, peer: Peer) -> None:
        """A second writer is sent away while the first is there; Abort drops what it left."""
        first = Ingest(peer)
        first.send(action=messages.WRITE, ref="r", data=b"abc")
        with fails("UNAVAILABLE"):
            Ingest(peer).send(action=messages.STAT, ref="r")
        first.close()
        assert [status.ref for status in self._statuses(peer)] == ["r"]
        peer.call(peer.content.Abort, messages.AbortRequest(ref="r"))
        assert self._statuses(peer) == []
        with fails("NOT_FOUND"):
            peer.call(peer.content.Status, messages.StatusRequest(ref="r"))
        with fails("NOT_FOUND"):
            peer.call(peer.content.Abort, messages.AbortRequest(ref="r"))

    def test_bytes_that_are_not_what_was_said(self, peer: Peer) -> None:
        """A wrong digest and a wrong size are refused, and no blob comes of it."""
        for fields in ({"expected": f"sha256:{'1' * 64}"}, {"total": 4, "expected": peer.digest}):
            with fails("FAILED_PRECONDITION"):
                Ingest(peer).send(action=messages.COMMIT, ref="r", data=b"other", **fields)
        with fails("OUT_OF_RANGE"):
            Ingest(peer).send(action=messages.WRITE, ref="gap", offset=7, data=b"x")
        assert peer.listed(peer.content.List, messages.ListContentRequest()) == []
        for ref in ("r", "gap"):
            if any(status.ref == ref for status in self._statuses(peer)):
                peer.call(peer.content.Abort, messages.AbortRequest(ref=ref))

    def test_labels_are_updated_by_field_mask(self, peer: Peer) -> None:
        """One label, all labels, and an empty one goes; other fields cannot be changed."""
        peer.write(peer.data, labels={"a": "1", "b": "2"})

        def update(labels: dict[str, str], *paths: str) -> dict[str, str]:
            request = messages.UpdateRequest(info=messages.Info(digest=peer.digest, labels=labels))
            request.update_mask.paths.extend(paths)
            found = peer.call(peer.content.Update, request).info.labels
            return {name: value for name, value in found.items() if name not in ROOT}

        assert update({"a": "3"}, "labels.a") == {"a": "3", "b": "2"}
        assert update({"a": ""}, "labels.a") == {"b": "2"}
        assert update({"c": "4"}, "labels") == {"c": "4"}
        with fails("INVALID_ARGUMENT"):
            update({}, "size")
        with fails("NOT_FOUND"):
            request = messages.UpdateRequest(info=messages.Info(digest=f"sha256:{'0' * 64}"))
            request.update_mask.paths.append("labels.x")
            peer.call(peer.content.Update, request)

    def test_list_and_delete(self, peer: Peer) -> None:
        """Filters choose by label; what is deleted is gone, and cannot be deleted again."""
        other = peer.write(peer.data[1:], labels={"kind": "x"})
        peer.write(peer.data)
        assert self._list(peer) == {other, peer.digest}
        assert self._list(peer, "labels.kind==x") == {other}
        assert self._list(peer, "labels.kind!=x") == {peer.digest}
        peer.call(peer.content.Delete, messages.DeleteContentRequest(digest=other))
        assert self._list(peer) == {peer.digest}
        with fails("NOT_FOUND"):
            peer.call(peer.content.Delete, messages.DeleteContentRequest(digest=other))
        with fails("INVALID_ARGUMENT"):
            peer.call(peer.content.Delete, messages.DeleteContentRequest(digest="sha256:nothing"))

    @staticmethod
    def _list(peer: Peer, *filters: str) -> set[str]:
        replies = peer.listed(peer.content.List, messages.ListContentRequest(filters=filters))
        return {info.digest for reply in replies for info in reply.info}

    @staticmethod
    def _statuses(peer: Peer) -> list[messages.Status]:
        return list(peer.call(peer.content.ListStatuses, messages.ListStatusesRequest()).statuses)
