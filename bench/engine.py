"""The decision engine, compared with bare loops that write the same rows, and with other engines, in one run.

    .venv/bin/python -m bench.engine
    .venv/bin/python -m bench.engine --engine embedded --rounds 1 --seconds 1

Rule: all parts of a round take turns on the same machine and the same servers, so other load hits all of them. Every commit is
synced to disk. A figure is the median of the rounds, a ratio the median of the ratios of each round. Parts:

- *bare transaction*: four statements, one commit each (`bench/bare.py`).
- *decided*: events of whole lives, decided by the real Decider on the real Store; SESSIONS lives at once (`bench/lives.py`).
- *same rows*: the rows that such a life writes, in batches as large as those that the engine has just committed, without any read
  or logic (`bench/replay.py`); then the same with one event in each commit.
- *over the local bus*, *over RabbitMQ*: the whole way from publish to result. RabbitMQ stands next to a bare loop that consumes,
  writes the same rows in the same batches and publishes with confirmations (`bench/bare_broker.py`).
- *half load*: latencies while lives begin at random, half as often as the engine has just sustained (`bench/half_load.py`).
- *peers*: the same life of six steps in other engines (`bench/peers/`).

CPU is that of this process, publishers included, and that of the servers apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog

from bench import bare, bare_broker, engine_report, half_load, lives, meter, noise, peer_runs, replay, write_log
from tests import postgres, rabbit

SESSIONS = 64
BARE, ROWS, ALONE, LOOP = engine_report.BARE, engine_report.ROWS, engine_report.ALONE, engine_report.LOOP
DECIDED, LOCAL, RABBIT = engine_report.DECIDED, engine_report.LOCAL, engine_report.RABBIT
NO_PEERS = "peers: not measured, because their environment does not exist; `make bench-engine` makes it"
COMMAND = "make bench-engine"
DOCUMENT = Path("bench/RESULTS.md")
JSON = Path("bench/results/engine.json")
Round = dict[str, meter.Figures]


class Rounds:
    """The parts of one engine, in the order in which they take turns."""

    def __init__(self, metered: meter.Meter, loop: bare.Bare, rows: replay.Replay, engines: dict[str, lives.Decisions]) -> None:
        self._meter = metered
        self._loop = loop
        self._rows = rows
        self._engines = engines

    @property
    def remarks(self) -> list[str]:
        """What to print below the figures."""
        return []

    async def run(self, seconds: float) -> Round:
        """One round."""
        found = {BARE: await self._meter.measure(BARE, lambda: self._loop.run(seconds))}
        for name, engine in self._engines.items():
            found[name] = await self._meter.measure(name, lambda engine=engine: engine.run(seconds))
        batch = max(1, round(found[DECIDED]["events_per_commit"]))
        found[ROWS] = await self._meter.measure(ROWS, lambda: self._rows.run(seconds, batch))
        found[ROWS]["batch"] = batch
        found[ALONE] = await self._meter.measure(ALONE, lambda: self._rows.run(seconds, 1))
        for name, engine in self._engines.items():
            found[name] |= await half_load.latencies(engine, found[name]["per_s"], seconds)
        return found


class RoundsOverRabbit(Rounds):
    """The same, with the bare loop over RabbitMQ and the peers."""

    def __init__(
        self,
        metered: meter.Meter,
        loop: bare.Bare,
        rows: replay.Replay,
        engines: dict[str, lives.Decisions],
        way: bare_broker.ReplayBroker,
        peers: peer_runs.PeerRuns | None,
    ) -> None:
        super().__init__(metered, loop, rows, engines)
        self._way = way
        self._peers = peers

    async def run(self, seconds: float) -> Round:
        """One round."""
        found = await super().run(seconds)
        batch = int(found[ROWS]["batch"])
        found[LOOP] = await self._meter.measure(LOOP, lambda: self._way.run(seconds, batch))
        for peer in peer_runs.PEERS if self._peers else ():
            if figures := await self._peers.run(peer, seconds, SESSIONS):
                found[f"{engine_report.PEER}{peer.name}"] = dict(figures)
        return found

    @property
    def remarks(self) -> list[str]:
        """The peers that failed, or why none was measured."""
        return self._peers.failures if self._peers else [NO_PEERS]


@contextlib.asynccontextmanager
async def embedded(folder: Path, _: Path) -> AsyncIterator[Rounds]:
    """SQLite and the local bus."""
    steps = await write_log.record(folder)
    bare_in, replayed, decided_in, over_in = (folder / f"{name}.db" for name in ("bare", "replayed", DECIDED, "over"))
    await replay.create_tables(f"sqlite+aiosqlite:///{replayed}")
    decided = lives.Decisions(f"sqlite+aiosqlite:///{decided_in}", lives.six_steps, lanes=SESSIONS)
    over = lives.OverLocal(f"sqlite+aiosqlite:///{over_in}", lives.six_steps, lanes=SESSIONS)
    async with contextlib.AsyncExitStack() as opened:
        loop, rows = bare.BareFile(bare_in), replay.ReplayFile(replayed, steps)
        for each in (loop, rows):
            opened.push_async_callback(each.close)
        engines = {DECIDED: decided, LOCAL: over}
        for engine in engines.values():
            await opened.enter_async_context(started(engine))
        counters = {
            name: meter.CommitsOfFile(path)
            for name, path in ((BARE, bare_in), (DECIDED, decided_in), (LOCAL, over_in), (ROWS, replayed), (ALONE, replayed))
        }
        yield Rounds(meter.Meter({}, counters), loop, rows, engines)


@contextlib.asynccontextmanager
async def distributed(folder: Path, environments: Path) -> AsyncIterator[Rounds]:
    """PostgreSQL and RabbitMQ, on servers of the benchmark's own, which sync to disk."""
    steps = await write_log.record(folder)
    server, broker = postgres.Server(durable=True), rabbit.Broker()
    async with contextlib.AsyncExitStack() as opened:
        for each in (server, broker):
            opened.callback(each.remove)
            each.start()
        loop = await bare.BareServer.open(server.create())
        rows = await replay.ReplayServer.open(server.create(), steps)
        way = await bare_broker.ReplayBroker.open(server.create(), broker.url, steps)
        for closed in (loop, rows, way):
            opened.push_async_callback(closed.close)
        url = server.create()
        decided = lives.Decisions(url, lives.six_steps, lanes=SESSIONS)
        over = lives.OverRabbit(server.create(), broker.url, lives.six_steps, lanes=SESSIONS)
        engines = {DECIDED: decided, RABBIT: over}
        for engine in engines.values():
            await opened.enter_async_context(started(engine))
        metered = meter.Meter({"postgres": server.pid, "rabbitmq": broker.pid}, {"": meter.CommitsOfServer(server, url)})
        peers = peer_runs.PeerRuns(environments, server, broker) if peer_runs.exists(environments) else None
        yield RoundsOverRabbit(metered, loop, rows, engines, way, peers)


