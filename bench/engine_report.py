"""Report of `bench.engine`: medians and ratios of the rounds, as a table, as JSON, and as a section of `bench/RESULTS.md`.

Rule: a ratio is computed inside a round, where both parts saw the same machine; the reported one is the median of the rounds.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import sqlite3
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import noise, peer_runs

Figures = Mapping[str, float]
Round = Mapping[str, Figures]

HEADING = "Engine"
PEER = "peer: "
COLUMNS = {
    "per_s": ("per second", ",.0f"),
    "cpu_ms": ("CPU ms", ".3f"),
    "postgres_cpu_ms": ("PostgreSQL ms", ".3f"),
    "rabbitmq_cpu_ms": ("RabbitMQ ms", ".3f"),
    "events_per_commit": ("per commit", ".1f"),
}
LATENCIES = ("commit", "result", "life")
NOTES = """\
Events of whole recordings, next to bare loops and to other engines. All parts of a round take turns on the same servers. A ratio
is the median of the ratios of each round. The header of `bench/engine.py` explains the parts.
CPU is per event: of the measured process, and of the servers apart. *Per commit* counts events per durable commit; leases have
commits of their own. Latencies are at half load, with random arrivals. *Life* is the time from a start to its result."""

PEER_NOTES = """\
A peer runs the same life of six steps. A step writes two rows of the application, a guarded update and a journal line, where
the recorder writes ten. Each peer has one process, the same servers, synchronous commits and 64 lives at once. *Inline* leaves
out the events that come from outside between the steps, so it is another life and has no target. `bench/peers/` has the
programs, `bench/peers.txt` the versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One figure of a part divided by another, by default the same figure of another part."""

    label: str
    part: str
    figure: str = "per_s"
    of_part: str
    of_figure: str = ""
    target: str = ""

    def of(self, found: Round) -> float | None:
        """Its value in one round; None if a figure is missing there."""
        above = found.get(self.part, {}).get(self.figure)
        below = found.get(self.of_part, {}).get(self.of_figure or self.figure)
        return above / below if above is not None and below else None


BARE, ROWS, ALONE, LOOP = "bare transaction", "same rows, batched", "same rows, one by one", "bare loop over RabbitMQ"
DECIDED, LOCAL, RABBIT = "decided", "over the local bus", "over RabbitMQ"
RATIOS = (
    Ratio(label="decided / bare transaction", part=DECIDED, of_part=BARE, target="≥ 0.5"),
    Ratio(label="decided / same rows, one by one", part=DECIDED, of_part=ALONE, target="≥ 0.5"),
    Ratio(label="decided / same rows, in the same batches", part=DECIDED, of_part=ROWS),
    Ratio(label="over the local bus / bare transaction", part=LOCAL, of_part=BARE),
    Ratio(label="over RabbitMQ / bare loop over RabbitMQ", part=RABBIT, of_part=LOOP, target="≥ 0.5"),
    Ratio(label="over RabbitMQ / bare transaction", part=RABBIT, of_part=BARE),
    Ratio(label="CPU: decided / bare transaction", part=DECIDED, figure="cpu_ms", of_part=BARE, target="≤ 3"),
    Ratio(label="CPU: decided / same rows, in the same batches", part=DECIDED, figure="cpu_ms", of_part=ROWS),
    *(
        Ratio(
            label=f"commit at half load, p99 / p50: {part}",
            part=part,
            figure="commit_p99_ms",
            of_part=part,
            of_figure="commit_p50_ms",
            target="≤ 5",
        )
        for part in (DECIDED, LOCAL, RABBIT)
    ),
)


class Report:
    """The rounds of each engine and what they amount to."""

    def __init__(
        self, found: Mapping[str, Sequence[Round]], *, seconds: float, remarks: Sequence[str], rows: Mapping[str, float]
    ) -> None:
        self._found = found
        self._seconds = seconds
        self._remarks = remarks
        self._rows = rows
        self._date = datetime.datetime.now(datetime.UTC).date().isoformat()

    def as_json(self) -> dict[str, Any]:
        """Everything: ratios first, then medians, then the figures of each round."""
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        }
        return {
            "ratios": {
                engine: {ratio.label: _spread(each, ratio.target) for ratio, each in self._ratios(engine)}
                for engine in self._found
            },
            "medians": {engine: self._medians(engine) for engine in self._found},
            "rows_per_event": dict(self._rows),
            "rounds": {engine: list(rounds) for engine, rounds in self._found.items()},
            "seconds": self._seconds,
            "date": self._date,
            "machine": machine,
            "remarks": list(self._remarks),
        }

    def text(self) -> str:
        """The tables of every engine, ratios first, and the load of the machine."""
        tables = [table(engine) for engine in self._found for table in (self._ratio_table, self._table, self._latencies)]
        rows = ", ".join(f"{name} {count:g}" for name, count in self._rows.items())
        listed = textwrap.fill(f"rows per event, {sum(self._rows.values()):.1f} in all: {rows}", 120)
        return "\n\n".join([*tables, listed, "\n".join(self._remarks)])

    def section(self, words: str) -> str:
        """The section for RESULTS.md; `words` are those of the command."""
        return (
            f"## {HEADING}\n\n{NOTES}\n\nCommand: `{words}`. Date: {self._date}.\n\n```text\n{self.text()}\n```\n\n"
            f"{PEER_NOTES}\n\n{peer_runs.guarantees()}\n"
        )

    def row(self, words: str) -> str:
        """The row for the table of sections."""
        return f"| [{HEADING}](#{HEADING.lower()}) | {self._date} | `{words}` |"

    def _ratios(self, engine: str) -> list[tuple[Ratio, list[float]]]:
        """Each ratio with its values in the rounds that have both parts."""
        rounds = self._found[engine]
        parts = {part for found in rounds for part in found}
        against = [
            Ratio(label=f"{part} / {peer.name}", part=part, of_part=f"{PEER}{peer.name}", target=peer.target)
            for peer in peer_runs.PEERS
            for part in (DECIDED, RABBIT)
            if f"{PEER}{peer.name}" in parts
        ]
        values = [(ratio, [ratio.of(found) for found in rounds]) for ratio in (*RATIOS, *against)]
        known = [(ratio, [value for value in each if value is not None]) for ratio, each in values]
        return [(ratio, each) for ratio, each in known if each]

    def _medians(self, engine: str) -> dict[str, dict[str, float]]:
        every: dict[str, dict[str, list[float]]] = {}
        for found in self._found[engine]:
            for part, figures in found.items():
                for figure, value in figures.items():
                    every.setdefault(part, {}).setdefault(figure, []).append(value)
        return {part: {figure: statistics.median(each) for figure, each in figures.items()} for part, figures in every.items()}

    def _ratio_table(self, engine: str) -> str:
        heading = f"{engine}, {len(self._found[engine])} rounds of {self._seconds:g} s a part"
        lines = [[ratio.label, noise.spread(each, ".3f"), ratio.target] for ratio, each in self._ratios(engine)]
        return noise.table([heading, "median (least … most)", "target"], lines)

    def _table(self, engine: str) -> str:
        medians = self._medians(engine)
        shown = {name: column for name, column in COLUMNS.items() if any(name in figures for figures in medians.values())}
        lines = [
            [part, *(f"{figures[name]:{form}}" if name in figures else "–" for name, (_, form) in shown.items())]
            for part, figures in medians.items()
        ]
        return noise.table([f"{engine}, per event", *(title for title, _ in shown.values())], lines)

    def _latencies(self, engine: str) -> str:
        lines = [
            [part, *(f"{figures.get(f'{name}_p50_ms', 0):.1f} / {figures.get(f'{name}_p99_ms', 0):.1f}" for name in LATENCIES)]
            for part, figures in self._medians(engine).items()
            if any(f"{name}_p50_ms" in figures for name in LATENCIES)
        ]
        lines = [["–" if cell == "0.0 / 0.0" else cell for cell in line] for line in lines]
        return noise.table([f"{engine}, half load, p50 / p99 in ms", *(f"publish to {name}" for name in LATENCIES)], lines)


def with_section(document: str, section: str, row: str) -> str:
    """The document with this section in place of the one under the same heading, or before the first other section; and with this
    row in the table of sections."""
    heading = section.partition("\n")[0]
    start = document.find(f"{heading}\n")
    if start < 0:
        start = end = document.index("\n## ") + 1
    else:
        following = re.compile(r"^## ", re.MULTILINE).search(document, start + len(heading))
        end = following.start() if following else len(document)
    document = f"{document[:start]}{section}\n{document[end:]}".rstrip() + "\n"
    first = row.partition("|")[2].partition("|")[0]
    kept = [line for line in document.splitlines() if not line.startswith(f"|{first}|")]
    kept.insert(next(at for at, line in enumerate(kept) if line.startswith("|---")) + 1, row)
    return "\n".join(kept) + "\n"


def _spread(values: Sequence[float], target: str) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "target": target}
