"""Tally of a fuzzing run, printed as a table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field

# Cases of a run, half of them on each engine: few in `make test`, the number of this variable in `make fuzz`.
CASES = int(os.environ.get("FUZZ_CASES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "20261123"))


@dataclass(slots=True, kw_only=True)
class Tally:
    """A run: its number of cases, and the number of cases with each outcome."""

    name: str
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def show(self, *notes: str) -> None:
        """Print the table in a full run."""
        if not CASES:
            return
        lines = [f"\n{self.name}: {self.cases:,} cases (seed {SEED})"]
        lines += [f"  {count:>7,}  {end}" for end, count in sorted(self.ends.items(), key=lambda item: -item[1])]
        sys.__stdout__.write("\n".join([*lines, *(f"  {note}" for note in notes)]) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
