"""Waiting for a spool: how long a transcode waits for space, or for a mount that is away, and how often it tries.

Rule: a full disk or a lost mount is a fault of one node. It never counts as a failure of the transcode.
"""

from __future__ import annotations

from machine import model
from machine.reasons import Reason

FAULTS = (Reason.DISK_FULL, Reason.SPOOL_LOST)
SHORTEST_MS, LONGEST_MS = 2 * model.SECOND, 5 * model.MINUTE
SHARE = 4  # a pause is this part of the time waited so far


def is_over(recording: model.Recording, reason: str, now_ms: int, policy: model.Policy) -> bool:
    """Whether a transcode has waited long enough: for space as uploads wait for COS, for a spool as for a node that is away."""
    limit_ms = policy.upload_retry_for_ms if reason == Reason.DISK_FULL else policy.node_return_ms
    return now_ms >= recording.stage_started_ms + limit_ms


def pause_ms(recording: model.Recording, now_ms: int) -> int:
    """The pause until the next try. It grows with the time waited, because each try may read hours of media."""
    return min(max((now_ms - recording.stage_started_ms) // SHARE, SHORTEST_MS), LONGEST_MS)
