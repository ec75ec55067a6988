"""The local bus under unequal load: failing, hanging and damaged messages cost nothing but themselves."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from bus import attempts, lanes, local
from events import codec
from machine import errors, supervised_task
from store import dead_letters
from store import store as stores
from tests import buses, engines, transactions, waiting

Handler = Callable[[codec.Event], Awaitable[None]]
Begin = Callable[[Handler], AbstractAsyncContextManager[local.LocalBus]]


def task(number: int) -> str:
    return f"01{number:024d}"


@pytest.fixture
def running(store: stores.Store, clock: engines.Clock) -> Begin:
    """Runs a bus with one handler for events and commands."""

    @asynccontextmanager
    async def begin(handler: Handler) -> Any:
        bus = local.LocalBus(store, clock=clock, on_event=handler, on_command=handler)
        await bus.start()
        try:
            yield bus
        finally:
            await bus.stop()

    return begin


async def write(store: stores.Store, type_: str, ids: Sequence[str], task_id: str = "") -> None:
    """Write messages of one type in one transaction."""
    data: dict[str, Any] = {
        "stop": {"TaskId": task(1)},
        "deadline-passed": {"Owner": task(1), "Kind": "idle", "Serial": "1"},
        "stop-capture": {"TaskId": task(1), "Speaker": "al", "N": 1, "Epoch": 1},
    }
    channel = "command" if type_ in codec.types("command") else "event"
    async with transactions.opened(store) as tx:
        for id_ in ids:
            tx.send(channel, codec.make(type_, id=id_, time_ms=0, data=data[type_]), task_id)


@pytest.mark.parametrize("error", [errors.Unavailable(), RuntimeError("an internal failure"), errors.WorkerFull()])
async def test_failing_messages_hide_no_other(
    running: Begin, store: stores.Store, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More messages than a round reads fail and wait for an hour. The messages behind them are handled, and none of the failing
    ones is tried again before its time."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (3_600.0,))
    monkeypatch.setattr("bus.delivery_policy.FULL_BACKOFF_S", 3_600.0)
    hands = buses.FailingHandler(error)
    bad = [f"bad-{number}" for number in range(3 * local.BATCH // 2)]
    await write(store, "deadline-passed", bad)
    await write(store, "stop", ["good-request"])
    await write(store, "stop-capture", ["good-command"], task(7))
    async with running(hands):
        await waiting.until(lambda: set(hands.done) == {"good-request", "good-command"}, timeout_s=20, what="the messages behind")
        await waiting.until(lambda: len(set(hands.begun)) == len(bad) + 2, timeout_s=20, what="each message")
    assert len(hands.begun) == len(bad) + 2


async def test_messages_that_fail_together_do_not_return_together(
    running: Begin, store: stores.Store, database: engines.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause of each failing message varies around the backoff by the jitter, in the process and in the message's row."""
    factors = itertools.cycle((0.8, 1.2))
    monkeypatch.setattr(attempts, "BACKOFF_S", (3_600.0,))
    monkeypatch.setattr(supervised_task, "jittered_s", lambda pause_s: pause_s * (next(factors) if pause_s == 3_600 else 1))
    await write(store, "stop", ["bad-1", "bad-2"])
    rows = "SELECT claimed_until_ms FROM outbox WHERE claimed_until_ms > 0"
    async with running(buses.FailingHandler(RuntimeError("an internal failure"))) as bus:
        postponed = await waiting.until(lambda: (found := database.ask(rows)) and len(found) == 2 and found, what="both rows")
        (first_s, _), (second_s, _) = sorted(bus._due_s)
    assert {until_ms - engines.START_MS for (until_ms,) in postponed} == {2_880_000, 4_320_000}
    # The first attempts are a moment apart, and the pauses 24 minutes.
    assert second_s - first_s > 720


@pytest.mark.parametrize(("hanging", "other"), [("stop", "deadline-passed"), ("deadline-passed", "stop")])
async def test_requests_and_events_do_not_wait_for_each_other(
    running: Begin, store: stores.Store, hanging: str, other: str
) -> None:
    """Any number of handlers of one class hang. Messages of the other class are handled, before and after them."""
    hands = buses.FailingHandler(None)
    await write(store, hanging, [f"bad-{number}" for number in range(5 * local.BATCH)])
    await write(store, other, ["good-behind"])
    async with running(hands):
        await waiting.until(lambda: set(hands.done) == {"good-behind"}, timeout_s=20, what="the message behind")
        await write(store, other, ["good-later"], task(2))
        await waiting.until(lambda: "good-later" in hands.done, what="the later message")


async def test_a_session_with_many_messages_holds_up_itself_alone(running: Begin, store: stores.Store) -> None:
    """The handler of one session hangs, and many messages of it wait. The other sessions go on."""
    hands = buses.FailingHandler(None)
    await write(store, "deadline-passed", [f"bad-{number}" for number in range(5 * local.BATCH)], task(1))
    others = {f"good-{number}" for number in range(2, 60)}
    for number in range(2, 60):
        await write(store, "stop-capture", [f"good-{number}"], task(number))
    async with running(hands):
        await waiting.until(lambda: set(hands.done) == others, timeout_s=20, what="the other sessions")
    assert hands.begun.count("bad-0") == 1
    assert "bad-1" not in hands.begun


