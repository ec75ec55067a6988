"""Poison next to a healthy session, on both engines: each kind of error that is retried delays nobody but its own message.

Rule: turns instead of times. The healthy session must end while every poison message still waits for its next attempt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import text

from bus import attempts, local
from bus import rabbit as rabbit_bus
from events import codec
from machine import errors, job_key
from store import store as stores
from tests import buses, decider_harness, engines, examples, rabbit, transactions, waiting

PREFETCHES = (rabbit_bus.REQUESTS_PREFETCH, rabbit_bus.MACHINES_PREFETCH)
# More messages than a bus takes at a time. On RabbitMQ they alternate between two queues, and each gets more than its prefetch.
POISON = {"sqlite": local.BATCH * 3 // 2, "postgresql": 2 * (max(PREFETCHES) + 22)}
BUS_OF = {"sqlite": "local", "postgresql": "rabbitmq"}


def _retried(of: type[errors.RecorderError] = errors.RecorderError) -> Iterator[type[errors.RecorderError]]:
    for kind in of.__subclasses__():
        if kind.retry and kind.__module__ == errors.__name__:
            yield kind
        yield from _retried(kind)


KINDS: dict[str, Callable[[], Exception] | None] = {kind.__name__: kind for kind in _retried()}
KINDS["a database error"] = lambda: sqlalchemy.exc.OperationalError("SELECT 1", {}, OSError("the connection was closed"))
KINDS["a defect"] = lambda: KeyError("a defect of a handler")
KINDS["a damaged row"] = None  # the handler meets it in the database


def test_all_retried_errors_are_here() -> None:
    """The list follows the tree of errors, and the poison exceeds what a bus takes at a time."""
    assert POISON["postgresql"] // 2 > max(PREFETCHES)
    assert POISON["sqlite"] > local.BATCH
    assert {"Conflict", "Unavailable", "DecryptionFailed", "WorkerFull", "InsufficientSpace"} <= KINDS.keys()


class Handler:
    """Decides events, except those about the poisoned session, which meet an error. Notes the ids of both in order."""

    def __init__(self, harness: decider_harness.Harness, error: Callable[[], Exception] | None) -> None:
        self.attempts: Counter[str] = Counter()
        self.answered: list[str] = []
        self._decider = harness.decider
        self._error = error

    async def on_event(self, event: codec.Event) -> None:
        """Decide an event."""
        poisoned = event.data.get("TaskId") == examples.TASK
        if poisoned:
            self.attempts[event.id] += 1
            if self._error is not None:
                raise self._error()
        await self._decider.decide_from_bus(event)
        self.answered.append(event.id)

    async def on_command(self, _: codec.Event) -> None:
        """Take no command: the test reports the outcomes itself."""


def _poison(number: int, clock: engines.Clock) -> codec.Event:
    """An event of the poisoned session, from a user or from a worker in turn."""
    if number % 2:
        return codec.make("replay", id=f"poison-{number}", time_ms=clock(), data={"TaskId": examples.TASK})
    data = {"TaskId": examples.TASK, "Speaker": "al", "N": 1, "Epoch": 1, "Job": "capture", "Reason": "eof", "MediaMs": 1}
    return codec.make("ffmpeg-exit", id=f"poison-{number}", time_ms=clock(), data=data | {"SizeBytes": 1})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_ends_while_the_poison_waits(
    kind: str, database: engines.Database, store: stores.Store, clock: engines.Clock
) -> None:
    """More messages than the bus takes at a time fail with an error that is retried. A session that starts after them goes its
    whole way meanwhile."""
    poison = POISON[database.engine]
    handler = Handler(decider_harness.connect(store, clock, prefix="03"), KINDS[kind])
    prefix = rabbit.shared().prefix() if database.engine == "postgresql" else ""
    bus = buses.Workshop(BUS_OF[database.engine], database, store, clock, prefix).make(handler.on_event, handler.on_command)
    await examples.opened(store, examples.recording(), of=examples.session(request=examples.request(user_id="poisoned")))
    async with store.connections.write(limited=False) as connection:
        await connection.execute(text("UPDATE recordings SET output = '{'"))
    async with transactions.opened(store) as tx:
        for number in range(poison):
            tx.send("event", _poison(number, clock), examples.TASK)
    await bus.start()
    try:
        await waiting.until(lambda: len(handler.attempts) == poison, timeout_s=30, what="a first attempt of each")
        await _live(store, handler, database, clock)
        assert not [id_ for id_ in handler.answered if id_.startswith("poison")]
        # A full worker, and no other error, is retried without a count, and so for as long as it takes.
        assert kind == errors.WorkerFull.__name__ or max(handler.attempts.values()) < attempts.MAX_ATTEMPTS
    finally:
        await bus.stop()


async def _live(store: stores.Store, handler: Handler, database: engines.Database, clock: engines.Clock) -> None:
    """The events of a session whose speaker is recorded, each published after the one before was decided."""
    numbers = itertools.count(1)

    async def say(type_: str, **data: Any) -> None:
        event = codec.make(type_, id=f"healthy-{next(numbers)}", time_ms=clock(), data=data)
        await store.outbox.send("event", event)
        await waiting.until(lambda: event.id in handler.answered, timeout_s=30, what=f"the answer to {type_}")

    async def outcome(type_: str, epoch: int, **data: Any) -> None:
        assert await store.leases.take(key, epoch, "n1", examples.LEASE_MS)
        await say(type_, **key.fields(), Epoch=epoch, **data)

    await say("start", **decider_harness.START, Mode="02", SubscribeUserIds=["bo"])
    ((owner,),) = await asyncio.to_thread(database.ask, "SELECT id FROM recordings WHERE speaker = 'bo'")
    key = job_key.parse_recording(owner)
    await outcome("ffmpeg-exit", 1, Job="capture", Reason="eof", MediaMs=5_000, SizeBytes=9)
    await say("stop", TaskId=key.task_id)
    await outcome("ffmpeg-exit", 4, Job="transcode", Reason="ok", Output=decider_harness.OUTPUT)
    await outcome("upload-finished", 5, SizeBytes=9, Crc64="1", Url="https://cos/x")
    states = await asyncio.to_thread(database.ask, f"SELECT state FROM sessions WHERE task_id = '{key.task_id}'")
    assert states == [("Finished",)]
