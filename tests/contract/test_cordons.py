"""Nodes as operators see them, on each engine: their reports and leases, and the cordon that a node reads with its heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from machine import errors, model, nodes, states
from store import audit, cordons
from store import store as stores
from tests import engines, examples

ALIVE_MS = 60_000
SPARE = model.SpareCapacity(free_bytes=9 << 30, needed_bytes=1 << 30)
BY = model.Caller(name="key k1 school", key_id="k1")


def report(*roles: str, slots: Mapping[str, tuple[int, int]] | None = None) -> nodes.NodeReport:
    """What a node with these roles reports."""
    return nodes.NodeReport(
        host="h1", address="http://h1:8080", roles=roles, version="0.1.0", started_ms=engines.START_MS, slots=slots or {}
    )


@pytest.fixture
def listed(store: stores.Store, clock: engines.Clock) -> cordons.Cordons:
    return cordons.Cordons(store.connections, clock=clock, alive_ms=ALIVE_MS)


async def test_a_node_is_listed_with_its_report_and_its_leases(
    store: stores.Store, listed: cordons.Cordons, clock: engines.Clock
) -> None:
    """A worker has its report, its spare capacity, and its leases by kind, counted in the table of jobs. A worker that is away
    stays in the list; any other node that is away does not."""
    told = report("worker", slots={"capture": (1, 0), "upload": (0, 8)})
    await store.nodes.heartbeat("gone", spare=SPARE, report=report("worker"))
    await store.nodes.heartbeat("gone-api", report=report("api"))
    clock.advance(ALIVE_MS + 1)
    await store.nodes.heartbeat("api", report=report("api", "machine"))
    await store.nodes.heartbeat("w1", spare=SPARE, skew_ms=7, report=told)
    queued = {kind: model.Job(kind=kind, state=states.QUEUED) for kind in (states.CAPTURE, states.UPLOAD)}
    values = [
        examples.recording(speaker="al", job=queued[states.CAPTURE]),
        examples.recording(speaker="bo", job=queued[states.CAPTURE]),
        examples.recording(speaker="ci", job=queued[states.UPLOAD], state=states.UPLOADING),
    ]
    await examples.opened(store, *values)
    for value in values[1:]:
        assert await store.leases.take(value.key, value.epoch, "w1", 30_000)
    api, gone, w1 = await listed.list()
    assert [(node.node, node.state, dict(node.leases)) for node in (api, gone)] == [("api", "active", {}), ("gone", "away", {})]
    assert (w1.report, w1.leases, w1.skew_ms) == (told, {states.CAPTURE: 1, states.UPLOAD: 1}, 7)
    assert (w1.free_bytes, w1.needed_bytes, w1.state) == (9 << 30, 1 << 30, "active")


async def test_a_cordon_reaches_the_node_and_survives_its_restart(
    store: stores.Store, listed: cordons.Cordons, clock: engines.Clock
) -> None:
    """The node reads its cordon with the next heartbeat, and again with the first one after a restart. A drained node has no
    captures. The end of the cordon reaches it in the same way. Each change is in the audit once, with its caller."""
    for name in ("w1", "w2"):
        await store.nodes.heartbeat(name, spare=SPARE, report=report("worker"))
        assert store.nodes.cordon == nodes.ACTIVE
    value = examples.recording(job=model.Job(kind=states.CAPTURE, state=states.QUEUED))
    await examples.opened(store, value)
    assert await store.leases.take(value.key, value.epoch, "w1", 30_000)
    for _ in range(2):
        assert (await listed.set("w1", nodes.CORDONED, BY)).state == "cordoned"
    await store.nodes.heartbeat("w2", spare=SPARE, report=report("worker"))
    assert store.nodes.cordon == nodes.ACTIVE
    await store.nodes.heartbeat("w1", spare=SPARE, report=report("worker"))
    assert store.nodes.cordon == nodes.CORDONED
    assert (await listed.set("w1", nodes.DRAINING, BY)).state == "draining"
    again = stores.Store(store.connections, clock=clock, keyring=engines.keyring(), pinned=True)
    await again.nodes.heartbeat("w1", spare=SPARE, report=report("worker"))
    assert again.nodes.cordon == nodes.DRAINING
    await examples.moved(store, value.key, state=states.DONE, job=None)
    assert (await listed.set("w1", nodes.DRAINING, BY)).state == "drained"
    assert (await listed.set("w1", nodes.ACTIVE, BY)).state == "active"
    await again.nodes.heartbeat("w1", spare=SPARE, report=report("worker"))
    assert again.nodes.cordon == nodes.ACTIVE
    lines, _ = await audit.Audit(store.connections, clock=clock).list()
    assert [(line.action, line.subject, line.who) for line in lines] == [
        (action, "w1", BY.name) for action in ("node-uncordon", "node-drain", "node-cordon")
    ]


async def test_a_cordon_that_would_do_harm_or_nothing_is_refused(
    store: stores.Store, listed: cordons.Cordons, clock: engines.Clock
) -> None:
    """A drain needs another living worker without a cordon, or captures would stand still. A node that is no worker, and one of
    an earlier version, cannot be cordoned. Nothing of it is in the audit."""
    await store.nodes.heartbeat("api", report=report("api"))
    await store.nodes.heartbeat("former", spare=SPARE)
    await store.nodes.heartbeat("gone", spare=SPARE, report=report("worker"))
    clock.advance(ALIVE_MS + 1)
    await store.nodes.heartbeat("api", report=report("api"))
    await store.nodes.heartbeat("w1", spare=SPARE, report=report("worker"))
    with pytest.raises(errors.NotFound):
        await listed.set("unknown", nodes.CORDONED, BY)
    with pytest.raises(errors.Refused, match="api is no worker"):
        await listed.set("api", nodes.CORDONED, BY)
    with pytest.raises(errors.Refused, match="earlier version"):
        await listed.set("former", nodes.CORDONED, BY)
    with pytest.raises(errors.Refused, match="No other worker is alive"):
        await listed.set("w1", nodes.DRAINING, BY)
    await store.nodes.heartbeat("w2", spare=SPARE, report=report("worker"))
    await listed.set("w2", nodes.CORDONED, BY)
    with pytest.raises(errors.Refused, match="free of a cordon"):
        await listed.set("w1", nodes.DRAINING, BY)
    lines, count = await audit.Audit(store.connections, clock=clock).list()
    assert (count, lines[0].subject) == (1, "w2")


async def test_two_drains_at_a_time_leave_a_worker(store: stores.Store, listed: cordons.Cordons) -> None:
    """Of two workers that are drained at the same moment one is refused: it would be the last one."""
    for name in ("w1", "w2"):
        await store.nodes.heartbeat(name, spare=SPARE, report=report("worker"))
    asked = (listed.set(name, nodes.DRAINING, BY) for name in ("w1", "w2"))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(isinstance(answer, errors.Refused) for answer in answers) == [False, True]
