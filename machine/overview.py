"""Numbers of past hours of a whole installation. Times are Unix ms.

Rule: figures are for operators; no decision reads them. `store.overview` fills them.
"""

from __future__ import annotations

from dataclasses import dataclass

# The largest number that is counted in an hour.
COUNTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The numbers of one time span from `from_ms` on: sessions that opened and finished, recordings that failed in it."""

    from_ms: int
    opened: int
    finished: int
    failed: int
