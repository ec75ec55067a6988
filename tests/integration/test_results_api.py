"""GET /results and `recorder results`: every result once, in order, by cursor; a long poll ends with the first result."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from events import codec
from tests import engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service, start_body
from tests.integration.test_commands import run
from tests.service_process import ROOT

ALL = ["session-accepted", "failed-cos-write", "session-finished"]


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


async def started(service: Service, **more: Any) -> str:
    _, answer = await service.ask("POST", "/sessions", json=start_body(**more))
    return str(answer["TaskId"])


async def types(service: Service, query: str = "") -> tuple[list[str], str]:
    """The types in the response to a query, and the cursor to continue from."""
    status, answer = await service.ask("GET", f"/results{query}")
    assert status == 200, answer
    return [r["Type"] for r in answer["Results"]], answer["Next"]


async def test_a_cursor_of_a_later_database_is_refused(service: Service) -> None:
    """410 with the newest cursor, over HTTP and in what the command prints, also with --follow and a wait."""
    await started(service)
    _, newest = await types(service)
    ahead = f"{newest[0]}999-{engines.START_MS}"
    status, answer = await service.ask("GET", f"/results?after={ahead}&wait=20")
    assert (status, answer["Code"], answer["Newest"]) == (410, "CursorLost", newest)
    done = await run(service, "results", "--follow", "--after", ahead)
    assert done.exit_code == 1
    assert newest in done.stderr


def announced_until(service: Service, done: Callable[[], bool]) -> bool:
    """Report a published result, as the bus does; returns whether it was published."""
    for listener in service.listeners:
        listener(codec.Event(id="1", type="session-finished", time_ms=0, data={}))
    return done()


async def test_results_are_complete_and_in_order(service: Service) -> None:
    """Each result has Cursor, Id, Type, Time, Subject and Data, and the data of session-finished is the session's own result."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    _, answer = await service.ask("GET", "/results")
    found = answer["Results"]
    assert [r["Type"] for r in found] == ALL
    assert [r["Subject"] for r in found] == [task_id, f"{task_id}/alice/1", task_id]
    assert all(set(r) == {"Cursor", "Id", "Type", "Time", "Subject", "Data"} for r in found)
    _, session = await service.ask("GET", f"/sessions/{task_id}")
    assert found[2]["Data"] == session["Results"][0]
    assert found[2]["Id"] == f"{task_id}.1"
    assert "PLANTED" not in json.dumps(answer)


async def test_a_cursor_continues_at_its_position(service: Service) -> None:
    """Paging repeats and skips nothing, and the last cursor finds exactly the later results."""
    await service.failed_recording(await started(service))
    seen, after = [], ""
    while True:
        found, after = await types(service, f"?limit=1&after={after}")
        if not found:
            break
        seen += found
    assert seen == ALL
    await started(service, RoomId=2)
    assert (await types(service, f"?after={after}"))[0] == ["session-accepted"]
    _, end = await types(service, "?after=now")
    assert (await types(service, f"?after={end}"))[0] == []


async def test_results_of_a_type(service: Service) -> None:
    """`type` filters and may be repeated, and the cursor still moves past every filtered result."""
    await service.failed_recording(await started(service))
    assert (await types(service, "?type=session-finished"))[0] == ["session-finished"]
    assert (await types(service, "?type=session-finished&type=session-accepted"))[0] == [ALL[0], ALL[2]]
    found, after = await types(service, "?type=recording-done")
    assert (found, (await types(service, f"?after={after}"))[0]) == ([], [])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=12", "after"),
        ("after=s-1", "after"),
        ("after=sx", "after"),
        ("wait=31", "wait"),
        ("type=start", "type"),
        ("x=1", "x"),
    ],
)
async def test_an_invalid_query_is_refused(service: Service, query: str, field: str) -> None:
    """An invalid cursor, too long a wait and an unknown type are refused by name."""
    status, answer = await service.ask("GET", f"/results?{query}")
    assert (status, answer["Message"].split(":")[0]) == (400, field)


