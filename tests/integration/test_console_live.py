"""The console's stream of events: one reading for all browsers, filters, and its ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from machine import model
from tests import engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service
from web.console import live

ROOM = "8489"


@contextlib.asynccontextmanager
async def watching(service: Service, query: str = "", cookies: Any = None) -> AsyncIterator[asyncio.Queue[tuple[str, Any]]]:
    """A browser's stream: its events, (name, data), and `("end", None)`."""
    seen: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def read(answer: aiohttp.ClientResponse) -> None:
        fields: dict[str, str] = {}
        async for raw in answer.content:
            name, _, value = raw.decode().strip().partition(": ")
            if name:
                fields[name] = value
            elif fields:
                seen.put_nowait((fields["event"], json.loads(fields.get("data") or "null")))
                fields = {}
        seen.put_nowait(("end", None))

    async with aiohttp.ClientSession(cookies=cookies) as browser, browser.get(f"{service.url}/console/live?{query}") as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        reading = asyncio.create_task(read(answer))
        yield seen
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def event(seen: asyncio.Queue[tuple[str, Any]], name: str) -> Any:
    """The data of the next event of this name."""
    async with waiting.at_most(20):
        while True:
            found, data = await seen.get()
            if found == name:
                return data


async def test_all_browsers_share_one_reading(database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten browsers get the change of a session from one reading a second, in the view of each; nobody reads when none watches.
    A browser above the limit is refused."""
    monkeypatch.setattr(live, "WATCHERS", 10)
    async with api_service.running(database) as service, contextlib.AsyncExitStack() as browsers:
        readings, began_s = 0, asyncio.get_running_loop().time()
        queries = service.queries

        async def counted(after: int) -> Any:
            nonlocal readings
            readings += 1
            return await type(queries).lines_after(queries, after)

        monkeypatch.setattr(queries, "lines_after", counted)
        views = (f"room={ROOM}", "room=nowhere")
        streams = [await browsers.enter_async_context(watching(service, views[n % 2])) for n in range(10)]
        task_id = await service.open_session()
        rows = await asyncio.gather(*(event(seen, "row") for seen in streams))
        assert [row["id"] for row in rows] == [task_id] * 10
        assert [ROOM in row["html"] for row in rows] == [True, False] * 5
        took_s = asyncio.get_running_loop().time() - began_s
        assert 1 <= readings <= took_s / live.EVERY_S + 1
        async with service.http.get(f"{service.url}/console/live") as refused:
            assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        await browsers.aclose()

        async def accepted() -> bool:
            async with watching(service):
                return True

        await waiting.until(accepted, what="the closed streams to have ended")
        readings = 0
        await waiting.passed(2 * live.EVERY_S)
        assert readings <= 1


async def test_a_stream_goes_on_where_its_page_was_read(database: engines.Database) -> None:
    """A change between the page and its stream is not lost; a stream from long ago makes the page be read again."""
    async with api_service.running(database) as service:
        await service.open_session(RoomId=1)
        after = await service.queries.newest_line()
        between = await service.open_session(RoomId=2)
        async with watching(service, f"after={after}") as seen:
            assert (await event(seen, "row"))["id"] == between
            async with watching(service, "after=0") as late:
                await event(late, "reload")
            later = await service.open_session(RoomId=3)
            assert (await event(seen, "row"))["id"] == later


@pytest.mark.parametrize("after", ["0", f"{10**12}"])
async def test_no_browser_leads_the_others_astray(
    database: engines.Database, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """A browser that names a line long ago, or one that does not exist, neither makes the node read its history nor keeps changes
    from others."""
    monkeypatch.setattr(live, "OVERLAP", 1)
    monkeypatch.setattr(live, "TICK_S", live.EVERY_S)
    async with api_service.running(database) as service:
        for room in (1, 2, 3):
            await service.open_session(RoomId=room)
        newest = await service.queries.newest_line()
        async with watching(service, f"after={after}") as wrong, watching(service, f"after={newest}") as right:
            # The node has read once, before the change.
            await event(wrong, "reload" if after == "0" else "tick")
            later = await service.open_session(RoomId=4)
            assert (await event(right, "row"))["id"] == later


async def test_a_node_that_is_far_behind_reads_no_backlog(database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After more changes than a browser can follow, its page is read again, and it goes on from there."""
    monkeypatch.setattr(live, "TICK_S", live.EVERY_S)
    monkeypatch.setattr(live, "OVERLAP", 1)
    async with api_service.running(database) as service:
        await service.open_session(RoomId=1)
        async with watching(service, f"after={await service.queries.newest_line()}") as seen:
            await event(seen, "tick")
            with monkeypatch.context() as patch:
                patch.setattr(live, "BEHIND", 0)
                await service.open_session(RoomId=2)
                await event(seen, "reload")
            later = await service.open_session(RoomId=3)
            assert (await event(seen, "row"))["id"] == later


async def test_a_stream_ends_with_its_key_and_with_the_service(database: engines.Database) -> None:
    """Without a visit there is no stream. Revoking the key ends its stream, and so does the end of the service."""
    async with api_service.running(database, ("master",)) as service:
        id_, key = await service.key("read")
        async with service.http.get(f"{service.url}/console/live") as refused:
            assert refused.status == 401
        visits = [await signed_in(service, key), await signed_in(service, "master")]
        async with watching(service, cookies=visits[0]) as one, watching(service, cookies=visits[1]) as other:
            await service.keys.revoke(id_, model.Caller(name="cli test"))
            await event(one, "end")
            service.draining = True
            await event(other, "end")


async def signed_in(service: Service, key: str) -> dict[str, str]:
    """The cookies of a browser that has signed in."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{service.url}/console/signin") as page:
            token = (await page.text()).partition('name="csrf" value="')[2].partition('"')[0]
        async with browser.post(f"{service.url}/console/signin", data={"csrf": token, "key": key}) as answer:
            assert answer.status == 200
        return {cookie.key: cookie.value for cookie in browser.cookie_jar}
