"""An orderly stop of a node: its jobs continue elsewhere immediately, and none of them counts as lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus import database_probe, publisher, relay
from events import codec
from machine import errors, job_key
from store import store as stores
from tests import engines, examples, waiting
from tests.work_doubles import COS, ROOM, Node, node
from worker import command_handlers

__all__ = ["node"]


async def _start_capture(node: Node) -> codec.Event:
    """The command for the first capture of a session, taken from the outbox."""
    node.task_id = (await node.say("start", **ROOM, UserId="rec", UserSig="s", CosConfig=COS))["TaskId"]
    await node.say("user-publishing", **ROOM, UserId="al", EventMs=node.clock(), Kind="audio")
    start = next(m for m in await node.store.outbox.unsent() if m.type == "start-capture")
    await node.store.outbox.mark_sent(start.seq)
    return codec.decode(start.body, now_ms=node.clock())


@pytest.mark.parametrize("known", [False, True], ids=["at once", "when it is about to begin"])
async def test_a_capture_that_was_just_taken_is_handed_over_too(node: Node, known: bool) -> None:
    """A node that stops with a lease taken and ffmpeg not started reports it, and another node may begin."""
    await command_handlers.handle(node.worker, await _start_capture(node))
    if known:
        await waiting.until(lambda: node.work.captures)
    async with waiting.at_most(10):
        await node.worker.drain()
    (said,) = [codec.decode(m.body, now_ms=0) for m in await node.store.outbox.unsent() if m.type == "ffmpeg-exit"]
    assert said.data["Reason"] == "node-stopping"
    assert all(capture.stopped for capture in node.work.captures if capture.started)
    await node.relay()
    assert (await node.recording()).capture in ("queued", "leased")
    assert (await node.recording()).epoch == 2


async def test_a_transcode_is_not_given_up_for_restarts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of orderly stops in the middle of a job spends no try, and the job restarts; lost workers do count."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")

    async def endless(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node.work, "transcode", endless)
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("start-transcode")
    for restart in range(2 * node.policy.lost_limit):
        held = (await node.recording()).job
        assert held is not None
        assert (held.kind, held.state) == ("transcode", "leased"), restart
        await node.worker.stop()
        node.worker = node.new_worker()
        await node.worker.start()
        await node.relay()
    assert (await node.recording()).failures == 0
    value = await node.recording()
    await node.say("worker-lost", Owner=str(value.key), Epoch=value.epoch, Node="node-1")
    assert (await node.recording()).failures == 1


class _Link:
    """A connection on which nothing can be published."""

    async def session(self) -> None:
        return None


@pytest.mark.parametrize("slow", [False, True], ids=["nothing under way", "a round that does not end"])
async def test_what_a_stopping_relay_has_claimed_is_free_at_once(
    store: stores.Store, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Another node's relay does not wait for the claim to expire, whether the broker refused the message or never answered."""
    published = asyncio.Event()

    async def never(*_: Any) -> None:
        published.set()
        if slow:
            await asyncio.Event().wait()
        raise errors.Unavailable("the broker is away")

    monkeypatch.setattr(publisher, "publish", never)
    monkeypatch.setattr(relay, "LAST_ROUND_S", 0.2)
    leaving: Any = relay.Relay(store, _Link(), probe=database_probe.DatabaseProbe(store.connections.ping))  # type: ignore[arg-type]
    await store.outbox.send("event", examples.event("e1"))
    leaving.task.start()
    async with waiting.at_most(10):
        await published.wait()
    await leaving.stop()
    await leaving.stop()
    (message,) = await store.outbox.claim(10, 1_000)
    await store.outbox.release([message.seq])
    assert await store.outbox.claim(10, 1_000) == [message]
    await store.outbox.mark_all_sent([message.seq])
    await store.outbox.release([message.seq])
    assert await store.outbox.claim(10, 1_000) == []


async def test_many_leases_are_voided_beside_each_other(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk says of one capture is not waited for before the next is asked about."""
    node = Node(store, clock)
    node.task_id = (await node.say("start", **ROOM, UserId="rec", UserSig="s", CosConfig=COS))["TaskId"]
    for speaker in ("al", "bo", "cy"):
        await node.say("user-publishing", **ROOM, UserId=speaker, EventMs=clock(), Kind="audio")
        assert await store.leases.take(job_key.RecordingKey(node.task_id, speaker, 1), 1, "node-1", 30_000)
    asked: list[str] = []
    all_asked = asyncio.Event()
    scan = node.work.scan

    async def slow(job: Any, *more: Any) -> Any:
        asked.append(job.recording.speaker)
        if len(asked) == 3:
            all_asked.set()
        await all_asked.wait()
        return await scan(job, *more)

    monkeypatch.setattr(node.work, "scan", slow)
    async with waiting.at_most(10):
        await node.worker.start()
    await waiting.until(lambda: sorted(asked) == ["al", "bo", "cy"])
    assert [m.type for m in await store.outbox.unsent()].count("worker-lost") == 3
    await node.worker.stop()
