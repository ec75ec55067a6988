"""The cost of the console's queries on a long history, on each engine: every filter, and the figures of the overview."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from machine import model, overview, states
from machine.session_view import SessionFilter
from store import overview as overview_queries
from store import session_list
from tests import decider_harness, engines, history, long_life, statement_meter

PAGE = 20
FEW, MANY = 60, 3_000
APP = decider_harness.APP
# Copies have the time of the original; their ids end in their numbers.
ONE_AFTER_THE_OTHER = (
    f"UPDATE sessions SET opened_ms = {engines.START_MS - model.HOUR} + CAST(substr(task_id, 14) AS BIGINT)"
    " WHERE task_id LIKE '0000000000000%'"
)
FILTERS = {
    "all": SessionFilter(),
    "state": SessionFilter(state=states.FINISHED),
    "active": SessionFilter(state=states.OPEN),
    "app": SessionFilter(sdk_app_id=APP),
    "no app": SessionFilter(sdk_app_id=1),
    "room": SessionFilter(room="88"),
    "no room": SessionFilter(room="none"),
    "user": SessionFilter(user_id="rec"),
    "no user": SessionFilter(user_id="none"),
    "app, no user": SessionFilter(sdk_app_id=APP, user_id="none"),
    "app, no room": SessionFilter(sdk_app_id=APP, room="none"),
    "speaker": SessionFilter(speaker="al"),
    "no speaker": SessionFilter(speaker="none"),
    "speaker, no room": SessionFilter(speaker="al", room="none"),
    "code": SessionFilter(code=states.SUCCESS),
    "no code": SessionFilter(code=states.FAILED_RECORDING),
    "node": SessionFilter(node="n1"),
    "since": SessionFilter(since_ms=engines.START_MS - 2 * model.HOUR),
    "none since": SessionFilter(since_ms=engines.START_MS + 100 * model.HOUR),
    "until": SessionFilter(until_ms=engines.START_MS + 100 * model.HOUR),
    "none until": SessionFilter(until_ms=engines.START_MS - 100 * model.HOUR),
}


async def test_a_page_of_a_long_history_costs_what_a_short_one_does(
    database: engines.Database, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each filter, whether many sessions match it or none, and each figure of the overview reads as much of a database with 3,000
    finished sessions as of one with 60."""
    # A page looks at more candidates than there are sessions in the short history.
    monkeypatch.setattr(session_list, "CANDIDATES", PAGE)
    monkeypatch.setattr(session_list, "ROUNDS", 2)
    meter = statement_meter.Meter(monkeypatch)
    async with decider_harness.opened(database, clock, "0A") as harness:
        life = long_life.Life(harness)
        await life.run()
    # The figures are those of the hours after the history.
    clock.advance(200 * model.HOUR)
    found: list[dict[str, int]] = []
    before = 0
    for number, sessions in enumerate((FEW, MANY), 1):
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            await history.copy_session(harness.store, life.task_id, sessions, before + 1)
            async with harness.store.connections.write(limited=False) as connection:
                await connection.execute(text(ONE_AFTER_THE_OTHER))
            await history.analyze(harness.store)
        if database.engine == "postgresql":
            # The entries of the old times are not part of a real history.
            await asyncio.to_thread(database.ask, "VACUUM sessions")
        before = sessions
        found.append({})
        for name, wanted in FILTERS.items():
            act = lambda harness, wanted=wanted: harness.reading.sessions(wanted, limit=PAGE)  # noqa: E731 - one call
            found[-1][name] = (await statement_meter.work(meter, database, clock, f"0{number}B", act)).reads
        figures = await statement_meter.work(meter, database, clock, f"0{number}C", lambda h: _figures(h, clock))
        found[-1]["figures"] = figures.reads
    few, many = found
    assert {name: (few[name], many[name]) for name in few if many[name] > 1.5 * few[name] + 60} == {}


async def _figures(harness: Any, clock: engines.Clock) -> list[overview.Hour]:
    asked = overview_queries.OverviewQueries(harness.store.connections)
    newest = await asked.newest_line()
    await asked.lines_after(newest - 10)
    return await asked.hours([clock() - number * model.HOUR for number in range(24)])


async def test_figures_are_counted(harness: decider_harness.Harness, clock: engines.Clock) -> None:
    """The overview counts what began, ended and failed in an hour."""
    clock.advance(model.HOUR - clock() % model.HOUR)
    begin_ms = clock()
    failed = await harness.start(RoomId=1)
    await harness.start(RoomId=2)
    await harness.publish(RoomId=1)
    owner = f"{failed}/al/1"
    await harness.take(owner)
    asked = overview_queries.OverviewQueries(harness.store.connections)
    clock.advance(model.HOUR)
    await harness.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="refused-for-good", MediaMs=0, Retry=False)
    hours = await asked.hours([begin_ms, begin_ms + model.HOUR])
    assert [(hour.opened, hour.finished, hour.failed) for hour in hours] == [(2, 0, 0), (0, 0, 1)]
    lines = await asked.lines_after(0)
    assert {task_id for _, task_id in lines} >= {failed}
    assert await asked.newest_line() == lines[-1][0]
    assert [s.task_id for s in await asked.sessions_of([failed, "none"])] == [failed]
