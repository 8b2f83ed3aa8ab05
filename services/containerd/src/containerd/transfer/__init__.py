"""Moving images: between registries, the image store and archives."""

from __future__ import annotations
