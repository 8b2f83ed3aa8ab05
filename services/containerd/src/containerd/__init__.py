"""Gantry's containerd."""

__version__ = "0.1.0"
