"""The console in a browser: sign-in, forged requests, hostile names, languages, themes, and pages that update by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from machine import model
from tests import console_browser, engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service

MASTER = "master-token"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


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


async def test_hostile_names_do_nothing(service: Service) -> None:
    """Names of rooms and users with markup are shown as text, and none of it runs."""
    alerts = []
    await service.open_session(RoomId=None, StrRoomId=HOSTILE[:60], UserId="<b>rec")
    async with console_browser.visiting(service.url, key=MASTER, path="/console/sessions") as visitor:
        visitor.page.on("dialog", lambda dialog: alerts.append(dialog.message))
        await visitor.until("#sessions", HOSTILE[:60])
        await visitor.until("#sessions", "<b>rec")
        assert await visitor.page.locator("main img, main script, main b").count() == 0
    assert alerts == []
