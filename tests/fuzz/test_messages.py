"""Fuzzed messages for a running service: by RabbitMQ on the distributed engine, into the outbox on the embedded one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests import backends, waiting
from tests.e2e import session_audit
from tests.e2e.conftest import World
from tests.fuzz import evidence, sender, tally
from tests.fuzz import messages as fuzz

IN_TEST = 400
# The time of a decision on a busy machine, and the minimum to wait.
EACH_S, AT_LEAST_S = 0.1, 60.0


def test_a_seed_gives_the_same_messages() -> None:
    """A seed repeats a run, and its messages cover every mutation and include valid ones."""
    once, again = (list(fuzz.messages(7, 2_000)) for _ in range(2))
    assert once == again
    used = {name for m in once for name in m.made_by.split("+")}
    assert used == {"nothing", *(m.__name__.strip("_") for m in fuzz.MUTATIONS)}


@pytest.mark.timeout(3_600 if tally.CASES else 180)
async def test_every_message_is_handled_or_parked(world: World) -> None:
    """Every message is either handled, with evidence of its own, or parked with a reason; none ends the process, and another
    session finishes as usual."""
    count = tally.CASES // 2 or IN_TEST
    service = await world.serve(LINGER="1s", PULL_ADDRESS="rtmp://127.0.0.1:9/pull/{room}?u={userid}&s={speaker}")
    pid = service.pid
    other = (await service.post("/sessions", world.request(42)))["TaskId"]
    sent = list(fuzz.messages(tally.SEED, count))
    if world.engine == backends.EMBEDDED:
        sent = [sender.as_text(message) for message in sent]
    else:
        sent = [sender.with_id(message) for message in sent]
    log = evidence.Log(service.log)
    found = await _send(world, log, sent)
    assert found.lost(sent) == []
    assert found.over == []
    assert len(found.parked) + len(found.handled) == count
    assert all(reason for reasons in found.parked.values() for reason in reasons)
    assert world.backend is not None
    assert found.missing_rows(session_audit.read(world.backend.database, evidence.QUERIES), sent) == []
    assert any("command" in how for how in found.handled.values())
    run = tally.Tally(name=f"Fuzzed messages, {world.engine}", cases=count, ends=found.ends())
    assert service.pid == pid
    assert (await service.session(other))["State"] == "Open"
    await service.post(f"/sessions/{other}/stop")
    await service.finished(other)
    await waiting.until(lambda: _has_result(world, other), what="the result of the other session")
    assert await service.stop() == 0
    if world.engine == backends.DISTRIBUTED:
        assert await evidence.leftovers(world.backend.settings["AMQP_PREFIX"], log.nodes) == []
    run.show("the process is the same one, and ended with 0 on SIGTERM; the other session finished and delivered its result")


async def _send(world: World, log: evidence.Log, sent: Sequence[fuzz.Message]) -> evidence.Evidence:
    backend = world.backend
    assert backend is not None
    limit_s = AT_LEAST_S + EACH_S * len(sent)
    if world.engine == backends.EMBEDDED:
        return await sender.collect_from_outbox(backend, log, sender.insert(backend, sent), sent, limit_s)
    await sender.publish(backend.settings["AMQP_PREFIX"], sent)
    return await sender.collect_from_broker(backend, log, sent, limit_s)


def _has_result(world: World, task_id: str) -> bool:
    return any(result["TaskId"] == task_id for result in world.results(42))
