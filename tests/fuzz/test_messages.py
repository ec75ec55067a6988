"""Fuzzed messages at a running service: by RabbitMQ on the engine of many nodes, into the outbox on the embedded one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests import backends, waiting
from tests.e2e import audit
from tests.e2e.conftest import World
from tests.fuzz import evidence, sender, tally
from tests.fuzz import messages as fuzz

IN_TEST = 400
# What a decision takes on a busy machine, and what there is to wait for in any case.
EACH_S, AT_LEAST_S = 0.1, 60.0


def test_a_seed_gives_the_same_messages() -> None:
    """A run can be run again; every type, and every mutation, takes part; valid ones are among them."""
    once, again = (list(fuzz.messages(7, 2_000)) for _ in range(2))
    assert once == again
    used = {name for m in once for name in m.made_by.split("+")}
    assert used == {"nothing", *(m.__name__.strip("_") for m in fuzz.MUTATIONS)}


@pytest.mark.timeout(3_600 if tally.CASES else 180)
async def test_every_message_is_handled_or_parked(world: World) -> None:
    """None is lost, left, or both handled and parked, and none ends the process: what is handled has left a witness of its own,
    what is parked says why; a session beside them goes its way."""
    count = tally.CASES // 2 or IN_TEST
    service = await world.serve(LINGER="1s", PULL_ADDRESS="rtmp://127.0.0.1:9/pull/{room}?u={userid}&s={speaker}")
    pid = service.pid
    beside = (await service.post("/sessions", world.request(42)))["TaskId"]
    sent = list(fuzz.messages(tally.SEED, count))
    if world.engine == backends.EMBEDDED:
        sent = [sender.as_text(message) for message in sent]
    log = evidence.Log(service.log)
    found = await _thrown(world, log, sent)
    assert found.lost(sent) == []
    assert found.over == []
    assert len(found.parked) + len(found.handled) == count
    assert all(reason for reasons in found.parked.values() for reason in reasons)
    assert world.backend is not None
    assert found.unwritten(audit.read(world.backend.database, evidence.QUERIES), sent) == []
    assert any("command" in how for how in found.handled.values())
    run = tally.Tally(name=f"Fuzzed messages, {world.engine}", cases=count, ends=found.ends())
    assert service.pid == pid
    assert (await service.session(beside))["State"] == "Open"
    await service.post(f"/sessions/{beside}/stop")
    await service.finished(beside)
    await waiting.until(lambda: _answers(world, beside), what="the result of the session beside")
    assert await service.stop() == 0
    if world.engine == backends.DISTRIBUTED:
        assert await evidence.left(world.backend.settings["AMQP_PREFIX"], log.nodes) == []
    run.show("the process is the same one, and ended with 0 when it was told to; the session beside was finished and told")


async def _thrown(world: World, log: evidence.Log, sent: Sequence[fuzz.Message]) -> evidence.Found:
    foot = world.backend
    assert foot is not None
    limit_s = AT_LEAST_S + EACH_S * len(sent)
    if world.engine == backends.EMBEDDED:
        return await sender.by_outbox(foot, log, sender.insert(foot, sent), sent, limit_s)
    await sender.publish(foot.settings["AMQP_PREFIX"], sent)
    return await sender.by_broker(foot, log, sent, limit_s)


def _answers(world: World, task_id: str) -> bool:
    return any(result["TaskId"] == task_id for result in world.results(42))
