"""The page of one session in a browser: what needs attention and its button, replay, resend, hostile names, scopes, cost.

Pages know no engine: those that are only drawn have the embedded one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from machine import job_key, model
from store import tables
from tests import console_browser, engines, waiting
from tests.integration import api_service, test_attention_agrees
from tests.integration.api_service import SDK_APP_ID, Service, now_ms

MASTER = "master-token"
HOSTILE = '"><img src=x onerror=alert(1)>'
LINES = 200_000
# Ten ways in which a session needs attention, each with the name of its rule.
STUCK = [case for case in test_attention_agrees.CASES if case.cause in test_attention_agrees.RULES and "sqlite" in case.on]
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


async def _finished(service: Service, reason: str = "gone") -> str:
    """A finished session whose result the receiver did not take."""
    task_id = await service.open_session(RoomId=7, Callback="https://hooks.example.com/x")
    await service.ask("POST", f"/sessions/{task_id}/stop", json={})
    await service.store.leases.take(job_key.DeliveryKey(task_id, 1), 1, "node", 30_000)
    failed = {"Reason": reason, "Detail": f"The callback URL answered 410 {HOSTILE}.", "Retry": False}
    await service.say("callback-failed", TaskId=task_id, Revision=1, Epoch=1, **failed)
    return task_id


async def _audited(service: Service) -> list[tuple[str, str, str]]:
    lines, _ = await service.audit.list()
    return [(line.who, line.action, line.outcome) for line in lines if line.action in ("replay", "resend", "stop")]


async def test_a_failed_recording_is_replayed_from_its_page(service: Service) -> None:
    """The cause and its button come first. The preview changes nothing; the confirmed replay moves the recording on, is audited
    under the key's name, and happens once however often its form is sent."""
    id_, key = await service.key("read", "operate")
    task_id = await service.open_session()
    await service.failed_recording(task_id)
    async with console_browser.visiting(service.url, key=key, path=f"/console/sessions/{task_id}") as visitor:
        await visitor.until("#next", "The bucket refused the key (403).")
        await visitor.page.click("#next button.primary")
        await visitor.until("h1", "Preview")
        assert "alice/1 Failed Uploading" in await visitor.text("table")
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert body["Recordings"][0]["State"] == "Failed"
        fields = {
            await each.get_attribute("name") or "": await each.get_attribute("value") or ""
            for each in await visitor.page.locator(".confirm-form input[type=hidden]").all()
        }
        await visitor.page.click(".confirm-form button.primary")
        await visitor.until(".notice", "Replayed: 1")
        await visitor.until("#recordings", "Uploading")
        again = await visitor.page.context.request.post(f"{service.url}/console/sessions/{task_id}/replay", form=fields)
        assert again.status == 200
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert (body["Recordings"][0]["State"], body["Recordings"][0]["Attempt"]) == ("Uploading", 2)
    assert await _audited(service) == [(f"key {id_} school", "replay", "ok")]


async def test_results_are_sent_again_and_sessions_stopped(service: Service) -> None:
    """Both from the page; a refusal is a page that tells why."""
    task_id, open_id = await _finished(service), await service.open_session()
    async with console_browser.visiting(service.url, key=MASTER, path=f"/console/sessions/{task_id}") as visitor:
        await visitor.until("#next", "did not accept the result")
        await visitor.page.click("#next button")
        await visitor.until(".notice", "Revision 1 is posted again")
        await visitor.until("#results tbody", "pending")
        form = {"csrf": await visitor.page.locator("input[name=csrf]").first.get_attribute("value")}
        refused = await visitor.page.context.request.post(f"{service.url}/console/sessions/{task_id}/replay", form=form)
        assert (refused.status, "There is no such recording" in await refused.text()) == (404, True)
        await visitor.open(f"/console/sessions/{open_id}")
        await visitor.page.click("summary.danger")
        await visitor.page.click("button.danger")
        await visitor.until(".notice", "The session closes")
    done = [("stop", "ok"), ("replay", "NotFound"), ("resend", "ok")]
    assert [line[1:] for line in await _audited(service)][:3] == done


async def test_hostile_names_and_details_do_nothing(service: Service) -> None:
    """A speaker, a room and an answer with markup are text everywhere on the page, and links with such a name are right."""
    task_id = await service.open_session(RoomId=None, StrRoomId=HOSTILE, UserId="<b>rec")
    room = {"SdkAppId": SDK_APP_ID, "StrRoomId": HOSTILE}
    await service.say("user-publishing", **room, UserId=HOSTILE, EventMs=now_ms(), Kind="audio")
    refused = await _finished(service)
    async with console_browser.visiting(service.url, key=MASTER, path=f"/console/sessions/{task_id}") as visitor:
        await visitor.until("h1", HOSTILE)
        await visitor.until("#recordings", HOSTILE)
        assert await visitor.page.locator("main img, main script, main b").count() == 0
        await visitor.open(f"/console/sessions/{refused}")
        await visitor.until("#results", HOSTILE)
        assert await visitor.page.locator("main img, main script, main b").count() == 0


