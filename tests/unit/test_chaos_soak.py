"""The bounds of the long run: steady figures pass, figures that grow with the sessions fail, and leftovers are reported."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store import tables
from tests.chaos import soak, soak_samples

CAPTURES = 20
SECONDS = 600


class Listed(contextlib.AbstractContextManager["Listed"]):
    """The entries of a folder as they were, in the form of os.scandir."""

    def __init__(self, entries: Iterable[os.DirEntry[str]]) -> None:
        self._left = iter([*entries])

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self._left)

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


def sample(at_s: float = 0.0, **figures: float) -> soak_samples.Sample:
    """A sample of a service with this many captures and these figures (`rows_x` for `rows.x`)."""
    flat = dict.fromkeys([*soak_samples.BOUNDS, *soak_samples.UNBOUNDED, *soak_samples.NOTHING_LEFT, *soak_samples.LEFT], 0.0)
    return soak_samples.Sample(at_s=at_s, figures=flat | {name.replace("rows_", "rows."): n for name, n in figures.items()})


def broken(begin: float, rise_per_minute: float, wobble: float = 0.0) -> list[str]:
    """The findings if `sessions` begins with this many rows and rises, with the noise of rooms that come and go."""
    wobbles = itertools.cycle((0.0, wobble, 0.0, -wobble))
    looks = [
        sample(at_s, rows_sessions=begin + rise_per_minute * at_s / 60 + next(wobbles), captures=CAPTURES)
        for at_s in range(0, SECONDS, 4)
    ]
    return [fault.split(" rose")[0] for fault in soak_samples.broken(looks, CAPTURES)]


def test_rows_that_come_and_go_are_flat_and_a_table_that_keeps_them_is_not() -> None:
    """Twenty rows that vary by a room are flat. Doubled or tripled rows are not, nor is one kept row for every third session (ten
    rooms, nine sessions a minute)."""
    assert broken(20, 0) == broken(20, 0, wobble=10) == []
    assert broken(20, 20 / 5) == broken(20, 40 / 5) == ["rows.sessions"]
    assert broken(20, 9 / 3) == ["rows.sessions"]
    assert broken(20, 9 / 10) == []


def test_rows_of_the_installation_do_not_grow_at_all() -> None:
    """One more node in the middle of the run is found."""
    looks = [sample(at_s, rows_nodes=1 + (at_s > 450)) for at_s in range(0, SECONDS, 4)]
    assert [fault.split(" rose")[0] for fault in soak_samples.broken(looks, CAPTURES)] == ["rows.nodes"]


def test_what_stays_behind_is_told() -> None:
    """Leftovers are found: a row of any table but the few permanent ones, a capture, an ffmpeg, a file, and descriptors
    beyond those of pools."""
    before = sample(rows_nodes=1)
    meant = {"rows_nodes": 1, "rows_applications": 1, "rows_schema_range": 1, "rows_presence": 50}
    assert soak_samples.left(before, sample(**meant), CAPTURES) == []
    for table in soak_samples.TABLES:
        one_more = meant | {f"rows_{table}": meant.get(f"rows_{table}", 0) + 1}
        found = soak_samples.left(before, sample(**one_more), CAPTURES)
        assert found == [f"rows.{table}: {one_more[f'rows_{table}']} are left"]
    found = soak_samples.left(before, sample(**meant, captures=1, ffmpegs=1, spool_files=1, descriptors=25), CAPTURES)
    assert len(found) == 4


def test_a_native_capture_counts_as_a_capture(tmp_path: Path) -> None:
    """A process captures the segments that it has open for writing; it needs no ffmpeg for them."""
    before = soak_samples.of_process(os.getpid())["captures"]
    with (tmp_path / "00000001.flv").open("wb"):
        assert soak_samples.of_process(os.getpid())["captures"] == before + 1
    assert soak_samples.of_process(os.getpid())["captures"] == before


def test_every_table_is_looked_at() -> None:
    """Every table of the schema is in the list, so that its growth is noticed."""
    assert set(soak_samples.TABLES) == set(tables.metadata.tables)


def test_a_folder_may_go_while_the_spool_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A recording's folder, listed a moment ago, is removed when its session has finished. That must not end the sampler."""
    spool = tmp_path / "spool"
    going = ["alice", "carol"]
    for name in (*going, "bob"):
        (spool / name).mkdir(parents=True)
        (spool / name / "1.flv").write_bytes(bytes(soak_samples.MIB))
    listed = os.scandir

    def and_goes(folder: Any = ".") -> Any:
        found = listed(folder)
        if isinstance(folder, int) or Path(folder) != spool:
            return found
        entries = Listed(found)
        shutil.rmtree(spool / going.pop(0))
        return entries

    monkeypatch.setattr(os, "scandir", and_goes)
    figures = soak_samples.of_files(Path(), spool)
    assert (figures["spool_files"], figures["spool_mib"]) == (2, 2)


async def test_a_sampler_that_ends_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is judged as the second half of a run must not end in its first quarter."""
    sampled = asyncio.Event()

    async def nothing_stuck(_: str) -> dict[str, list[str]]:
        return {"Sessions": []}

    async def rooms() -> None:
        await sampled.wait()

    world = SimpleNamespace(service=SimpleNamespace(get=nothing_stuck))
    run = soak.Soak(soak.Plan(minutes=1, captures=2, engine="embedded", seed=1, folder=tmp_path), world)  # type: ignore[arg-type]
    monkeypatch.setattr(run.rooms, "run", rooms)
    looks = iter([sample(), OSError("no such folder")])

    async def look() -> soak_samples.Sample:
        found = next(looks)
        if isinstance(found, OSError):
            sampled.set()
            raise found
        return found

    async def afterwards(before: soak_samples.Sample) -> soak_samples.Sample:
        return before

    monkeypatch.setattr(run, "sample", look)
    monkeypatch.setattr(run, "_audit", list)
    monkeypatch.setattr(run, "_afterwards", afterwards)
    await run.run()
    assert run.faults == ["after 0 samples no more were taken: OSError('no such folder')"]
