"""Backlog of an installation: counts of unfinished rows in its database. A value; the store reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Messages of the outbox that are counted.
MOST_MESSAGES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Rows that wait: how many, and when the oldest was written (Unix ms; None: unknown)."""

    count: int
    since_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Unfinished sessions and recordings by state, jobs by kind, unsent messages by channel, open deliveries by state, dead
    letters of the outbox, and living workers. A recording whose speaker was never seen does not count."""

    sessions: Mapping[str, int]
    recordings: Mapping[str, int]
    queued: Mapping[str, Waiting]
    leased: Mapping[str, int]
    outbox: Mapping[str, Waiting]
    deliveries: Mapping[str, int]
    parked: int
    workers: int

    @property
    def unsent(self) -> Waiting:
        """All unsent messages."""
        times_ms = [each.since_ms for each in self.outbox.values() if each.since_ms is not None]
        return Waiting(count=sum(each.count for each in self.outbox.values()), since_ms=min(times_ms, default=None))


NONE = Backlog(sessions={}, recordings={}, queued={}, leased={}, outbox={}, deliveries={}, parked=0, workers=0)
