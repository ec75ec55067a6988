"""The operators' pages in a browser: nodes, parked messages, keys, the audit, and bulk actions on the list of sessions.

Pages know no engine: those that are only drawn have the embedded one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from machine import nodes
from tests import console_browser, engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service
from tests.integration.test_bulk import failed, replays
from tests.integration.test_nodes_api import beat
from tests.integration.test_operators_api import park

MASTER = "master-token"
MANY = 50
# The pages ask the same routes on both engines, which their own tests cover.
on_one_engine = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,), distributed=True) as running:
        yield running


async def test_fifty_sessions_are_replayed_from_the_page(service: Service) -> None:
    """The list leads to the preview, which counts what a replay would act on: fifty of fifty-one. Confirmed, the page shows
    how far it is and what came of it. Each session is replayed once, and the preview then finds none."""
    ids = await failed(service, MANY)
    healthy = await service.open_session(RoomId=1)
    async with console_browser.visiting(service.url, key=MASTER, path="/console/sessions?app=1400000001") as visitor:
        await visitor.page.click("a[href*='/console/bulk/replay']")
        await visitor.until(".count-line", f"Sessions: {MANY}")
        assert healthy[:10] not in await visitor.text()
        await visitor.page.click("button.primary")
        await visitor.until("#bulk", f"Done: {MANY} · needed nothing any more: 0 · refused: 0")
        assert await visitor.page.locator("progress").get_attribute("value") == str(MANY)
        await visitor.page.click("#bulk a.quiet")
        assert visitor.page.url.endswith("/console/sessions?app=1400000001")
        await visitor.open("/console/bulk/replay")
        assert "No session of this view needs attention." in await visitor.text()
    assert set(await replays(service, ids)) == {1}


async def test_a_node_is_drained_from_the_page(service: Service) -> None:
    """The page shows what a node reports, drains it, and gives it captures again."""
    await beat(service.store, "w1", "w2")
    async with console_browser.visiting(service.url, key=MASTER, path="/console/nodes") as visitor:
        row = "#n-w2"
        shown = await visitor.text(row)
        assert [part for part in ("host-w2", "Active", "0 / 20", "9.0 GiB", "-3 ms") if part not in shown] == []
        await visitor.page.click(f"{row} form[action$=drain] button")
        await visitor.until(".notice", "w2 hands its captures over.")
        await visitor.until(row, "Drained")
        await visitor.page.click(f"{row} form[action$=uncordon] button")
        await visitor.until(row, "Active")
        await beat(service.store, "w2")
        assert service.store.nodes.cordon == nodes.ACTIVE


@on_one_engine
async def test_a_key_that_only_reads_sees_no_action(service: Service) -> None:
    """A key that reads sees the nodes, no button and no other page of operators; what it forges gets 403 and changes nothing."""
    await beat(service.store, "w1", "w2")
    ids = await failed(service, 1)
    _, key = await service.key("read")
    async with console_browser.visiting(service.url, key=key, path="/console/nodes") as visitor:
        visitor.expected.append("403")
        await visitor.until("#n-w1", "host-w1")
        assert await visitor.page.locator("main button").count() == 0
        assert "Parked" not in await visitor.text("nav.tabs")
        for path in ("/console/parked", "/console/keys", "/console/audit", "/console/bulk/replay"):
            assert await visitor.open(path) == 403
        await visitor.open("/console/nodes")
        token = await visitor.page.locator("input[name=csrf]").first.get_attribute("value")
        forged = {"csrf": token or "", "ids": ids[0], "key": "0" * 32, "total": "1", "pick:row-1": "on"}
        for path in ("nodes/w1/cordon", "bulk/replay", "parked/drop", "keys"):
            assert await visitor.fetch("POST", f"/console/{path}", forged) == 403
    await beat(service.store, "w1")
    assert (service.store.nodes.cordon, await replays(service, ids)) == (nodes.ACTIVE, [0])


@on_one_engine
async def test_parked_messages_are_handled_from_the_page(service: Service) -> None:
    """Chosen messages are requeued at once and dropped after a confirmation; the page of one shows its body, secrets masked."""
    await park(service, "one", "two", "three")
    async with console_browser.visiting(service.url, key=MASTER, path="/console/parked") as visitor:
        assert "PLANTED" not in await visitor.text()
        await visitor.page.locator("tbody a").first.click()
        await visitor.until("pre.body", '"id": "one"')
        await visitor.page.click("button.primary")
        await visitor.until(".notice", "Requeued: 1")
        await visitor.page.check("input[data-pick-all]")
        await visitor.page.click("button.danger")
        await visitor.until("h1", "Drop parked messages: 2")
        await visitor.page.click("button.danger")
        await visitor.until(".notice", "Dropped: 2")
        assert "Nothing is parked." in await visitor.text()
    assert len(await service.store.outbox.unsent()) == 1


@on_one_engine
async def test_a_key_is_made_and_revoked_on_the_page(service: Service) -> None:
    """The text of a new key is shown once. It opens the API, until it is revoked on the same page; both are in the audit."""
    async with console_browser.visiting(service.url, key=MASTER, path="/console/keys", language="zh-CN") as visitor:
        await visitor.page.fill("input[name=name]", '<b>lessons"')
        await visitor.page.click("form.new-key button")
        await visitor.until("h2", '<b>lessons"')
        text = await visitor.page.input_value("input.secret")
        reads = {"Authorization": f"Bearer {text}"}

        async def works() -> bool:
            return (await service.ask("GET", "/sessions", headers=reads))[0] == 200

        await waiting.until(works, what="the key to work")
        await visitor.open("/console/keys")
        assert await visitor.page.locator("input.secret").count() == 0
        await visitor.page.click("button.danger")
        await visitor.page.click("button.danger")
        await visitor.until(".notice", "已吊销")

        async def refused() -> bool:
            return not await works()

        await waiting.until(refused, what="the key to be refused")
        await visitor.open("/console/audit")
        shown = await visitor.text("tbody")
        assert all(action in shown for action in ("keys-revoke", "keys-create"))
