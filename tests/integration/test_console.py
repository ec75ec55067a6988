"""The console in a browser: sign-in, forged requests, hostile names, languages, themes, and pages that update themselves.

What depends on no engine runs on SQLite alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine import api_keys, job_key, model
from tests import console_browser, engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service
from web import scopes

MASTER = "master-token"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


async def test_only_a_valid_key_opens_the_console(service: Service) -> None:
    """Without a key every page leads to the sign-in. A wrong key is refused and audited, a right one opens the page asked
    for, and revoking it ends the visit."""
    id_, key = await service.key("read")
    async with console_browser.visiting(service.url, path="/console/sessions?room=8489") as visitor:
        visitor.expected.append("401")
        assert "/console/signin?back=" in visitor.page.url
        await visitor.sign_in(key[:-1] + ("a" if key[-1] != "a" else "b"))
        assert "not valid" in await visitor.text(".alert")
        await visitor.sign_in(key)
        assert visitor.page.url == f"{service.url}/console/sessions?room=8489"
        (cookie,) = [c for c in await visitor.page.context.cookies() if c.get("name") == "recorder_console"]
        assert (cookie.get("httpOnly"), cookie.get("sameSite"), cookie.get("path")) == (True, "Strict", "/console")
        assert key not in cookie.get("value", "")
        await service.keys.revoke(id_, model.Caller(name="cli test"))

        async def out() -> bool:
            await visitor.open("/console")
            return "/console/signin" in visitor.page.url

        await waiting.until(out, 5, "the visit of a revoked key to end")
    lines, _ = await service.audit.list()
    signed = [(line.who, line.outcome) for line in lines if line.action == "sign-in"]
    assert signed == [(f"key {id_} school", "ok"), ("console", "Unauthorized")]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_form_without_the_token_of_the_visit_changes_nothing(service: Service) -> None:
    """A POST without the CSRF token, or with that of another visit, gets 403; the page's own form is accepted."""
    _, key = await service.key("read")
    async with console_browser.visiting(service.url, key=key) as visitor:
        await visitor.until("h1", "Overview")
        assert await visitor.fetch("POST", "/console/preferences", {"language": "zh"}) == 403
        assert await visitor.fetch("POST", "/console/preferences", {"language": "zh", "csrf": "x" * 32}) == 403
        assert await visitor.fetch("POST", "/console/signout", {}) == 403
        await visitor.page.select_option("select[name=language]", "zh")
        await visitor.until("h1", "总览")
        await visitor.page.select_option("select[name=theme]", "dark")
        await visitor.until("h1", "总览")
        assert await visitor.page.get_attribute("html", "data-theme") == "dark"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_key_without_operate_can_act_on_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a read-only key shows it, and a forged action with its right token gets 403 and changes nothing."""
    _, key = await service.key("read")
    # Any form may stand for an action; that of the sign-out is on every page.
    monkeypatch.setitem(scopes.CONSOLE, ("POST", "/console/signout"), api_keys.OPERATE)
    async with console_browser.visiting(service.url, key=key) as visitor:
        await visitor.until("footer", "Read-only")
        token = await visitor.page.locator("input[name=csrf]").first.get_attribute("value")
        assert await visitor.fetch("POST", "/console/signout", {"csrf": token}) == 403
        visitor.expected.append("404")
        assert await visitor.open("/console/nothing") == 404
        await visitor.until("h1", "no such page")
        assert await visitor.open("/console/") == 200
        assert "signin" not in visitor.page.url


async def test_a_session_is_followed_without_a_reload(service: Service) -> None:
    """A session appears in list and overview and goes through its states while nobody reloads; a paused page stays as it is.
    Names with markup, also those that come later, are shown as text, and none of it runs."""
    alerts: list[str] = []
    hostile = '"><img src=x onerror=alert(1)><b>x'
    async with console_browser.visiting(service.url, key=MASTER, path="/console/sessions") as visitor:
        page = visitor.page
        page.on("dialog", lambda dialog: alerts.append(dialog.message))
        await visitor.until("#none", "No session")
        await page.evaluate("window.kept = 1")
        task_id = await service.open_session(UserId="<b>rec")
        row = f"#s-{task_id}"
        await visitor.until(row, "Open")
        await visitor.until(row, "<b>rec")
        async for state in stages(service, task_id):
            await visitor.until(row, f"1 {state}")
        await visitor.until(row, "Finished")
        await page.keyboard.press("p")
        await visitor.until("#live", "Paused")
        other = await service.open_session(RoomId=None, StrRoomId=hostile)
        await page.click("#live")
        await visitor.until(f"#s-{other}", hostile)
        assert await page.evaluate("window.kept") == 1
        assert await page.locator("main img, main script, main b").count() == 0
        await visitor.open("/console")
        await visitor.until("#counts", "1 Open")
        assert re.search(r"Capture 0 0 .*Unsent messages [1-9]", await visitor.text("#backlog"))
        await page.evaluate("window.kept = 1")
        await service.open_session(RoomId=2)
        await visitor.until("#counts", "2 Open")
        assert await page.evaluate("window.kept") == 1
    assert alerts == []


async def stages(service: Service, task_id: str) -> AsyncIterator[str]:
    """Take a recording of a session of the room 8489 from state to state; yields each state that it has reached."""
    room, owner = {"SdkAppId": api_service.SDK_APP_ID, "RoomId": 8489}, job_key.parse(f"{task_id}/alice/1")
    named = {"TaskId": task_id, "Speaker": "alice", "N": 1}
    await service.say("user-publishing", **room, UserId="alice", EventMs=api_service.now_ms(), Kind="audio")
    yield "Joining"
    await service.store.leases.take(owner, 1, "node", 60_000)
    await service.store.segments.register(owner, 1, "node")
    await service.say("capture-started", **named, Epoch=1)
    yield "Recording"
    await service.say("room-destroyed", **room, EventMs=api_service.now_ms())
    await service.say("ffmpeg-exit", **named, Epoch=1, Job="capture", Reason="stopped", MediaMs=5000, SizeBytes=4)
    yield "Transcoding"
    await service.store.leases.take(owner, 2, "node", 60_000)
    output = {"DurationMs": 5000, "SizeBytes": 3, "Crc64": "", "StartMs": 1, "EndMs": 2, "Gaps": []}
    await service.say("ffmpeg-exit", **named, Epoch=2, Job="transcode", Reason="ok", Output=output)
    yield "Uploading"
    await service.store.leases.take(owner, 3, "node", 60_000)
    await service.say("upload-finished", **named, Epoch=3, SizeBytes=3, Crc64="2", Url="https://cos/x")
    yield "Done"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_no_page_has_an_obstacle(service: Service, tmp_path: Path) -> None:
    """axe-core finds nothing serious or critical on any page, in both themes, and no page is wider than a phone. The
    engine, here SQLite, makes no difference to how a page looks."""
    script = await console_browser.axe(tmp_path)
    task_id = await service.open_session()
    await service.failed_recording(task_id)
    await service.open_session(RoomId=7)
    await service.store.nodes.heartbeat("node-1", skew_ms=9_000)
    known = [path for method, path in scopes.CONSOLE if method == "GET" and "{" not in path and not path.endswith("/live")]
    pages = [*known, "/console/sessions?user=rec", "/console/sessions?room=nowhere", f"/console/sessions/{task_id}"]
    pages.append("/console/bulk/replay?user=rec")
    found = {}
    for theme, language in (("light", "en-US"), ("dark", "zh-CN")):
        async with console_browser.visiting(service.url, key=MASTER, theme=theme, language=language) as visitor:
            for path in pages:
                await visitor.page.set_viewport_size({"width": 1360, "height": 860})
                await visitor.open(path)
                if obstacles := await console_browser.obstacles(visitor, script):
                    found[theme, path] = obstacles
                await visitor.page.set_viewport_size({"width": 390, "height": 844})
                wide = await visitor.page.evaluate("document.documentElement.scrollWidth")
                if wide > 390:
                    found[theme, path, "phone"] = [f"{wide} px wide"]
    assert found == {}