@contextlib.asynccontextmanager
async def started(engine: lives.Decisions) -> AsyncIterator[None]:
    """Start the engine and let it decide one life, so that everything is connected and prepared; stop it at the end."""
    await engine.start()
    try:
        await engine.recording()
        yield
    finally:
        await engine.stop()


ENGINES = {"embedded": embedded, "distributed": distributed}


async def measure(engine: str, folder: Path, environments: Path, rounds: int, seconds: float) -> tuple[list[Round], list[str]]:
    """All rounds of one engine, and remarks."""
    async with ENGINES[engine](folder, environments) as parts:
        return [await parts.run(seconds) for _ in range(rounds)], parts.remarks


def run(engines: Sequence[str], folder: Path, rounds: int, seconds: float) -> engine_report.Report:
    """Measure these engines, one after the other."""
    quiet, found, remarks = noise.Noise(), {}, []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as made:
        for engine in engines:
            (within := Path(made) / engine).mkdir()
            found[engine], said = asyncio.run(measure(engine, within, folder, rounds, seconds))
            remarks += said
        rows = write_log.rows_per_event(asyncio.run(write_log.record(Path(made))))
    return engine_report.Report(found, seconds=seconds, remarks=[*remarks, str(quiet)], rows=rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append", help="may be repeated; both without it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each part of a round")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    parser.add_argument("--write", action="store_true", help=f"write {JSON} and the section of {DOCUMENT}")
    parser.add_argument(
        "--make-peers", action="store_true", help="make the environment of the peers; without it they run if it exists"
    )
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.make_peers:
        peer_runs.make(given.folder.absolute())
    report = run(given.engine or list(ENGINES), given.folder.absolute(), given.rounds, given.seconds)
    print(report.text())
    if given.write:
        JSON.parent.mkdir(exist_ok=True)
        JSON.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        page = engine_report.with_section(DOCUMENT.read_text("utf-8"), report.section(COMMAND), report.row(COMMAND))
        DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
