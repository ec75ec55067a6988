"""Latencies at half load: lives begin at random times, half as many a second as the engine has just sustained.

Rule: arrivals do not wait for the engine (an open loop), so a pause of the engine delays everything that arrives meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from bench import lives


async def latencies(engine: lives.Decisions, events_per_s: float, events_per_life: int, seconds: float) -> dict[str, float]:
    """p50 and p99 in ms: from publish to commit, from the last publish of a life to its result, and of whole lives."""
    for times in (engine.commits_s, engine.results_s, engine.lives_s):
        times.clear()
    lives_per_s = events_per_s / events_per_life / 2
    # The same arrivals in each run.
    chance = random.Random(1)  # noqa: S311 - arrivals, not secrets
    begun_s, due_s = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as running:
        while due_s < seconds:
            await asyncio.sleep(begun_s + due_s - time.perf_counter())
            running.create_task(engine.recording())
            due_s += chance.expovariate(lives_per_s)
    measured = {"commit": engine.commits_s, "result": engine.results_s, "life": engine.lives_s}
    return {
        f"{name}_p{percent}_ms": percentile(times, percent) * 1000
        for name, times in measured.items()
        if times
        for percent in (50, 99)
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
