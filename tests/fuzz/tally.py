"""What became of a run, as a table that a person reads. Imports nothing of ours."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field

# How many cases a run has, half of them on each engine: few in `make test`, as many as this variable says in `make fuzz`.
CASES = int(os.environ.get("FUZZ_CASES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "20261123"))


@dataclass(slots=True, kw_only=True)
class Tally:
    """A run: how many cases there were, and how many ended in which way."""

    name: str
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def show(self, *notes: str) -> None:
        """Write the table, where somebody asked for a full run."""
        if not CASES:
            return
        lines = [f"\n{self.name}: {self.cases:,} cases (seed {SEED})"]
        lines += [f"  {count:>7,}  {end}" for end, count in sorted(self.ends.items(), key=lambda item: -item[1])]
        sys.__stdout__.write("\n".join([*lines, *(f"  {note}" for note in notes)]) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
