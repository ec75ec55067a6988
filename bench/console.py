"""Time of the console's pages with 100 and with 10⁶ finished sessions, on both engines.

    .venv/bin/python -m bench.console --write
    .venv/bin/python -m bench.console --engine embedded --quick

Rule: both databases take turns in one run, so other load hits both. Client and service share one process. Every view reads the
database: browsers do not share the overview. `tests/history.py` makes the sessions in bulk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import structlog

from bench import history, noise
from tests import engines
from tests.integration import api_service
from web.console import overview

FEW, MANY, QUICK = 100, 1_000_000, 5_000
# The first views fill caches and prepare statements.
WARM = 3
VIEWS = {
    "overview": "/console",
    "list": "/console/sessions",
    "list, room": "/console/sessions?room=88",
    "list, user": "/console/sessions?user=rec",
    "list, speaker": "/console/sessions?speaker=al",
    "list, code": "/console/sessions?code=Success",
    "list, failed": "/console/sessions?code=FailedCosWrite",
    "list, no room": "/console/sessions?room=none",
    "list, attention": "/console/sessions?stuck=true",
}
ENGINES = {"embedded": "sqlite", "distributed": "postgresql"}


async def measure(engine: str, folder: Path, *, sessions: int, rounds: int) -> dict[str, Any]:
    """p95 of each view in ms, on the short and on the long history, their ratio, and the median of this process's CPU time."""
    async with history.ENGINES[engine](folder) as urls, contextlib.AsyncExitStack() as stack:
        services = []
        for url, count in zip(urls, (FEW, sessions), strict=True):
            await history.lengthen(url, count)
            await history.settle(url)
            database = engines.Database(engine=ENGINES[engine], url=url)
            services.append(await stack.enter_async_context(api_service.running(database)))
        times: list[dict[str, list[tuple[float, float]]]] = [defaultdict(list), defaultdict(list)]
        views = []
        for service in services:
            _, page = await service.ask("GET", "/sessions?limit=1")
            views.append(VIEWS | {"one session": f"/sessions/{page['Sessions'][0]['TaskId']}"})
        for _ in range(WARM + rounds):
            for name in views[0]:
                for service, known, spent in zip(services, views, times, strict=True):
                    spent[name].append(await _timed(service, known[name]))
    few, many = ({name: _p95([s for s, _ in found[WARM:]]) for name, found in spent.items()} for spent in times)
    cpu = [{name: _median([cpu_s for _, cpu_s in found[WARM:]]) for name, found in spent.items()} for spent in times]
    return {
        name: {"few_ms": few[name], "many_ms": many[name], "ratio": round(many[name] / few[name], 2)}
        | {"few_cpu_ms": cpu[0][name], "many_cpu_ms": cpu[1][name]}
        for name in few
    }


async def _timed(service: api_service.Service, path: str) -> tuple[float, float]:
    begun_s, used_s = time.perf_counter(), time.process_time()
    async with service.http.get(service.url + path, headers={"accept": "text/html"}) as answer:
        await answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return time.perf_counter() - begun_s, time.process_time() - used_s


def _median(spent_s: list[float]) -> float:
    return round(statistics.median(spent_s) * 1000, 1)


def _p95(spent_s: list[float]) -> float:
    return round(statistics.quantiles(spent_s, n=20, method="inclusive")[-1] * 1000, 1)


def table(about: str, found: dict[str, Any]) -> str:
    """The figures as text."""
    names = ("few_ms", "many_ms", "ratio", "few_cpu_ms", "many_cpu_ms")
    lines = [[view, *(f"{each[name]:.{2 if name == 'ratio' else 1}f}" for name in names)] for view, each in found.items()]
    return noise.table([about, "few, ms", "many, ms", "ratio", "CPU few", "CPU many"], lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append", help="may be repeated; both without it")
    parser.add_argument("--sessions", type=int, default=MANY)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} sessions instead of {MANY:,}, and few rounds")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    parser.add_argument("--write", action="store_true", help="write results/console.json")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    overview.EVERY_S = 0.0
    given.folder.mkdir(parents=True, exist_ok=True)
    sessions, rounds = (QUICK, 5) if given.quick else (given.sessions, given.rounds)
    quiet = noise.Noise()
    results: dict[str, Any] = {}
    for engine in given.engine or list(ENGINES):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as made:
            results[engine] = asyncio.run(measure(engine, Path(made), sessions=sessions, rounds=rounds))
        print(table(f"{engine}: {FEW:,} and {sessions:,} sessions; p95 of {rounds}", results[engine]))
    print(quiet)
    if given.write:
        noise.write("console", quiet, {"sessions": [FEW, sessions], "rounds": rounds} | results)


if __name__ == "__main__":
    main()
