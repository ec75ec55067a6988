"""The command `resend` and the table of deliveries, over the HTTP API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from cli import client, sessions
from machine import job_key
from tests import engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service
from tests.integration.test_commands import run

URL = "https://hooks.example.com:8443/done?key=PLANTED"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, tokens=("master-token-of-the-test",)) as running:
        yield running


async def given_up(service: Service, room: int) -> str:
    """A finished session whose receiver answered 410. Returns its id."""
    task_id = await service.open_session(RoomId=room, Callback=URL)
    await service.ask("POST", f"/sessions/{task_id}/stop", json={})
    await service.store.leases.take(job_key.DeliveryKey(task_id, 1), 1, "node", 30_000)
    refused = {"Reason": "gone", "Detail": "The callback URL answered 410: it accepts no further results.", "Retry": False}
    await service.say("callback-failed", TaskId=task_id, Revision=1, Epoch=1, **refused)
    return task_id


async def test_one_result_is_posted_again(service: Service) -> None:
    """The table says host, state, attempts, times and the answer; the command posts it again; a second one is no other."""
    task_id = await given_up(service, 1)
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    (row,) = body["Callbacks"]
    assert (row["Host"], row["State"], row["Attempts"]) == ("hooks.example.com:8443", "failed", 1)
    assert (bool(row["LastTime"]), row["NextTime"], row["Answer"].split(":")[0]) == (True, "", "The callback URL answered 410")
    shown = await run(service, "show", task_id)
    assert "Revision\tHost\tState\tAttempts\tLast try\tNext try\tAnswer" in shown.stdout
    assert f"recorder resend {task_id}" in (await run(service, "sessions", "--stuck")).stdout
    sent = await run(service, "resend", task_id, "--revision", "1")
    assert (sent.exit_code, sent.stdout) == (0, f"{task_id} revision 1 is posted again\n")
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    assert (body["Callbacks"][0]["State"], body["Callbacks"][0]["Answer"]) == ("pending", "It was not posted yet.")
    assert "PLANTED" not in json.dumps(body)
    assert (await run(service, "resend", task_id, "--revision", "9")).exit_code == 4


async def test_a_post_that_is_retried_shows_the_next_try(service: Service) -> None:
    """A delivery that waits for its retry: when it was tried, when it is tried next, and what the receiver answered."""
    task_id = await service.open_session(RoomId=1, Callback=URL)
    await service.ask("POST", f"/sessions/{task_id}/stop", json={})
    await service.store.leases.take(job_key.DeliveryKey(task_id, 1), 1, "node", 30_000)
    busy = {"Reason": "status", "Detail": "The callback URL answered 503.", "Retry": True}
    await service.say("callback-failed", TaskId=task_id, Revision=1, Epoch=1, **busy)
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    (row,) = body["Callbacks"]
    assert (row["State"], row["Attempts"], row["Answer"]) == ("pending", 1, "The callback URL answered 503.")
    assert row["LastTime"] < row["NextTime"]
    shown = await run(service, "show", task_id)
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("1\thooks.example.com:8443\t")]
    last, next_ = (f"{row[name][:10]} {row[name][11:19]}+00:00" for name in ("LastTime", "NextTime"))
    assert line.split("\t")[2:] == ["pending", "1", last, next_, row["Answer"]]


async def test_all_that_was_given_up(service: Service) -> None:
    """`--all-failed` posts each of them once, and then there is nothing left; options that contradict are wrong usage."""
    tasks = [await given_up(service, room) for room in range(1, 4)]
    sent = await run(service, "resend", "--all-failed")
    assert (sent.exit_code, sorted(line[:26] for line in sent.stdout.splitlines())) == (0, sorted(tasks))
    again = await run(service, "resend", "--all-failed")
    assert (again.exit_code, again.stdout, "nothing to post" in again.stderr) == (0, "", True)
    for wrong in ([], [tasks[0], "--all-failed"], ["--all-failed", "--revision", "1"]):
        assert (await run(service, "resend", *wrong)).exit_code == 2
    lines, _ = await service.audit.list()
    assert sorted(line.subject for line in lines if (line.action, line.outcome) == ("resend", "ok")) == sorted(tasks)


async def test_more_than_one_page_was_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read to its end, although sessions leave it meanwhile."""
    monkeypatch.setattr(sessions, "PAGE", 2)
    tasks = [await given_up(service, room) for room in range(1, 6)]
    asking = client.ServiceClient(url=service.url, token=service.token)
    answers, refused = await asyncio.to_thread(sessions._resend_all, asking)
    assert (sorted(answer["TaskId"] for answer in answers), refused) == (sorted(tasks), [])


async def test_a_resend_needs_the_scope_operate(service: Service) -> None:
    """A key that may read and start is refused."""
    task_id = await given_up(service, 1)
    _, key = await service.key("read", "start")
    mine = {"Authorization": f"Bearer {key}"}

    async def known() -> bool:
        return (await service.ask("GET", "/sessions", headers=mine))[0] == 200

    await waiting.until(known, 5, "the key to be known", every_s=0.2)
    assert (await service.ask("POST", f"/sessions/{task_id}/resend", json={}, headers=mine))[0] == 403
