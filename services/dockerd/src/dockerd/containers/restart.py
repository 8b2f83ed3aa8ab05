"""Restart policies: whether a container that ended is started again, and after how long.

The delay begins at 100 ms and doubles up to a minute; a run of 10 seconds or more begins it anew.
"""

from __future__ import annotations

from dockerd.containers.model import RestartPolicy

__all__ = ["FIRST_DELAY", "LONGEST_DELAY", "next_delay", "should_restart", "should_start_with_engine"]

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
_LONG_RUN = 10.0


def should_restart(policy: RestartPolicy, exit_code: int, restarts: int, stopped_by_user: bool) -> bool:
    """Whether a container that has just ended is to be started again; ``restarts`` is how often it already was."""
    if stopped_by_user:
        return False
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name == "on-failure":
        return exit_code != 0 and (policy.maximum_retry_count == 0 or restarts < policy.maximum_retry_count)
    return False


def should_start_with_engine(policy: RestartPolicy, exit_code: int, restarts: int, stopped_by_user: bool) -> bool:
    """Whether a container that an engine finds ended when it comes up is to be started.

    ``always`` means here also those that the user had stopped.
    """
    if policy.name == "always":
        return True
    return should_restart(policy, exit_code, restarts, stopped_by_user)


def next_delay(previous: float, ran_for: float) -> float:
    """Seconds to wait before the next start, after a run of ``ran_for`` seconds that came after ``previous``."""
    if ran_for >= _LONG_RUN or previous <= 0:
        return FIRST_DELAY
    return min(previous * 2, LONGEST_DELAY)