@only_sqlite
async def test_a_key_sees_and_does_what_its_scopes_allow(service: Service) -> None:
    """Without `operate` there is no action, and a forged one gets 403; without `watch` neither live view nor file."""
    _, key = await service.key("read")
    task_id = await service.open_session()
    await service.failed_recording(task_id)
    async with console_browser.visiting(service.url, key=key, path=f"/console/sessions/{task_id}") as visitor:
        await visitor.until("#next", "The bucket refused the key")
        assert await visitor.page.locator("main form, main [data-watch], main [data-play]").count() == 0
        csrf = await visitor.page.locator("input[name=csrf]").first.get_attribute("value")
        for action in ("stop", "replay", "resend"):
            form = {"csrf": csrf, "id": "1", "confirmed": "yes"}
            assert await visitor.fetch("POST", f"/console/sessions/{task_id}/{action}", form) == 403
        for media in ("live", "file"):
            answer = await visitor.page.context.request.get(
                f"{service.url}/console/sessions/{task_id}/{media}?speaker=alice&n=1", max_redirects=0
            )
            assert answer.status == 403
    assert await _audited(service) == []


@only_sqlite
async def test_forms_work_without_keys(database: engines.Database) -> None:
    """Where no request needs a key, the page's own forms are not taken for those of another site."""
    async with api_service.running(database) as service:
        task_id = await service.open_session()
        await service.failed_recording(task_id)
        async with console_browser.visiting(service.url, path=f"/console/sessions/{task_id}") as visitor:
            await visitor.page.click("#next button.primary")
            await visitor.until("h1", "Preview")


async def test_each_cause_is_reached_in_two_clicks(tmp_path: Path) -> None:
    """From a page that shows only the list of sessions: one click opens the page, which begins with the cause. So it is for every
    rule of the sessions that need attention."""
    assert {case.cause for case in STUCK} == test_attention_agrees.RULES
    reached: list[str] = []
    async with console_browser.visiting("about:blank", path="") as visitor:
        for number, case in enumerate(STUCK):
            folder = tmp_path / str(number)
            folder.mkdir()
            world = test_attention_agrees.World()
            options: dict[str, Any] = {"own_node": world.own_node, "policy": model.Policy(lease_ms=model.HOUR)}
            async with api_service.running(engines.fresh("sqlite", folder), **options) as service:
                world.service, service.clock_ahead_ms = service, test_attention_agrees.CALM_MS
                await world.worker()
                await case.make(world)
                visitor.url = service.url
                visitor.asked.clear()
                await visitor.open("/console/sessions")
                await visitor.page.locator("#sessions td a").first.click()
                _, answer = await service.ask("GET", "/sessions?stuck=true")
                (session,) = answer["Sessions"]
                (reason,) = [each for each in session["Stuck"] if each["Rule"] == case.cause]
                await visitor.until("#next", reason["Why"][:20])
                reached.append(case.cause)
                # The service ends when the page has closed its live updates.
                await visitor.page.goto("about:blank")
    assert reached == [case.cause for case in STUCK]


@only_sqlite
async def test_a_page_with_a_long_timeline_is_quick(service: Service) -> None:
    """With 200,000 lines the page comes within 300 ms, its lines folded, with a link to older ones."""
    task_id = await service.open_session()
    owner = f"{task_id}/alice/1"
    row = {"task_id": task_id, "owner": owner, "event_id": "e", "from_state": "Joining", "to_state": "Joining"}
    kinds = (("deadline-passed", "pull again"), ("ffmpeg-exit", "capture waiting; 404"), ("user-publishing", "ignored: it runs"))
    lines = [row | {"at_ms": at, "event_type": kinds[at % 3][0], "note": kinds[at % 3][1]} for at in range(1, LINES + 1)]
    async with service.store.connections.write(limited=False) as connection:
        await connection.execute(insert(tables.journal), lines)
    took_s: list[float] = []
    async with console_browser.visiting(service.url, key=MASTER, path=f"/console/sessions/{task_id}") as visitor:
        for _ in range(5):
            began_s = time.monotonic()
            answer = await visitor.page.context.request.get(f"{service.url}/console/sessions/{task_id}")
            took_s.append(time.monotonic() - began_s)
            assert answer.status == 200
        await visitor.until("#timeline", "capture waiting; 404")
        assert await visitor.page.locator("#timeline tbody tr").count() <= 12
        assert await visitor.page.locator("a[href*='timeline=']").count() == 1
    assert min(took_s) <= waiting.limit_s(0.3), took_s
