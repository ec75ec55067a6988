"""Schemathesis on the OpenAPI description of a running service: without a token on the embedded engine, with one on the other."""

from __future__ import annotations

import asyncio

import pytest

from tests import footing
from tests.e2e.conftest import World
from tests.fuzz import api, tally

IN_TEST = 300
TOKEN = "fuzz-token"
NOWHERE = "rtmp://127.0.0.1:9/pull/{room}?u={userid}&s={speaker}"


@pytest.mark.timeout(3_600 if tally.CASES else 180)
async def test_every_answer_is_as_described(world: World) -> None:
    """Statuses, content types and schemas are those of the description; no 5xx but 507 of a start; the process lives on."""
    token = "" if world.engine == footing.EMBEDDED else TOKEN
    service = await world.serve(API_RATE="0", PULL_ADDRESS=NOWHERE, **({"API_TOKENS": token} if token else {}))
    pid = service.pid
    run = api.Run(url=service.url, token=token, seed=tally.SEED)
    await asyncio.to_thread(run.all, tally.CASES // 2 or IN_TEST)
    assert run.failures_5xx == []
    assert run.broken == []
    assert {"200", "202", "400", "401", "404"} <= set(run.ends)
    assert service.pid == pid
    assert (await service.get("/healthz"))["Status"] == "alive"
    assert await service.stop() == 0
    made = tally.Tally(name=f"Schemathesis, {world.engine}", cases=run.cases, ends=run.ends)
    made.show(f"the slowest answer took {run.slowest_s:.2f} s; the process is the same one, and ended with 0 when told to")
