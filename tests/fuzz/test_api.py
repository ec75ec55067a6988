"""Schemathesis on the OpenAPI document of a running service: without a token on the embedded engine, with one on the other."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests import backends
from tests.e2e import session_audit
from tests.e2e.conftest import World
from tests.fuzz import tally

IN_TEST = 540
TOKEN = "fuzz-token"
NOWHERE = "rtmp://127.0.0.1:9/pull/{room}?u={userid}&s={speaker}"


@pytest.mark.timeout(3_600 if tally.CASES else 180)
async def test_every_answer_is_as_described(world: World) -> None:
    """Every response matches the documented statuses, content types and schemas, and no 5xx occurs except 507 of a start; every
    operation succeeds at times, TRTC's callbacks are taken, and the process lives on."""
    # Here, and not in every process of a run: it loads Schemathesis.
    from tests.fuzz import api

    token = "" if world.engine == backends.EMBEDDED else TOKEN
    service = await world.serve(API_RATE="0", PULL_ADDRESS=NOWHERE, **({"API_TOKENS": token} if token else {}))
    pid = service.pid
    run = api.Run(url=service.url, token=token, seed=tally.SEED)
    await asyncio.to_thread(run.all, tally.CASES // 2 or IN_TEST)
    assert run.failures_5xx == []
    assert run.broken == []
    table = "\n".join(run.table())
    assert run.never_succeeded() == [], table
    assert {400, 401, 404} <= run.statuses, table
    assert world.backend is not None
    decided = "SELECT count(*) AS n FROM inbox WHERE event_id LIKE 'trtc-%'"
    found = session_audit.read(world.backend.database, {"decided": decided, "noted": "SELECT count(*) AS n FROM presence"})
    callbacks = sum(rows[0]["n"] for rows in found.values())
    assert callbacks > run.cases // 100, table
    assert service.pid == pid
    assert (await service.get("/healthz"))["Status"] == "alive"
    assert await service.stop() == 0
    by_status: Counter[str] = Counter()
    for (_, status), count in run.ends.items():
        by_status[f"{status}"] += count
    made = tally.Tally(name=f"Schemathesis, {world.engine}", cases=run.cases, ends=by_status)
    survived = "the process is the same one, and ended with 0 on SIGTERM"
    made.show(
        *run.table(),
        f"{callbacks} of TRTC's callbacks show in the database",
        f"the slowest: {run.slowest_s:.2f} s; {survived}",
    )
