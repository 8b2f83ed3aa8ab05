"""Names of containers on user-defined networks: a DNS server at 127.0.0.11 in each of their network namespaces.

It is a process of its own (``python -m dockerd.dns``), so that it goes on answering while the engine is restarted. The
engine makes the sockets inside the namespaces and gives them away over the control socket, with the names of each
network. Little is imported there: ``message`` and ``zone`` are without input and output, ``server`` is one loop,
``forward`` asks other servers; ``companion`` is the engine's side.
"""

from __future__ import annotations

__all__ = ["ADDRESS"]

ADDRESS = "127.0.0.11"
"""Where containers ask: what their /etc/resolv.conf names."""