async def test_messages_of_a_session_keep_their_order(running: Begin, store: stores.Store) -> None:
    """Handlers of many sessions run side by side and take unequal times; each session sees its messages one at a time, in the
    order of writing."""
    seen: defaultdict[str, list[int]] = defaultdict(list)
    now: set[str] = set()
    most = 0
    moments = random.Random(1)

    async def handler(event: codec.Event) -> None:
        nonlocal most
        lane, _, number = event.id.partition("-")
        assert lane not in now
        now.add(lane)
        most = max(most, len(now))
        ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(moments.random() / 500, ended.set_result, None)
        await ended
        seen[lane].append(int(number))
        now.discard(lane)

    count = 2 * lanes.LANE_LENGTH
    for number in range(count):
        for lane in range(1, 9):
            await write(store, "stop-capture", [f"{lane}-{number}"], task(lane))
    async with running(handler):
        await waiting.until(lambda: sum(map(len, seen.values())) == 8 * count, timeout_s=20, what="all messages")
    assert all(numbers == list(range(count)) for numbers in seen.values())
    assert most > 1


async def test_damaged_rows_are_parked_alone(running: Begin, store: stores.Store, database: engines.Database) -> None:
    """Rows whose text, body, type or channel is damaged become dead letters, and the rows between them are handled."""
    hands = buses.FailingHandler(None)
    damages = ["body = 'no json'", "type = 'of-no-kind', body = '{}'", "channel = 'nothing'", "body = ''"]
    if database.engine == "sqlite":
        damages.append("body = CAST(X'7B22FF22' AS TEXT)")
    ids = [f"good-{number}" for number in range(2 * len(damages))]
    await write(store, "stop-capture", ids)
    for number, damage in enumerate(damages):
        async with store.connections.write() as connection:
            await connection.execute(
                text(f"UPDATE outbox SET {damage} WHERE body LIKE :which"), {"which": f'%good-{2 * number}"%'}
            )
    async with running(hands):
        await waiting.until(lambda: set(hands.done) == set(ids[1::2]), what="the rows between")

        async def parked() -> bool:
            return len(database.ask("SELECT seq FROM outbox WHERE parked <> ''")) == len(damages)

        await waiting.until(parked, what="the damaged rows")
    listed, _ = await dead_letters.DeadLetterRows(store.connections).list()
    assert len(listed) == len(damages)
    assert all(row.reason.startswith("invalid: ") for row in listed)


async def test_many_messages_are_marked_together(running: Begin, store: stores.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marking handled messages costs far fewer transactions than there are messages."""
    hands, marked = buses.FailingHandler(None), []
    whole = store.outbox.mark_all_sent

    async def counting(seqs: Sequence[int]) -> None:
        marked.append(len(seqs))
        await whole(seqs)

    monkeypatch.setattr(store.outbox, "mark_all_sent", counting)
    await write(store, "stop-capture", [f"good-{number}" for number in range(500)])
    async with running(hands):
        await waiting.until(lambda: sum(marked) == 500, what="all to be marked")
    assert len(marked) <= 100


@pytest.mark.parametrize("type_", ["stop", "deadline-passed"])
async def test_a_session_with_many_messages_hides_no_other(store: stores.Store, running: Begin, type_: str) -> None:
    """Behind 400 messages of one session comes one of another, in the same class. It takes its turn among the first ones."""
    await write(store, type_, [f"many-{n}" for n in range(400)], task(1))
    await write(store, type_, ["other"], task(2))
    turns: list[str] = []

    async def handle(event: codec.Event) -> None:
        await waiting.passed(0.002)
        turns.append(event.id)

    async with running(handle):
        await waiting.until(lambda: "other" in turns, timeout_s=30, what="the other session's message")
    assert turns.index("other") <= 4 * lanes.LANE_LENGTH


async def test_slow_starts_of_one_user_leave_slots(store: stores.Store, running: Begin) -> None:
    """The checks of 64 requests take their time. A request of another user is handled meanwhile."""
    hands = buses.FailingHandler(None)
    await write(store, "stop", [f"bad-{number}" for number in range(64)])
    await write(store, "stop", ["other"])
    async with running(hands):
        await waiting.until(lambda: "other" in hands.done, what="the other user's request")


@pytest.mark.parametrize(("failures", "restarted", "counted"), [("fff", False, False), ("fff", True, True), ("fuf", False, True)])
async def test_a_command_that_waits_for_a_slot(
    running: Begin, store: stores.Store, monkeypatch: pytest.MonkeyPatch, failures: str, restarted: bool, counted: bool
) -> None:
    """A command is refused for want of a slot again and again, and no transaction counts it. It is counted after a restart, for
    the process may have died of it, and after a failure of its own (u)."""
    monkeypatch.setattr("bus.delivery_policy.FULL_BACKOFF_S", 0.01)
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    adds, add, left = list[str](), store.attempts.add, [*failures]
    done = asyncio.Event()

    async def counting(message: str) -> int:
        adds.append(message)
        return await add(message)

    async def handle(_: codec.Event) -> None:
        if left:
            raise errors.WorkerFull if left.pop(0) == "f" else errors.Unavailable
        done.set()

    monkeypatch.setattr(store.attempts, "add", counting)
    if restarted:
        await write(store, "stop-capture", ["command"])
    async with running(handle):
        if not restarted:
            await write(store, "stop-capture", ["command"])
        await waiting.until(done.is_set, what="a slot")
    assert bool(adds) == counted
