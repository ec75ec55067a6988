"""Figures of a whole installation: counts by state, backlog, and the numbers of past hours. Times are Unix ms.

Rule: figures are for operators; no decision reads them. `store.overview` fills them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The largest number that is counted in the outbox and in an hour.
COUNTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What goes on now. `jobs` is (kind, state) → number for queued and leased jobs. `unsent` messages wait in the outbox, the
    oldest since `unsent_ms` (None: there is none)."""

    sessions: Mapping[str, int] = field(default_factory=dict)
    recordings: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unsent: int = 0
    unsent_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The numbers of one time span from `from_ms` on: sessions that opened and finished, recordings that failed in it."""

    from_ms: int
    opened: int
    finished: int
    failed: int
