"""Admission of starts: whether some worker's spool can hold another capture.

Rules: a start is refused only if no live worker could hold the capture. Busy workers are a warning: captures wait for the first
free one. An unreadable spool does not count as full. If no spool is readable the start is retried (HTTP 503).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine import errors, model, ports


class Admission:
    """Checks the spare capacity of the workers whose last heartbeat is at most `alive_ms` old."""

    def __init__(self, store: ports.Store, *, clock: Callable[[], int], alive_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._alive_ms = alive_ms

    async def check(self) -> tuple[str, ...]:
        """The warnings for a start. Raises InsufficientSpace, Unavailable."""
        offers = await self._store.nodes.spare_capacities(self._clock() - self._alive_ms)
        if not offers:
            return ("No worker is alive: captures wait until one is.",)
        known = [(spare.free_bytes, spare) for spare in offers if spare.free_bytes is not None]
        if not known:
            raise errors.Unavailable(
                f"No worker can read its spool now ({_reasons(offers)}). Try again in a moment; if it persists, check that"
                " folder's disk or mount, and run `recorder doctor` there."
            )
        fitting = [spare for free_bytes, spare in known if free_bytes >= spare.needed_bytes]
        if not fitting:
            free_bytes, best = max(known, key=lambda each: each[0] - each[1].needed_bytes)
            raise errors.InsufficientSpace(
                f"No spool of the {len(known)} workers has enough space: the best has {free_bytes >> 20} MiB free, and"
                f" {best.needed_bytes >> 20} MiB are needed for MIN_FREE and the running captures. Free space there, add a"
                " worker, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        return () if any(not spare.busy for spare in fitting) else (_all_busy(fitting),)


def _all_busy(offers: Sequence[model.SpareCapacity]) -> str:
    return f"Every worker is busy now: captures wait for the first free one ({_reasons(offers)})."


def _reasons(offers: Sequence[model.SpareCapacity]) -> str:
    return "; ".join(sorted({spare.busy for spare in offers})[:3])
