"""Smoke runs of the benchmarks: each `bench/*.py` that is a command runs for a few seconds and prints its table with the load.

Rule: no figure is judged. A new benchmark is listed here with its smallest arguments, or with the benchmark that runs it. Each is
a process of its own, a fork of `tests/fork_server.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests import fork_server, waiting

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "alignment": ["--hours=0.01 --folder={folder}"],
    "capture": ["--streams=2 --rounds=1 --seconds=2 --settle=0.5 --length=30 --folder={folder}"],
    "capture_density": ["--counts 2 --seconds 1 --ways native bare --folder {folder}"],
    "capture_kills": ["--kills 1 --speakers 2 --ways native --folder {folder}"],
    "console": ["--quick --folder={folder} --engine=embedded"],
    "decisions": [f"--rounds=1 --seconds=0.2 --folder={{folder}} --engine={engine}" for engine in ("embedded", "distributed")],
    "engine": [f"--rounds=1 --seconds=0.2 --folder={{folder}} --engine={engine}" for engine in ("embedded", "distributed")],
    "ends": ["--recordings 2 --minutes 3.6 --folder {folder}"],
    "finish": ["--minutes 0.2 --modes 02 --compare --folder {folder}"],
    "history": [f"--quick --folder={{folder}} --engine={engine}" for engine in ("embedded", "distributed")],
    "intake": [f"--quick --forward --folder={{folder}} --engine={engine}" for engine in ("embedded", "distributed")],
    "mutated_streams": ["--cases=200"],
    "neighbors": [f"--seconds=0.2 --share=0.05 --folder={{folder}} --engine={engine}" for engine in ("embedded", "distributed")],
    "recipes": [f"--follow --only plain --modes 02 --out={{folder}}{way}" for way in ("", " --service")],
    "scrape": ["--scrapes=2 --folder={folder}"],
}
RUN_BY = {
    "callback_burst": "intake",
    "down_receiver": "intake",
    "call_tracer": "readability",
    "cos_sink": "finish",
    "source": "capture",
}
ELSEWHERE = {"readability": "tests/integration/test_readability.py"}
"""It has a smoke run among the tests of its figures."""
ON_ONE_SOURCE = ("capture", "capture_density", "ends", "finish")
"""They share a folder, because the stream in it takes longest to encode."""
LIMIT_S = 60


def commands() -> list[str]:
    """The modules of `bench/` that can be run."""
    return sorted(path.stem for path in (ROOT / "bench").glob("*.py") if '"__main__"' in path.read_text(encoding="utf-8"))


def test_every_benchmark_has_a_smoke_run() -> None:
    """A module of `bench/` that is a command is run by this file, itself or by another benchmark."""
    assert commands() == sorted([*SMALLEST, *RUN_BY, *ELSEWHERE])
    assert set(RUN_BY.values()) <= {*SMALLEST, *ELSEWHERE}
    assert all(f"{name}.main(" in (ROOT / path).read_text(encoding="utf-8") for name, path in ELSEWHERE.items())


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, runs in SMALLEST.items() for words in runs])
async def test_a_benchmark_runs(name: str, words: str, tmp_path: Path, loops: Path) -> None:
    """It ends with exit code 0 and prints a table, and below it how busy the machine was."""
    folder = loops if name in ON_ONE_SOURCE else tmp_path
    output, errors = tmp_path / "output", tmp_path / "errors"
    process = await fork_server.shared().fork(
        words.format(folder=folder).split(),
        os.environ,
        output,
        errors=errors,
        program=f"import runpy; runpy.run_module('bench.{name}', run_name='__main__', alter_sys=True)",
    )
    async with waiting.at_most(LIMIT_S):
        code = await process.wait()
    printed = output.read_text(encoding="utf-8")
    assert code == 0, errors.read_text(encoding="utf-8")
    assert re.search(r"^-{3,}  -{3,}", printed, re.MULTILINE), printed
    if "--engine=distributed" in words and name == "engine":
        assert "peers: not measured" in printed, "a folder without their environment runs none, and the text says so"
    assert re.search(r"other work on the machine took \d+% of them", printed), printed
