"""Interfaces of the real service, wired as in production: long polls that the bus wakes, a quick stop, doctor, progress."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

from tests import service_process, waiting
from tests.e2e.conftest import APP, World, live_for


async def recorder(world: World, *words: str) -> tuple[int, Any]:
    """Run a command with the service's own environment; returns its exit code and its JSON."""
    environ = world.service._environment | {"RECORDER_URL": world.service.url}
    environ |= {"TENCENTCLOUD_SECRETID": "id", "TENCENTCLOUD_SECRETKEY": "key"}
    program = (sys.executable, "-c", "import service; service.main()", *words, "--json")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, cwd=service_process.ROOT, env=environ, stdout=pipe, stderr=pipe)
    stdout, stderr = await asyncio.wait_for(process.communicate(), waiting.limit_s(60))
    assert stderr == b""
    return process.returncode or 0, json.loads(stdout)


async def test_a_long_poll_returns_at_once_and_delays_no_stop(world: World) -> None:
    """The acceptance of a start reaches a long poll within a moment, and a stop of the service ends the next poll quickly."""
    service = await world.serve()
    waits = asyncio.create_task(service.get("/results?after=now&wait=30"))
    await live_for(0.3)
    before = time.monotonic()
    started = await service.post("/sessions", world.request(7001))
    answer = await asyncio.wait_for(waits, waiting.limit_s(20))
    assert [r["Subject"] for r in answer["Results"]] == [started["TaskId"]]
    assert time.monotonic() - before < 3 * waiting.patience()
    waits = asyncio.create_task(service.get(f"/results?after={answer['Next']}&wait=30"))
    await live_for(0.3)
    before = time.monotonic()
    assert await service.stop() == 0
    assert time.monotonic() - before < 5 * waiting.patience()
    assert (await asyncio.wait_for(waits, waiting.limit_s(20)))["Results"] == []


async def test_doctor_next_to_the_running_service(world: World) -> None:
    """`doctor`, with the settings of the running service on the same machine, reports no failure and names the service as holder
    of the lock."""
    await world.serve()
    code, report = await recorder(world, "doctor", "--within=60")
    found = {c["Check"]: (c["Status"], c["Found"]) for c in report["Checks"]}
    assert (code, found["spool-lock"]) == (0, ("ok", "held by the running service"))
    assert {name for name, (status, _) in found.items() if status != "ok"} == set()


async def test_progress_of_a_live_room(world: World) -> None:
    """The media seconds of a live capture grow from poll to poll, ahead of the value that is stored every few seconds."""
    service = await world.serve()
    started = await service.post("/sessions", world.request(7002, Mode="02"))
    room = world.simulator.create_room(APP, 7002)
    await room.join("alice")
    seen: list[float] = []

    async def grows() -> bool:
        recordings = (await service.session(started["TaskId"]))["Recordings"]
        seen.extend(r["MediaSeconds"] for r in recordings)
        return len({s for s in seen if s > 0}) >= 4

    await waiting.until(grows, 20, "the progress", every_s=0.3)
    assert seen == sorted(seen)
    _, shown = await recorder(world, "show", started["TaskId"])
    assert shown["Recordings"][0]["Segments"][0]["Live"] is True
    await room.dismiss()
    await service.finished(started["TaskId"])


async def test_a_foreign_name_is_refused(world: World) -> None:
    """DNS rebinding gives no access to a service that needs no token."""
    service = await world.serve()
    headers = {"Host": "attacker.example"}
    async with aiohttp.ClientSession() as http, http.get(f"{service.url}/sessions", headers=headers) as answer:
        assert (answer.status, (await answer.json())["Code"]) == (403, "Forbidden")
