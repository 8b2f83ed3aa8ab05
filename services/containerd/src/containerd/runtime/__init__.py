"""Shims: how they are started, found again, spoken to, and cleaned up after."""
