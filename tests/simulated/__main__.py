"""Plays histories: one, printed line by line, or very many in parallel processes.

A seed that fails is printed with the command that repeats it.

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

BATCH = 400  # a multiple of history_runner.PER_SCRIPT, so that no script is played without faults twice
MAX_PRINTED = 20


def quiet() -> None:
    """Turn logging off: a history logs thousands of lines."""
    wrapper = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=wrapper, cache_logger_on_first_use=True)
    gc.set_threshold(100_000, 10, 10)  # a world is freed as a whole, and memory holds some dozens


def batch(seeds: range) -> tuple[list[history_runner.Summary], list[tuple[int, str]], float]:
    """The summaries of these seeds, the failed seeds with their reasons, and the CPU time in s."""
    begun_s = time.process_time()
    passed, failed = [], []
    for seed in seeds:
        try:
            passed.append(history_runner.history(seed))
        except Exception as error:  # noqa: BLE001 - not swallowed: printed with its seed, and the run fails
            failed.append((seed, f"{type(error).__name__}: {error}"))
    return passed, failed, time.process_time() - begun_s


def batches(first: int, count: int) -> Iterator[range]:
    """The seeds in batches."""
    for start in range(first, first + count, BATCH):
        yield range(start, min(start + BATCH, first + count))


def many(first: int, count: int, processes: int, show: Callable[[str], None] = print) -> int:
    """Play all seeds and print the table; returns the exit code."""
    begun, sums, around, cpu_s = time.monotonic(), collections.Counter[str](), noise.Noise(), 0.0
    failed: list[tuple[int, str]] = []
    with multiprocessing.Pool(processes, initializer=quiet) as pool:
        for passed, wrong, used_s in pool.imap_unordered(batch, batches(first, count)):
            failed += wrong
            cpu_s += used_s
            for one in passed:
                sums.update({"histories": 1, one.kind: 1, "events": one.events, "faults": one.faults})
    took_s = time.monotonic() - begun
    show(f"{'faults':<10}{'histories':>12}")
    for kind in ("rough", "lossy", "late"):
        show(f"{kind:<10}{sums[kind]:>12,}")
    show(f"{'all':<10}{sums['histories']:>12,}")
    show(f"events decided {sums['events']:,}, faults {sums['faults']:,}, failed {len(failed):,}")
    show(f"{took_s:.0f} s in {processes} processes, {1000 * cpu_s / count:.1f} ms of CPU per history")
    show(str(around))
    for seed, why in sorted(failed)[:MAX_PRINTED]:
        show(f"failed: {why[:300]}\n  python -m tests.simulated --seed {seed}")
    return 1 if failed else 0


def one(seed: int, show: Callable[[str], None] = print) -> int:
    """Play one history and print it; returns the exit code."""
    quiet()
    try:
        summary = history_runner.history(seed, show)
    except AssertionError as error:
        show(f"failed  {error}")
        return 1
    show(f"passed  {summary.kind} faults: {summary.events} events decided, {summary.faults} faults")
    return 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulated", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="play this one and print it")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    run_guard.protect()
    sys.exit(one(given.seed) if given.seed is not None else many(given.first, given.histories, given.processes))


if __name__ == "__main__":
    main()
