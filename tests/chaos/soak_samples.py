"""Samples of a service's resources, taken from outside, and their bounds.

Rule: *flat* is judged on the second half of the samples. The rooms decide how many captures run at a moment, so each figure is
fitted (least squares) as a constant, a part per capture and a part per second. Over the whole half, the part per second may add
no more than the bound: a share of the mean, or a few units where the mean is small. Rows have half a unit for each capture, one
for each room, because it is chance whether a room's session has just begun or just ended at either end of the half. A table that
keeps a row of each session rises by four times that in the half of ten minutes, the shortest run that is judged.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import open_captures

TABLES = (
    "sessions", "recordings", "segments", "jobs", "deadlines", "inbox", "outbox", "journal", "results", "callbacks", "uploads",
    "secrets", "presence", "nodes", "attempts", "applications", "audit", "api_keys", "schema_range",
)  # fmt: skip
FIXED = ("nodes", "applications", "api_keys", "schema_range")
"""Tables of the installation: no session adds a row."""
COUNTS = {table: f"SELECT count(*) AS n FROM {table}" for table in TABLES}
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The allowed rise over the second half: a share of the mean, or a number of units, whichever is more."""

    part: float
    units: float
    units_per_capture: float = 0.0

    def allowed(self, mean: float, captures: int) -> float:
        """The allowed rise in a run with this many captures at a time."""
        return max(self.part * mean, self.units, self.units_per_capture * captures)


BOUNDS: Mapping[str, Bound] = {
    "memory_mib": Bound(part=0.05, units=6),
    "descriptors": Bound(part=0.10, units=10),
    "threads": Bound(part=0.0, units=6),  # pools fill up when many files are slow at once
    "tasks": Bound(part=0.10, units=10),
    "database_mib": Bound(part=0.10, units=3),
    "spool_mib": Bound(part=0.25, units=8),
    **{f"rows.{table}": Bound(part=0.15, units=1, units_per_capture=0.5) for table in TABLES if table not in FIXED},
    **{f"rows.{table}": Bound(part=0.0, units=0.5) for table in FIXED},
}
"""Rows and the spool go up and down with the ends of sessions, so their bounds are wider."""

UNBOUNDED = ("proportional_mib", "captures", "ffmpegs")
"""Figures without a bound: shared pages count for more when other programs end, and the load is an input."""

IDLE_BOUNDS: Mapping[str, float] = {"descriptors": 24, "tasks": 6, "threads": 46}
"""Allowed growth between the sample before the first session and the one after everything has ended. Pools keep what they have
opened: database connections with three files and a thread each, 32 threads for files (media/file_threads.py), and those for COS.
"""

LEFT: Mapping[str, tuple[float, float]] = {
    "rows.nodes": (1, 0),
    "rows.applications": (1, 0),
    "rows.schema_range": (1, 0),
    "rows.presence": (0, 2.5),
}
"""Rows that may remain when everything has ended and retention has run, as (constant, per capture). The constants are the node
itself, the one calling application and the range of programs. Presence stays for a day: three speakers, the recorder and the end
of each room, which has two captures.
"""
NOTHING_LEFT = ("captures", "ffmpegs", "spool_files", *(f"rows.{table}" for table in TABLES if f"rows.{table}" not in LEFT))
"""Figures that must be 0 then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: seconds from the beginning, and the figures."""

    at_s: float
    figures: Mapping[str, float]


def of_process(pid: int) -> dict[str, float]:
    """Memory, descriptors and threads of a process, and the number of its captures and ffmpegs."""
    memory = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    status = _fields(Path(f"/proc/{pid}/status"))
    captured = open_captures.written(Path(f"/proc/{pid}"))
    for child in _children(pid):
        with contextlib.suppress(OSError):
            captured |= open_captures.named(Path(f"/proc/{child}"))
    return {
        "memory_mib": memory["Rss"] / 1024,
        "proportional_mib": memory["Pss"] / 1024,
        "descriptors": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "threads": status["Threads"],
        "captures": float(len(captured)),
        "ffmpegs": float(sum(1 for name in _children(pid).values() if "ffmpeg" in name)),
    }


