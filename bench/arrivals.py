"""Random arrivals, and percentiles of what they met. Only the standard library, because other environments use it.

Rule: arrivals do not wait for the engine (an open loop), so a pause of the engine delays everything that arrives meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence


async def begin_at_random(begin: Callable[[], Awaitable[None]], per_s: float, seconds: float) -> None:
    """Run `begin` at random times, on average `per_s` times a second, and wait for all. The times are the same in each run."""
    chance = random.Random(1)  # noqa: S311 - arrivals, not secrets
    begun_s, due_s = time.perf_counter(), 0.0

    async def arrive() -> None:
        await begin()

    async with asyncio.TaskGroup() as running:
        while due_s < seconds:
            await asyncio.sleep(begun_s + due_s - time.perf_counter())
            running.create_task(arrive())
            due_s += chance.expovariate(per_s)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
