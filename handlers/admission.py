"""Whether a start may be taken by a recorder of many nodes: its workers say what room they have. May import `machine`.

Rule: refused only where no worker that lives could hold another capture. Workers that are full of work are a warning: captures
wait for the first that is not. A spool that cannot be read is not a full one: where others can be, they decide; where none can,
the start is to come again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine import errors, model, ports


class Admission:
    """Looks at the rooms of the workers that gave a sign of life within `alive_ms`."""

    def __init__(self, store: ports.Store, *, clock: Callable[[], int], alive_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._alive_ms = alive_ms

    async def look(self) -> tuple[str, ...]:
        """What to warn of. Raises InsufficientSpace, Unavailable."""
        offers = await self._store.nodes.spare_capacities(self._clock() - self._alive_ms)
        if not offers:
            return ("No worker is alive: nothing is captured until one is.",)
        known = [(spare.free_bytes, spare) for spare in offers if spare.free_bytes is not None]
        if not known:
            raise errors.Unavailable(
                f"No worker can read its spool now ({_reasons(offers)}). Try again in a moment; if it stays so, look at that"
                " folder's disk or mount, and run `recorder doctor` there."
            )
        fitting = [spare for free_bytes, spare in known if free_bytes >= spare.needed_bytes]
        if not fitting:
            free_bytes, best = max(known, key=lambda each: each[0] - each[1].needed_bytes)
            raise errors.InsufficientSpace(
                f"No spool of the {len(known)} workers has room: the best has {free_bytes >> 20} MiB free, and"
                f" {best.needed_bytes >> 20} MiB are needed for MIN_FREE and the captures that run. Make room there, add a"
                " worker, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        return () if any(not spare.busy for spare in fitting) else (_all_busy(fitting),)


def _all_busy(offers: Sequence[model.SpareCapacity]) -> str:
    return f"Every worker is full now: captures wait for the first that is not ({_reasons(offers)})."


def _reasons(offers: Sequence[model.SpareCapacity]) -> str:
    return "; ".join(sorted({spare.busy for spare in offers})[:3])
