"""Events decided per second, compared with bare transactions on the same database in the same run.

    .venv/bin/python -m bench.decisions
    .venv/bin/python -m bench.decisions --engine distributed

Rule: both take turns, so other load of the machine hits both. Every write is synced to disk, because the measurement is about the
price of a commit.

`bench/bare.py` explains the bare transactions, `bench/lives.py` the events. Leases that workers take in between count as time,
not as events. With many nodes the event takes the whole path: it is published to RabbitMQ with a confirmation, consumed, decided
and acknowledged, and the relay publishes the effects. Publishers and the one node share a process, which shares its cores with
the servers. `bench.engine` compares more, with more sessions at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from bench import bare as bares
from bench import lives, noise
from tests import postgres, rabbit

# Over the whole path: enough events in parallel that the waits (for a commit, for a confirmation) overlap.
ON_THE_WAY = 32


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[tuple[bares.Bare, list[tuple[str, lives.Decisions]]]]:
    """Bare transactions and decisions on SQLite."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as made:
        bare = bares.BareFile(Path(made) / "bare.db")
        yield bare, [("events decided", lives.Decisions(f"sqlite+aiosqlite:///{made}/recorder.db", lanes=bares.AT_ONCE))]
        await bare.close()


@contextlib.asynccontextmanager
async def distributed(_: Path) -> AsyncIterator[tuple[bares.Bare, list[tuple[str, lives.Decisions]]]]:
    """Bare transactions, decisions, and decisions over RabbitMQ on PostgreSQL. It starts its own servers, which sync to disk."""
    server, broker = postgres.Server(durable=True), rabbit.Broker()
    try:
        server.start()
        broker.start()
        bare = await bares.BareServer.open(server.create())
        decided = lives.Decisions(server.create(), lanes=bares.AT_ONCE)
        whole = lives.OverRabbit(server.create(), broker.url, lanes=ON_THE_WAY)
        yield bare, [("events decided", decided), ("by way of RabbitMQ", whole)]
        await bare.close()
    finally:
        broker.remove()
        server.remove()


ENGINES = {"embedded": embedded, "distributed": distributed}


async def measure(engine: str, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
    """Run all rounds and print the table."""
    async with ENGINES[engine](folder) as (bare, ways):
        for _, made in ways:
            await made.start()
        quiet = noise.Noise()
        transactions: list[float] = []
        events: dict[str, list[float]] = {name: [] for name, _ in ways}
        for _ in range(rounds):
            done, took_s = await bare.run(seconds)
            transactions.append(done / took_s)
            for name, made in ways:
                done, took_s = await made.run(seconds)
                events[name].append(done / took_s)
        for _, made in ways:
            await made.stop()
    lines = [["bare transactions, 4 statements", noise.spread(transactions)]]
    for name, found in events.items():
        ratios = [each / bare_one for each, bare_one in zip(found, transactions, strict=True)]
        lines += [[name, noise.spread(found)], ["  ratio", noise.spread(ratios, ".3f")]]
    say(noise.table([f"{engine}, {rounds} rounds of {seconds:g} s each", "per second: median (least … most)"], lines))
    say(str(quiet))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each part of a round")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(measure(given.engine, given.folder, given.rounds, given.seconds, print))


if __name__ == "__main__":
    main()
