"""Batches of decisions: none waits for a later one, and one that fails costs the others nothing; on each engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from events import codec
from machine import changes, errors, ports
from store import decisions
from store import store as stores
from tests import decider_harness, engines, transactions, waiting


def event(id_: str) -> codec.Event:
    """An event about a session of its own."""
    return codec.Event(id=id_, type="stop", time_ms=engines.START_MS, data={"TaskId": id_})


def answer(snapshot: ports.Snapshot, tx: transactions.Transaction) -> dict[str, Any]:
    return {"at": snapshot.now_ms}


async def test_a_decision_after_two_batches_that_end_together_is_made(store: stores.Store, database: engines.Database) -> None:
    """Two batches end in the same turn of the event loop, and a caller that one of them wakes has the next event decided."""
    ended: list[str] = []
    begun: list[Any] = []
    both = asyncio.Event()
    run_batch = store.decisions._run_batch

    async def together(batch: Any) -> None:
        begun.append(batch)
        await both.wait()
        await run_batch(batch)

    async def one_after_the_other() -> None:
        for id_ in ("first", "next"):
            await transactions.decide(store, event(id_), answer)
            ended.append(id_)

    store.decisions._run_batch = together  # type: ignore[method-assign]
    follows = asyncio.create_task(one_after_the_other())
    await waiting.until(lambda: len(begun) == 1, what="the first batch")
    other = asyncio.create_task(transactions.decide(store, event("other"), answer))
    await waiting.until(lambda: len(begun) == 2, what="the second batch")
    both.set()
    async with waiting.at_most(20):
        await asyncio.gather(follows, other)
    assert ended == ["first", "next"]


async def test_a_plan_that_fails_costs_no_other_decision(store: stores.Store, database: engines.Database) -> None:
    """An event whose plan raises is decided by its handler, and the others of its batch are decided once."""
    decided: list[str] = []

    def broken(snapshot: ports.Snapshot) -> Iterator[Sequence[ports.Need]]:
        raise ValueError("no plan")
        yield ()

    def deciding(id_: str) -> ports.Decide:
        def decide(snapshot: ports.Snapshot) -> tuple[ports.Answer, changes.Changes]:
            decided.append(id_)
            return {"id": id_}, changes.Changes()

        return decide

    plans: dict[str, ports.Plan] = {"a": lambda _: iter(()), "b": broken, "c": lambda _: iter(())}
    answers = await asyncio.gather(*(store.decisions.decide(event(id_), plan, deciding(id_)) for id_, plan in plans.items()))
    assert answers == [{"id": id_} for id_ in plans]
    assert sorted(decided) == ["a", "b", "c"]


async def test_a_write_that_fails_costs_no_other_decision(
    store: stores.Store, database: engines.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch, one decision writes a row that exists: it conflicts until it is given up, and the others are written once."""
    monkeypatch.setattr(decisions, "MAX_DECISIONS", 3)
    async with transactions.opened(store) as tx:
        tx.add_result("b", 1, "{}")

    def writing(snapshot: ports.Snapshot, tx: transactions.Transaction, id_: str) -> dict[str, Any]:
        tx.add_result(id_, 1, "{}")
        return {"id": id_}

    deciding = [
        transactions.decide(store, event(id_), lambda snapshot, tx, id_=id_: writing(snapshot, tx, id_))
        for id_ in ("a", "b", "c")
    ]
    one, failed, other = await asyncio.gather(*deciding, return_exceptions=True)
    assert (one, other) == ({"id": "a"}, {"id": "c"})
    assert isinstance(failed, errors.Conflict)
    assert await store.decisions.answered("b") is None
    assert [await store.decisions.answered(id_) is not None for id_ in ("a", "c")] == [True, True]


async def test_a_decision_that_conflicts_lets_others_run(
    store: stores.Store, database: engines.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one decision conflicts again and again, those that come later are made."""
    monkeypatch.setattr(decisions, "MAX_DECISIONS", 1_000)
    async with transactions.opened(store) as tx:
        tx.add_result("stuck", 1, "{}")

    def stuck(snapshot: ports.Snapshot, tx: transactions.Transaction) -> None:
        tx.add_result("stuck", 1, "{}")

    conflicting = asyncio.create_task(transactions.decide(store, event("stuck"), stuck))
    async with waiting.at_most(20):
        for number in range(30):
            await transactions.decide(store, event(f"e{number}"), answer)
    assert not conflicting.done()
    conflicting.cancel()
    await asyncio.gather(conflicting, return_exceptions=True)


async def test_a_commit_is_told_although_its_caller_is_gone(store: stores.Store, database: engines.Database) -> None:
    """A request whose client left in the middle of its decision is committed, and the relay is woken."""
    run_batch = store.decisions._run_batch

    async def without_caller(batch: Any) -> None:
        begun.cancel()
        await run_batch(batch)

    store.decisions._run_batch = without_caller  # type: ignore[method-assign]
    store.changed.clear()
    begun = asyncio.create_task(transactions.decide(store, event("gone"), answer))
    async with waiting.at_most(20):
        await store.changed.wait()
    assert await store.decisions.answered("gone") is not None


@pytest.mark.parametrize("speakers", [70])
@pytest.mark.parametrize("end", ["stop", "room-destroyed"])
async def test_a_large_session_ends(store: stores.Store, clock: engines.Clock, speakers: int, end: str) -> None:
    """The end of a session is one decision, however many speakers nobody has captured yet; its data is loaded in few steps."""
    harness = decider_harness.connect(store, clock)
    task_id = await harness.start()
    for number in range(speakers):
        await harness.publish(f"s{number}")
    await (harness.say("stop", TaskId=task_id) if end == "stop" else harness.trtc("room-destroyed"))
    assert set((await harness.states(task_id)).values()) == {"Failed"}
    assert (await harness.session(task_id)).state == "Finished"
