"""The content store: immutable blobs, named by their digest."""

from __future__ import annotations

from containerd.content.store import ContentStore, Info, IngestStatus
from containerd.content.writer import Writer

__all__ = ["ContentStore", "Info", "IngestStatus", "Writer"]
