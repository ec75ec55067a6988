"""Machine probe: the speed of this machine, measured once per test run. Time limits and the number of parallel tests follow.

Rule: the first process of a run measures, and its children read the figures from `VARIABLE`, so all processes of a run judge
time alike. Speed is CPU time: other work on the machine does not count as slowness. That work is the contention: wall time over
CPU time of the same workload.

    python -m tests.machine_probe        prints the figures
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from dataclasses import dataclass

VARIABLE = "RECORDER_TEST_MACHINE"
REFERENCE_MS = 5.5
"""CPU time of one round of the workload on the reference, a fast machine with two cores."""
ROUNDS = 40
TESTS_PER_CORE = 2.0
"""On the reference. Most tests wait for live streams: more fit at once than there are cores."""
MOST_PROCESSES = 12
"""`tests/ports.py` has this many ranges of ports."""
MOST_LOAD, MOST_CONTENTION = 4.0, 2.0
HANG = 2.5
"""pytest ends a test that hangs. Its limit is this much longer than the marker says, so that `tests/waiting.py`, which knows the
reason, fails first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`slowness`: 1.0 is the reference, 4.0 a machine that needs four times the CPU time. `contention`: 1.0 is an idle machine;
    at 2.0 a busy process gets half a core. Neither is below 1.0."""

    slowness: float
    contention: float
    cores: int

    @property
    def processes(self) -> int:
        """How many tests run in parallel: 4 on the reference, 3 at a slowness of 2 to 4. Tests mostly wait: for streams in real
        time, or for settings that follow the pace. A slow machine would be idle for nearly as long. Other work counts more: it
        may grow while the tests run."""
        wanted = self.cores * TESTS_PER_CORE / self.slowness**0.25 / min(self.contention, MOST_CONTENTION) ** 0.75
        return max(1, min(MOST_PROCESSES, round(wanted)))

    @property
    def pace(self) -> float:
        """How many times longer than on the reference the service's own times have to be in a test: a lease that is renewed in
        time there is lost here. The same for the whole run."""
        return self.slowness * min(self.contention, MOST_CONTENTION)

    def __str__(self) -> str:
        """One line for the head of a run."""
        return (
            f"{self.cores} cores, slowness {self.slowness:.2f} (1 = reference), contention {self.contention:.2f}, "
            f"{self.processes} tests in parallel"
        )


def machine() -> Machine:
    """The figures of this run; the first call of the run measures them and passes them on to all child processes."""
    if VARIABLE not in os.environ:
        found = measure()
        os.environ[VARIABLE] = f"{found.slowness:.3f} {found.contention:.3f} {found.cores}"
    slowness, contention, cores = os.environ[VARIABLE].split()
    return Machine(slowness=float(slowness), contention=float(contention), cores=int(cores))


def pace() -> float:
    """The factor for settings (leases, linger) and for the times that a test lets pass between them."""
    return machine().pace


def patience() -> float:
    """How many times longer than on the idle reference something may take now: the slowness, times the processes that want to run
    for each core (load of the last minute, or the contention at the beginning; at most `MOST_LOAD`)."""
    found = machine()
    load = max(os.getloadavg()[0] / found.cores, found.contention)
    return found.slowness * min(max(1.0, load), MOST_LOAD)


def measure() -> Machine:
    """Take the median CPU time of `ROUNDS` rounds of the workload."""
    rounds_s, begun_s = [], time.perf_counter()
    for _ in range(ROUNDS):
        before_s = time.thread_time()
        _workload()
        rounds_s.append(time.thread_time() - before_s)
    wall_s = time.perf_counter() - begun_s
    slow = statistics.median(rounds_s) * 1000 / REFERENCE_MS
    return Machine(slowness=max(1.0, slow), contention=max(1.0, wall_s / sum(rounds_s)), cores=len(os.sched_getaffinity(0)) or 1)


def _workload() -> None:
    """What the service and its tests spend CPU on: dictionaries, strings, JSON and a hash."""
    found: dict[str, int] = {}
    for number in range(20_000):
        key = f"speaker-{number % 512}"
        found[key] = found.get(key, 0) + number * number % 97
    text = json.dumps(found)
    for _ in range(20):
        json.loads(text)
    hashlib.sha256(text.encode() * 50).digest()


if __name__ == "__main__":
    print(measure())  # noqa: T201