@pytest.mark.parametrize("announced", [True, False])
async def test_the_wait_ends_with_a_result(service: Service, announced: bool) -> None:
    """A result ends a long poll immediately through the bus, and later by polling if the bus is silent, and is the response."""
    _, end = await types(service, "?after=now")
    poll = asyncio.create_task(types(service, f"?after={end}&wait=30"))
    before = time.monotonic()
    task_id = await started(service)
    if announced:
        await waiting.until(lambda: announced_until(service, poll.done), what="the answer")
    found, _ = await asyncio.wait_for(poll, waiting.limit_s(10))
    assert found == ["session-accepted"]
    assert time.monotonic() - before < 5 * waiting.patience()
    assert task_id


async def test_the_wait_ends_with_nothing(service: Service) -> None:
    """A long poll that times out has an empty response with a cursor to continue from."""
    found, after = await types(service, "?wait=0.2")
    assert found == []
    assert await types(service, f"?after={after}") == ([], after)
    await started(service)
    assert (await types(service, f"?after={after}"))[0] == ["session-accepted"]


async def test_the_wait_ends_when_the_service_does(service: Service) -> None:
    """Long polls delay no stop of the service."""
    poll = asyncio.create_task(types(service, "?wait=30"))
    await waiting.until(lambda: len(service.listeners) == 1, what="somebody to listen")
    service.draining = True
    assert (await asyncio.wait_for(poll, waiting.limit_s(3)))[0] == []


async def test_one_result_wakes_every_waiter(service: Service) -> None:
    """One result ends every waiting long poll."""
    poll = [asyncio.create_task(types(service, "?wait=30")) for _ in range(20)]
    await started(service)
    await waiting.until(lambda: announced_until(service, lambda: all(a.done() for a in poll)), what="the answers")
    assert [(await a)[0] for a in poll] == [["session-accepted"]] * 20


@asynccontextmanager
async def following(service: Service, *words: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run `recorder results --follow …` as a process; yields its output."""
    environ = {"RECORDER_URL": service.url, "PYTHONPATH": str(ROOT)}
    # Ctrl-C ends it although a shell that runs the tests in the background ignores it.
    command = "import signal; signal.signal(2, signal.default_int_handler); from cli import app; app.app(prog_name='recorder')"
    program = (sys.executable, "-c", command, "results", "--follow", *words)
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, env=environ)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), waiting.limit_s(10)) == 130


async def test_the_command_follows(service: Service) -> None:
    """--follow prints stored and new results, one JSON object per line without delay, and Ctrl-C ends it with 130."""
    first = await started(service)
    async with following(service, "--json", "--type", "session-accepted") as output:
        assert json.loads(await asyncio.wait_for(output.readline(), waiting.limit_s(15)))["Subject"] == first
        second = await started(service, RoomId=2)
        assert json.loads(await asyncio.wait_for(output.readline(), waiting.limit_s(15)))["Subject"] == second


async def test_the_command_prints_the_stored_results(service: Service) -> None:
    """In a pipe the command prints one tab-separated line per result, --after continues at a cursor, and without --follow it
    ends."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    result = await run(service, "results")
    assert result.exit_code == 0
    headings, *lines = (line.split("\t") for line in result.stdout.splitlines())
    assert headings == ["Cursor", "Time", "Type", "Subject", "What"]
    assert [line[2] for line in lines] == ALL
    assert lines[1][4] == "写cos失败 The bucket refused the key (403)."
    assert lines[2][4] == "RoomDestroyed, revision 1, 0 of 1 files written"
    result = await run(service, "results", "--after", lines[1][0], "--json")
    assert [json.loads(line)["Type"] for line in result.stdout.splitlines()] == ["session-finished"]
    assert (await run(service, "results", "--after", "nonsense")).exit_code == 1
