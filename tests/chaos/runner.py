"""Runner: several runs at a time against one simulator, for a duration or for a list of plans.

Rule: runs share nothing but the simulator and wait more than they compute, so several run in parallel. The folder of a successful
run is deleted, that of a failed one stays.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path

from simulator import callbacks, server
from simulator.cos import uploads
from tests import fork_server, quick_following
from tests.chaos import plans, worlds

AT_ONCE_PER_CORE = 3
Done = Callable[[worlds.Outcome], None]


@asynccontextmanager
async def tencent(folder: Path, content: Path) -> AsyncIterator[server.Simulator]:
    """The simulator of all runs. It repeats callbacks every second, so that a run need not wait for Tencent's ten, and takes the
    small parts of quick following."""
    rule = callbacks.RetryRule(pause_s=1.0)
    uploads.MIN_PART_BYTES = quick_following.PART_BYTES
    simulator = server.Simulator(
        folder=folder,
        content_folder=content,
        accounts=[worlds.ACCOUNT],
        buckets=[worlds.BUCKET],
        announce_pulls=True,
        retry_rule=rule,
    )
    await simulator.start()
    try:
        for number in range(len(worlds.SPEAKERS)):
            await simulator.content.picture("320x240", number)
        await simulator.content.sound()
        yield simulator
    finally:
        await simulator.stop()


async def carry_out(
    work: Iterable[plans.Plan], folder: Path, content: Path, *, at_once: int = 0, done: Done = lambda _: None
) -> list[worlds.Outcome]:
    """Carry out the plans, several at a time, and call `done` with each outcome as it arrives."""
    outcomes: list[worlds.Outcome] = []
    waiting: Iterator[tuple[int, plans.Plan]] = enumerate(work)
    with futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as decoder:
        forks = fork_server.ForkServer()
        async with tencent(folder / "tencent", content) as simulator:
            tools = worlds.Tools(simulator=simulator, forks=forks, decoder=decoder)

            async def one_after_another() -> None:
                for number, plan in waiting:
                    run = worlds.Run(plan, tools, folder / f"run-{number}", number)
                    outcome = await run.carry_out()
                    outcomes.append(outcome)
                    done(outcome)
                    if not outcome.failed:
                        shutil.rmtree(outcome.folder, ignore_errors=True)

            lanes = at_once or AT_ONCE_PER_CORE * (os.cpu_count() or 1)
            try:
                await asyncio.gather(*(one_after_another() for _ in range(lanes)))
            finally:
                forks.stop()
    return outcomes


def for_a_while(seconds: float, engine: str, first_seed: int) -> Iterator[plans.Plan]:
    """Yield one plan after another until the time is over."""
    ends = time.monotonic() + seconds
    for seed in itertools.count(first_seed):
        if time.monotonic() >= ends:
            return
        yield plans.make(engine, seed)
