"""Cost versus history, on each engine: an event costs the same on a new database and on one that is years old.

Rule: counts instead of times. One test compares times, of both databases in the same run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import Index, text

from bench import history as bench_history
from handlers import dispatch
from machine import model
from store import tables
from tests import decider_harness, engines, history, long_life, statement_meter

SIZES = (10, 1_000, 20_000)
# An index of more rows is deeper, and on PostgreSQL a page of it may hold entries of dead rows.
SLACK = 1.2
# Recordings with one pull: so many that the mean of all is below two pulls, also beside one of 10,000.
OTHERS = 20_000
PULLS = 10_000
MOST_RATIO = 3.0


async def pattern(database: engines.Database, clock: engines.Clock) -> str:
    """A session that has ended, for copies."""
    async with decider_harness.opened(database, clock, "0A") as harness:
        life = long_life.Life(harness)
        await life.run()
    return life.task_id


async def lengthen(harness: decider_harness.Harness, copied: str, last: int, first: int = 1) -> None:
    """Add so many sessions that have ended, each with rows in every table. An hour passes."""
    harness.clock.advance(model.HOUR)
    await history.copy_session(harness.store, copied, last, first)
    await history.add_users(harness.store, harness.clock(), last, first, room="elsewhere")
    await history.analyze(harness.store)


@pytest.mark.timeout(180)
async def test_no_event_costs_more_with_a_long_history(
    database: engines.Database, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements and rows of each call are equal at every length of the history; so is, nearly, what the database reads. The life
    has an event for each handler."""
    copied = await pattern(database, clock)
    meter = statement_meter.Meter(monkeypatch)
    costs: list[list[statement_meter.Cost]] = []
    reads: list[int] = []
    before = 0
    for number, size in enumerate(SIZES, 1):
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            await lengthen(harness, copied, size, before + 1)
        before = size
        meter.costs.clear()
        began = await meter.read(database)
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            with meter.watching(harness.store):
                await long_life.Life(harness, meter).run()
        reads.append(await meter.read(database) - began)
        costs.append(list(meter.costs))
    assert dispatch.EVENT_HANDLERS.keys() <= {cost.name for cost in costs[0]}
    assert [_without_reads(each) for each in costs] == [_without_reads(costs[0])] * len(SIZES)
    assert max(reads) <= SLACK * reads[0], _grown(costs)


