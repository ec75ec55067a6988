"""Readability of trees: size, dialect, length of call paths and start time, side by side for a tree before and a tree after.

    .venv/bin/python -m bench.readability [TREE ...] [--only static|paths|help] [--repetitions N] [--runs N] [--list PATH]

TREE is a checkout with its own `.venv`; the default is this checkout. Rule: the figures depend on no module name, so they compare
trees whose folders differ.

The call paths are measured by `bench/call_paths.py`, the other figures of the text by `bench/source_text.py`. The start time of
`recorder --help` is that of the installed command. The trees take turns, after one unmeasured run each, and every other turn goes
backwards. A ratio compares two runs of the same turn, and the table shows the median of the ratios. CPU seconds depend less on
the load of the machine than wall seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import call_paths, noise, source_text

ROOT = Path(__file__).parent.parent
PARTS = ("static", "paths", "help")

Row = tuple[str, list[str]]


def main(arguments: Sequence[str] | None = None, write: Callable[[str], None] = print) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", metavar="TREE", nargs="*", type=Path, help="checkouts with a .venv; the first is the reference")
    parser.add_argument("--only", choices=PARTS, action="append", help="only these figures; may be repeated")
    parser.add_argument("--repetitions", type=int, default=5, help="passes through each call path")
    parser.add_argument("--runs", type=int, default=20, help="runs of `recorder --help` for each tree")
    parser.add_argument("--list", choices=tuple(call_paths.PATHS), help="print the calls of one pass through a path instead")
    given = parser.parse_args(arguments)
    trees = [tree.resolve() for tree in given.trees] or [ROOT]
    if given.list:
        for tree in trees:
            write("\n".join([f"{tree}:", *call_paths.calls(tree, given.list)]))
        return
    quiet = noise.Noise()
    measures: dict[str, Callable[[], list[Row]]] = {
        "static": lambda: static_rows(trees),
        "paths": lambda: path_rows(trees, given.repetitions),
        "help": lambda: help_rows(trees, given.runs),
    }
    rows = [row for part in PARTS if part in (given.only or PARTS) for row in measures[part]()]
    write(noise.table(["", *(tree.name or str(tree) for tree in trees)], [[name, *cells] for name, cells in rows]))
    write(str(quiet))


def static_rows(trees: Sequence[Path]) -> list[Row]:
    """The figures of the text, a row for each."""
    figures = [source_text.figures(tree) for tree in trees]
    return [(name, [shown(one[name]) for one in figures]) for name in figures[0]]


def path_rows(trees: Sequence[Path], repetitions: int) -> list[Row]:
    """The figures of the call paths, a row for each."""
    figures = [call_paths.measure(tree, repetitions) for tree in trees]
    return [
        (f"{title}: {figure}", [shown(one[path][figure]) for one in figures])
        for path, title in call_paths.PATHS.items()
        for figure in call_paths.FIGURES
    ]


def help_rows(trees: Sequence[Path], runs: int) -> list[Row]:
    """Start time of `recorder --help`: its median, and the median ratios to the first tree."""
    turns = [[help_cost(tree) for tree in trees]]
    for turn in range(1, runs + 1):
        order = range(len(trees))[:: 1 if turn % 2 else -1]
        costs = {at: help_cost(trees[at]) for at in order}
        turns.append([costs[at] for at in range(len(trees))])
    rows = []
    for unit, kind in enumerate(("wall", "CPU")):
        times = [[cost[unit] for cost in turn] for turn in turns[1:]]
        seconds = [f"{statistics.median(column):.3f}" for column in zip(*times, strict=True)]
        ratios = [f"{statistics.median(turn[at] / turn[0] for turn in times):.2f}" for at in range(len(trees))]
        rows += [(f"recorder --help: {kind} seconds", seconds), (f"recorder --help: {kind} ratio to the first tree", ratios)]
    return rows


def help_cost(tree: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one `recorder --help`."""
    command = call_paths.interpreter(tree).with_name("recorder")
    # The unmeasured first run must leave bytecode. Compiling a library again in each run of one tree would decide the ratio.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin_s, begin_cpu_s = time.perf_counter(), children_cpu_s()
    subprocess.run([command, "--help"], cwd=tree, env=variables, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin_s, children_cpu_s() - begin_cpu_s


def children_cpu_s() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(figure: float) -> str:
    """A count without decimals, a rate with two."""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.2f}"


if __name__ == "__main__":
    try:
        main()
    except call_paths.NotMeasured as error:
        sys.exit(f"bench.readability: {error}")
