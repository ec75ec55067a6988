"""Play histories: one, told line by line, or very many, in parallel processes. A seed that fails is told with the line that
repeats it.

python -m tests.simulated --seed 12345
python -m tests.simulated --histories 100000 [--first 0] [--processes 2]
"""

from __future__ import annotations

import argparse
import collections
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator

import structlog

from bench import noise
from tests import run_guard
from tests.simulated import history_runner

BATCH = 400  # a multiple of playing.PER_SCRIPT, so that no script is played in order twice
MOST_TOLD = 20


def quiet() -> None:
    """A history says thousands of things that nobody reads."""
    wrapper = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=wrapper, cache_logger_on_first_use=True)
    gc.set_threshold(100_000, 10, 10)  # a world goes as a whole, and there is memory for some dozens


def batch(seeds: range) -> tuple[list[history_runner.Told], list[tuple[int, str]], float]:
    """What these seeds came to, those that failed, with the reason, and the CPU time in s."""
    begun_s = time.process_time()
    told, failed = [], []
    for seed in seeds:
        try:
            told.append(history_runner.history(seed))
        except Exception as error:  # noqa: BLE001 - not swallowed: told with its seed, and the run fails
            failed.append((seed, f"{type(error).__name__}: {error}"))
    return told, failed, time.process_time() - begun_s


def batches(first: int, count: int) -> Iterator[range]:
    """The seeds in pieces."""
    for start in range(first, first + count, BATCH):
        yield range(start, min(start + BATCH, first + count))


def many(first: int, count: int, processes: int, say: Callable[[str], None] = print) -> int:
    """Play them all, say the table; the exit code."""
    begun, sums, around, cpu_s = time.monotonic(), collections.Counter[str](), noise.Noise(), 0.0
    failed: list[tuple[int, str]] = []
    with multiprocessing.Pool(processes, initializer=quiet) as pool:
        for told, wrong, used_s in pool.imap_unordered(batch, batches(first, count)):
            failed += wrong
            cpu_s += used_s
            for one in told:
                sums.update({"histories": 1, one.kind: 1, "events": one.events, "faults": one.faults})
    took_s = time.monotonic() - begun
    say(f"{'weather':<10}{'histories':>12}")
    for kind in ("rough", "lossy", "late"):
        say(f"{kind:<10}{sums[kind]:>12,}")
    say(f"{'all':<10}{sums['histories']:>12,}")
    say(f"events decided {sums['events']:,}, faults {sums['faults']:,}, failed {len(failed):,}")
    say(f"{took_s:.0f} s in {processes} processes, {1000 * cpu_s / count:.1f} ms of CPU per history")
    say(str(around))
    for seed, why in sorted(failed)[:MOST_TOLD]:
        say(f"failed: {why[:300]}\n  python -m tests.simulated --seed {seed}")
    return 1 if failed else 0


def one(seed: int, say: Callable[[str], None] = print) -> int:
    """Tell one history; the exit code."""
    quiet()
    try:
        told = history_runner.history(seed, say)
    except AssertionError as error:
        say(f"failed  {error}")
        return 1
    say(f"passed  {told.kind} weather, {told.events} events decided, {told.faults} faults")
    return 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulated", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="play this one and tell it")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    run_guard.protect()
    sys.exit(one(given.seed) if given.seed is not None else many(given.first, given.histories, given.processes))


if __name__ == "__main__":
    main()
