"""The watch over what needs attention looks without being asked, and neither an outage nor a defect of a look ends it or makes a
node unready."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import insert

from machine import attention, errors
from store import attention as store_attention
from store import connections, tables
from tests import backends, engines, postgres, service_process, tcp_proxy, waiting
from tests.integration import api_service
from web import attention_watch

REASON = "The database does not answer: ConnectionResetError."


class Faulty(store_attention.AttentionQueries):
    """The queries of a database, of which one fails or waits as a test says."""

    def __init__(self, database: connections.Connections) -> None:
        super().__init__(database)
        self.error: Exception | None = None
        self.flows = asyncio.Event()
        self.flows.set()
        self.failed = 0

    async def parked(self) -> list[attention.Attention]:
        """Dead letters of the outbox."""
        await self.flows.wait()
        if self.error is not None:
            self.failed += 1
            raise self.error
        return await super().parked()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another at once."""
    monkeypatch.setattr(attention_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(attention_watch, "ROWS_EVERY_S", 0.02)


@pytest.fixture
async def faulty(database: engines.Database, often: None) -> AsyncIterator[Faulty]:
    opened = connections.open_database(database.url)
    yield Faulty(opened)
    await opened.close()


@pytest.fixture
async def service(database: engines.Database, faulty: Faulty) -> AsyncIterator[api_service.Service]:
    async with api_service.running(database, attention_queries=faulty) as running:
        await running.watch.start()
        yield running
        # A server stops only after its last answer.
        faulty.flows.set()


async def ready(service: api_service.Service) -> tuple[int, str, list[str]]:
    """Status, message and warnings of /readyz."""
    async with waiting.at_most(20), service.http.get(f"{service.url}/readyz") as answer:
        return answer.status, (await answer.json()).get("Message", ""), answer.headers.getall("Recorder-Warning", [])


def logged(lines: Sequence[Any], *events: str) -> list[tuple[str, str]]:
    """The lines of these events: event and level."""
    return [(line["event"], line["log_level"]) for line in lines if line["event"] in events]


async def park(database: connections.Connections) -> None:
    """A message whose handling failed for good."""
    row = {"channel": "event", "type": "stop", "task_id": "", "node": "", "body": "{}", "created_ms": 1, "claimed_until_ms": 0}
    async with database.write() as connection:
        await connection.execute(insert(tables.outbox).values(row | {"sent_ms": 1, "parked": "It failed."}))


async def test_an_outage_is_logged_once_and_ends_nothing(service: api_service.Service, faulty: Faulty) -> None:
    """However many looks fail, one line tells it, with the reason, and one its end. Meanwhile /readyz gives 503 and the reason.
    Afterwards the task goes on: a cause is logged although nobody asks."""
    with structlog.testing.capture_logs() as lines:
        faulty.error = errors.DatabaseUnavailable(REASON)
        await waiting.until(lambda: faulty.failed > 3, 20, "looks that fail")
        status, message, _ = await ready(service)
        assert (status, message) == (503, REASON)
        assert logged(lines, "attention.unknown", "attention.known") == [("attention.unknown", "warning")]
        faulty.error = None
        await waiting.until(lambda: logged(lines, "attention.known"), 20, "the end of the outage")
        await park(service.store.connections)
        await waiting.until(lambda: logged(lines, "attention.needed"), 20, "the cause")
    assert [line["reason"] for line in lines if line["event"] == "attention.unknown"] == [REASON]
    assert (await ready(service))[0] == 200


async def test_a_defect_of_a_look_makes_no_node_unready(service: api_service.Service, faulty: Faulty) -> None:
    """/readyz stays 200, says that causes may be missing, and gives those of before. The log has the error, and the task
    goes on."""
    await park(service.store.connections)
    await waiting.until(lambda: _tells(service, "parked"), 20, "the cause")
    with structlog.testing.capture_logs() as lines:
        faulty.error = ValueError("a defect")
        await waiting.until(lambda: faulty.failed > 3, 20, "looks that fail")
        status, _, warned = await ready(service)
        assert (status, [text.partition(":")[0] for text in warned]) == (200, ["What needs attention is not known", "parked"])
        assert {*logged(lines, "attention.look_failed")} == {("attention.look_failed", "error")}
        assert all(line["exc_info"] for line in lines if line["event"] == "attention.look_failed")
        faulty.error = None
        await waiting.until(lambda: _tells(service, "parked"), 20, "the end of the defect")


async def test_a_look_that_takes_long_keeps_no_probe_waiting(
    service: api_service.Service, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz answers while a look waits, and gives the findings of before."""
    await park(service.store.connections)
    await waiting.until(lambda: _tells(service, "parked"), 20, "the cause")
    monkeypatch.setattr(attention_watch, "PATIENCE_S", 0.05)
    faulty.flows.clear()
    status, _, warned = await ready(service)
    assert (status, warned[0], [text.partition(":")[0] for text in warned[1:]]) == (200, attention_watch.SLOW, ["parked"])
    monkeypatch.undo()
    faulty.flows.set()
    await waiting.until(lambda: _tells(service, "parked"), 20, "the end of the wait")


async def _tells(service: api_service.Service, *causes: str) -> bool:
    """Whether /readyz tells exactly these."""
    status, _, warned = await ready(service)
    return status == 200 and [text.partition(":")[0] for text in warned] == list(causes)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("fault", ["cut", "blackhole"])
async def test_the_server_of_the_database_is_away(database: engines.Database, often: None, fault: str) -> None:
    """PostgreSQL resets its connections, or hangs: /readyz answers 503 with the reason, and 200 as soon as it is back."""
    proxy = tcp_proxy.Proxy(target_port=postgres.shared().port)
    await proxy.start()
    behind = dataclasses.replace(database, url=database.url.replace(f":{proxy.target_port}/", f":{proxy.port}/"))
    try:
        async with api_service.running(behind, distributed=True) as service:
            await service.store.nodes.heartbeat("api")
            await service.watch.start()
            await waiting.until(lambda: _tells(service, "no-worker"), 20, "the first look")
            getattr(proxy, fault)()
            status, message, _ = await ready(service)
            assert (status, message.startswith("The database does not answer")) == (503, True)
            proxy.restore()
            await waiting.until(lambda: _tells(service, "no-worker"), 60, "the database")
    finally:
        await proxy.stop()


@pytest.mark.parametrize("engine", backends.NAMES)
async def test_a_service_logs_a_cause_that_nobody_asks_for(tmp_path: Path, engine: str) -> None:
    """A message is parked in a running service: its log tells it, without a request."""
    ground = backends.make(engine, tmp_path / "data")
    service = service_process.ServiceProcess(tmp_path, ground.settings)
    await service.start()
    try:
        database = connections.open_database(ground.database.replace("sqlite:", "sqlite+aiosqlite:"))
        await park(database)
        await database.close()

        def told() -> list[Any]:
            lines = [json.loads(line) for line in service.log.read_text().splitlines()]
            return [line for line in lines if line["event"] == "attention.needed" and line["cause"] == "parked"]

        (line,) = await waiting.until(told, 2 * attention_watch.ROWS_EVERY_S, "the cause in the log", every_s=0.2)
        assert (line["level"], line["subject"], "recorder parked list" in line["next"]) == ("warning", "database", True)
    finally:
        code = await service.stop()
    assert code == 0
    await ground.remove(service.log)