def of_files(database: Path, spool: Path) -> dict[str, float]:
    """Size of the database's files (none where a server keeps them), and bytes and files of the spool."""
    kept = database.parent.glob(database.name + "*") if database.name else ()
    # os.walk passes over a folder that has just been removed; pathlib's own walk would raise.
    spooled = [Path(folder, name) for folder, _, names in os.walk(spool) for name in names if not name.startswith(".")]
    sizes = _sizes(spooled)
    return {
        "database_mib": sum(_sizes(kept)) / MIB,
        "spool_mib": sum(sizes) / MIB,
        "spool_files": float(len(sizes)),
    }


def of_tasks(counts: Path) -> dict[str, float]:
    """The number of asyncio tasks that the sampler wrote last."""
    return {"tasks": float(json.loads(counts.read_text())["tasks"])}


def rise(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """(mean, rise from the first to the last sample, without the share that the captures of each moment explain)."""
    times, captures = [s.at_s for s in samples], [s.figures["captures"] for s in samples]
    values = [s.figures[name] for s in samples]
    # Two steps (Frisch and Waugh): the residuals of time and of the figure, both without the captures, are regressed on each
    # other.
    left_times, left_values = _without(captures, times), _without(captures, values)
    spread = sum(t * t for t in left_times)
    slope = sum(t * v for t, v in zip(left_times, left_values, strict=True)) / spread if spread else 0.0
    return statistics.fmean(values), slope * (times[-1] - times[0])


def _without(captures: Sequence[float], values: Sequence[float]) -> list[float]:
    """The residuals of a linear regression of values on captures."""
    if len(set(captures)) < 2:
        mean = statistics.fmean(values)
        return [value - mean for value in values]
    line = statistics.linear_regression(captures, values)
    return [value - line.intercept - line.slope * count for count, value in zip(captures, values, strict=True)]


def broken(samples: Sequence[Sample], captures: int) -> list[str]:
    """A sentence for each figure that was not flat in the second half of a run with this many captures at a time."""
    half = second_half(samples)
    faults = []
    for name, bound in BOUNDS.items():
        mean, rises = rise(half, name)
        allowed = bound.allowed(mean, captures)
        if rises > allowed:
            faults.append(f"{name} rose by {rises:.1f} in the second half (mean {mean:.1f}, allowed {allowed:.1f})")
    return faults


def left(before: Sample, after: Sample, captures: int) -> list[str]:
    """A sentence for each figure that did not come down again after a run with this many captures at a time."""
    most = dict.fromkeys(NOTHING_LEFT, 0.0) | {name: some + each * captures for name, (some, each) in LEFT.items()}
    faults = [f"{name}: {after.figures[name]:.0f} are left" for name, allowed in most.items() if after.figures[name] > allowed]
    for name, more in IDLE_BOUNDS.items():
        grown = after.figures[name] - before.figures[name]
        if grown > more:
            faults.append(f"{name}: {grown:.0f} more than before the first session (allowed {more:.0f})")
    return faults


def second_half(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples from the middle of the time on."""
    middle_s = (samples[0].at_s + samples[-1].at_s) / 2
    return [s for s in samples if s.at_s >= middle_s]


def _sizes(paths: Iterable[Path]) -> list[int]:
    """The sizes in bytes of those files that are still there."""
    sizes = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sizes


def _fields(path: Path) -> dict[str, float]:
    """`Name: number …` lines of a file of /proc."""
    found = {}
    for line in path.read_text("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        if rest.split() and rest.split()[0].isdigit():
            found[name] = float(rest.split()[0])
    return found


def _children(pid: int) -> dict[int, str]:
    """The command names of a process's children, by their process ids."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            before, after = stat.read_text("ascii", "replace").rsplit(")", 1)
            if int(after.split()[1]) == pid:
                found[int(stat.parent.name)] = before.split("(", 1)[1]
    return found
