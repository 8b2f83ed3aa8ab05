"""The suites of containerd's services, one and the same for our containerd and the real one."""

from __future__ import annotations

from contract.suites.content import ContentSuite
from contract.suites.events import EventsSuite
from contract.suites.images import ImagesSuite
from contract.suites.leases import LeasesSuite
from contract.suites.namespaces import NamespacesSuite
from contract.suites.snapshots import SnapshotsSuite


class TestContent(ContentSuite):
    """Blobs and ingests."""


class TestEvents(EventsSuite):
    """Publishers and subscribers."""


class TestImages(ImagesSuite):
    """Names for content."""


class TestLeases(LeasesSuite):
    """What keeps garbage from being collected."""


class TestNamespaces(NamespacesSuite):
    """Who sees what."""


class TestSnapshots(SnapshotsSuite):
    """File systems in layers."""
