"""Tar archives: a reader and a writer without I/O, and what image layers mean by their entries."""

from __future__ import annotations
