"""Whether a start may be taken by a recorder of many nodes: its workers say what room they have. May import `machine`.

Rule: refused only where no worker that lives could hold another capture. Workers that are full of work are a warning: captures
wait for the first that is not.
"""

from __future__ import annotations

from collections.abc import Callable

from machine import errors, model, ports


class Admission:
    """Looks at the rooms of the workers that gave a sign of life within `alive_ms`."""

    def __init__(self, store: ports.Store, *, clock: Callable[[], int], alive_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._alive_ms = alive_ms

    async def look(self) -> tuple[str, ...]:
        """What to warn of. Raises InsufficientSpace."""
        rooms = await self._store.worker_rooms(self._clock() - self._alive_ms)
        if not rooms:
            return ("No worker is alive: nothing is captured until one is.",)
        fitting = [room for room in rooms if room.free_bytes >= room.needed_bytes]
        if not fitting:
            best = max(rooms, key=lambda room: room.free_bytes - room.needed_bytes)
            raise errors.InsufficientSpace(
                f"No spool of the {len(rooms)} workers has room: the best has {best.free_bytes >> 20} MiB free, and"
                f" {best.needed_bytes >> 20} MiB are needed for MIN_FREE and the captures that run. Make room there, add a"
                " worker, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        return () if any(not room.busy for room in fitting) else (_all_busy(fitting),)


def _all_busy(rooms: list[model.Room]) -> str:
    reasons = "; ".join(sorted({room.busy for room in rooms})[:3])
    return f"Every worker is full now: captures wait for the first that is not ({reasons})."
