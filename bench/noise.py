"""Load of the machine during a measurement, tables of figures, and the files that keep them.

Rule: a figure is always printed and kept together with the load.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Noise:
    """Load since its creation: how busy all cores were with work other than this process and its children."""

    def __init__(self) -> None:
        self._from = self._now()

    def __str__(self) -> str:
        """One line to print under a table."""
        wall_s, busy_s, own_s = (now - then for now, then in zip(self._now(), self._from, strict=True))
        cores = os.cpu_count() or 1
        others = max(0.0, busy_s - own_s) / (wall_s * cores)
        return (
            f"{cores} cores, {wall_s:.0f} s; other work on the machine took {others:.0%} of them (load {os.getloadavg()[0]:.1f})"
        )

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = os.times()
        return time.monotonic(), busy_s(), times.user + times.system + times.children_user + times.children_system


def busy_s() -> float:
    """How long all cores together have been busy since the machine started."""
    fields = [int(n) for n in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first is aligned left, the others right."""
    every = [headings, *lines]
    widths = [max(len(line[at]) for line in every) for at in range(len(headings))]
    drawn = []
    for line in every:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        drawn.append("  ".join(cells))
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn)


def write(name: str, load: Noise, figures: Mapping[str, Any]) -> None:
    """Write figures to `results/NAME.json`, with date, cores and load. Figures that this run did not measure stay."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "load": str(load)}
    path.write_text(json.dumps(known | about | dict(figures), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
