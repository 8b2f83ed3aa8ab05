"""Containers: their settings, their life from creation to removal, and the processes in them.

:class:`ContainerService` and :class:`ExecService` are the face; ``spec`` computes what the runtime is told,
``starting``, ``exits``, ``lifecycle`` and ``removal`` act, ``reconcile`` repairs.
"""

from __future__ import annotations

from dockerd.containers.exec import Exec, ExecService
from dockerd.containers.model import Container, State, Status
from dockerd.containers.service import ContainerService
from dockerd.containers.store import SCHEMA
from dockerd.containers.wait import Condition, Outcome

__all__ = [
    "SCHEMA",
    "Condition",
    "Container",
    "ContainerService",
    "Exec",
    "ExecService",
    "Outcome",
    "State",
    "Status",
]
