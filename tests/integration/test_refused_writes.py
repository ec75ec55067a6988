"""A database that answers queries and refuses writes counts as unavailable: a PostgreSQL after a failover, a full SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus import database_probe, relay
from machine import errors
from store import connections
from store import store as stores
from tests import engines, examples, refusing_database, waiting
from tests.integration import api_service


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[api_service.Service]:
    async with api_service.running(database) as running:
        yield running


async def _start(service: api_service.Service, room: int) -> tuple[int, dict[str, Any], str]:
    """Start a session; returns status, body and the header Retry-After."""
    body = api_service.start_body(RoomId=room)
    async with service.http.post(service.url + "/sessions", json=body) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After", "")


async def test_starts_and_readiness_name_the_reason_and_recover(
    service: api_service.Service, database: engines.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts and /readyz get 503 with the reason and Retry-After; what was refused left no trace. As soon as the database accepts
    writes, on new connections at least, the service is ready and the first start succeeds."""
    monkeypatch.setattr(connections, "PROBE_EVERY_S", 0.0)
    assert (await _start(service, 1))[0] == 202
    refusing, refused = refusing_database.RefusingDatabase(database, service.store), list[tuple[int, dict[str, Any], str]]()
    # Some connections of the pool are open.
    await asyncio.gather(*(service.store.connections.ping() for _ in range(4)))
    await refusing.begin()
    opened = 1
    for room in range(2, 300):
        answer = await _start(service, room)
        if answer[0] == 202:
            opened += 1  # it found space in pages that exist
        elif answer[1]["Message"].startswith(refusing.reason):
            refused.append(answer)
        if len(refused) == 3:
            break
    assert [(status, answer["Code"], wait) for status, answer, wait in refused] == [(503, "ServiceUnavailable", "10")] * 3
    for _ in range(2):
        status, answer = await service.ask("GET", "/readyz")
        assert (status, answer["Message"].startswith(refusing.reason)) == (503, True), answer
    assert (await service.ask("GET", "/sessions"))[0] == 200
    await refusing.end()

    async def ready() -> bool:
        return (await service.ask("GET", "/readyz"))[0] == 200

    await waiting.until(ready, 20, "the service to be ready")
    assert [(await _start(service, room))[0] for room in range(1_000, 1_006)] == [202] * 6
    assert database.ask("SELECT count(*) FROM sessions") == [(opened + 6,)]
    assert database.ask("SELECT count(*) FROM inbox WHERE event_id LIKE 'probe%'") == [(0,)]


class _Link:
    """A connection with the broker."""

    async def session(self) -> None:
        return None


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_the_relay_of_a_node_does_not_end(
    database: engines.Database, store: stores.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay whose claims are refused waits, however often, so that its node goes on; then it publishes what waited."""
    published = asyncio.Event()

    async def publish(*_: Any) -> None:
        published.set()

    for module, name, value in (
        (relay.publisher, "publish", publish),
        (relay, "POLL_S", 0.01),
        (database_probe, "PING_EVERY_S", 0.01),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(connections, "PROBE_EVERY_S", 0.0)
    await store.outbox.send("event", examples.event("e1"))
    rounds, claim_now = 0, store.outbox.claim

    async def claim(*about: Any) -> Any:
        nonlocal rounds
        rounds += 1
        return await claim_now(*about)

    monkeypatch.setattr(store.outbox, "claim", claim)
    refusing = refusing_database.RefusingDatabase(database, store)
    await refusing.begin()
    pings = 0

    async def ping() -> None:
        nonlocal pings
        pings += 1
        await store.connections.ping()

    probe = database_probe.DatabaseProbe(ping)
    tested: Any = relay.Relay(store, _Link(), probe=probe)  # type: ignore[arg-type]
    tested.task.start()
    await waiting.until(lambda: pings + rounds > 4 * relay.FAILURES_BEFORE_END, 20, "refusals")
    assert not tested.task.failed.done()
    assert not published.is_set()
    await refusing.end()
    async with waiting.at_most(20):
        await published.wait()
    await tested.stop()


async def test_writes_that_share_a_commit_get_the_reason(store: stores.Store, database: engines.Database) -> None:
    """Writes that share a commit all meet the outage itself, and no error of the rollback that the database made."""
    refusing = refusing_database.RefusingDatabase(database, store)
    await refusing.begin()
    found: list[Any] = []
    for first in range(0, 8_000, 40):
        sends = (store.outbox.send("event", examples.event(f"e{first + number}")) for number in range(40))
        found += await asyncio.gather(*sends, return_exceptions=True)
        if isinstance(found[-1], Exception):
            break
    refused = [error for error in found if error is not None and "does not answer" not in str(error)]
    assert refused
    assert all(isinstance(error, errors.DatabaseUnavailable) and error.refused for error in refused), refused
    await refusing.end()
