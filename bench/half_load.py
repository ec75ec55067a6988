"""Latencies of the engine at half load: lives begin at random times, half as many a second as it has just sustained."""

from __future__ import annotations

from bench import arrivals, lives


async def latencies(engine: lives.Decisions, events_per_s: float, seconds: float) -> dict[str, float]:
    """p50 and p99 in ms: from publish to commit, from the last publish of a life to its result, and of whole lives."""
    measured = {"commit": engine.commits_s, "result": engine.results_s, "life": engine.lives_s}
    for times in measured.values():
        times.clear()
    await arrivals.begin_at_random(engine.recording, events_per_s / lives.SIX / 2, seconds)
    return {
        f"{name}_p{percent}_ms": arrivals.percentile(times, percent) * 1000
        for name, times in measured.items()
        if times
        for percent in (50, 99)
    }