async def test_no_event_costs_more_after_many_pulls(
    database: engines.Database, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that has flapped for a day, without any media, costs what a new one does: segments, jobs and journal lines. All
    other recordings had one pull each, so that the planner of PostgreSQL expects no more of this one."""
    await pattern(database, clock)
    async with decider_harness.opened(database, clock, "0B") as harness:
        await history.add_single_pulls(harness.store, OTHERS)
    few, many = [
        await _measured(database, clock, monkeypatch, f"0{number}", long_life.Life.go_on, pulls=pulls)
        for number, pulls in enumerate((10, PULLS), 1)
    ]
    assert _without_reads(many[0]) == _without_reads(few[0])
    # Tables of a few rows may be scanned, and grow meanwhile; a statement that reads the pulls reads all of them.
    assert many[1] <= SLACK * few[1] + PULLS / 2, _grown([few[0], many[0]])


async def test_no_event_of_a_speaker_costs_more_among_many(
    database: engines.Database, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A speaker among 500 in the room costs what one among ten does, from pull to pull until the room ends."""
    few, many = [
        await _measured(database, clock, monkeypatch, f"0{number}", long_life.Life.speak, others=others, room=number)
        for number, others in enumerate((9, 499), 1)
    ]
    assert _without_reads(many[0]) == _without_reads(few[0])
    assert many[1] <= SLACK * few[1], _grown([few[0], many[0]])


async def _measured(
    database: engines.Database,
    clock: engines.Clock,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    live: Callable[[long_life.Life], Awaitable[None]],
    **more: int,
) -> tuple[list[statement_meter.Cost], int]:
    """The costs of a life's calls after its first pull, and what the database read for all of them."""
    clock.advance(2 * model.MINUTE)  # callbacks are noted again, and nothing of an earlier life is due
    meter = statement_meter.Meter(monkeypatch)
    async with decider_harness.opened(database, clock, prefix) as harness:
        life = long_life.Life(harness, meter, **more)
        await life.begin()
        await history.analyze(harness.store)
    meter.costs.clear()
    began = await meter.read(database)
    async with decider_harness.opened(database, clock, f"{prefix}A") as harness:
        life.harness = harness
        with meter.watching(harness.store):
            await live(life)
    return list(meter.costs), await meter.read(database) - began


def _without_reads(costs: list[statement_meter.Cost]) -> list[tuple[str, int, int]]:
    return [(cost.name, cost.statements, cost.rows) for cost in costs]


def _grown(costs: list[list[statement_meter.Cost]]) -> list[tuple[str, int, int]]:
    """The calls that read more at the end, with the instructions of SQLite."""
    pairs = zip(costs[0], costs[-1], strict=True)
    return [
        (few.name, few.instructions, many.instructions) for few, many in pairs if many.instructions > SLACK * few.instructions
    ]


@pytest.mark.alone
@pytest.mark.parametrize("engine", bench_history.ENGINES)
async def test_no_event_takes_longer_with_a_long_history(engine: str, tmp_path: Path) -> None:
    """The median time of an event, next to that of the first one. Both databases take turns."""
    found = await bench_history.measure(engine, tmp_path, sessions=20_000, pulls=10_000, rounds=50)
    assert found.ratio <= MOST_RATIO, found.table()


# Tables with one row for each node and for each application, and the deadlines that a restart after downtime extends.
# From the newest message back to the newest result, of which every session has some.
NEWEST_RESULT = "ORDER BY outbox.seq DESC"
WALKED = ("nodes", "applications", "UPDATE deadlines SET at_ms", NEWEST_RESULT)


async def test_no_statement_of_a_life_scans_a_table(
    database: engines.Database, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement that a life needs finds its rows by an index. A walk along an index ends after a page, or is one of the
    indexes that hold only rows in use."""
    copied = await pattern(database, clock)
    meter = statement_meter.Meter(monkeypatch)
    async with decider_harness.opened(database, clock, "01") as harness:
        await lengthen(harness, copied, 1_000)
        with meter.watching(harness.store):
            await long_life.Life(harness, meter).run()
        async with harness.store.connections.read() as connection:
            if database.engine == "postgresql":
                await connection.execute(text("SET enable_seqscan = off"))  # a scan remains only where no index serves
            explain = "EXPLAIN QUERY PLAN " if database.engine == "sqlite" else "EXPLAIN "
            asked = {t: p for t, (_, p) in meter.executed.items() if not t.startswith(("INSERT", "WITH RECURSIVE"))}
            plans = {t: [str(row[-1]) for row in await connection.exec_driver_sql(explain + t, p)] for t, p in asked.items()}
    assert len(plans) > 40
    partial = [index.name for table in tables.metadata.sorted_tables for index in table.indexes if _is_partial(index)]
    scans = {t: [step for step in plan if _scans(step, t, partial)] for t, plan in plans.items()}
    assert {t: found for t, found in scans.items() if found and not any(each in t for each in WALKED)} == {}


def _is_partial(index: Index) -> bool:
    return index.dialect_options["sqlite"]["where"] is not None


def _scans(step: str, statement: str, partial: list[str]) -> bool:
    """Whether a step of a plan reads a whole table."""
    if "Seq Scan" in step:
        return True
    words = step.split()
    if words[0] != "SCAN" or words[1] not in tables.metadata.tables:
        return False
    return not (words[-1] in partial or ("INDEX" in words and "LIMIT" in statement))
