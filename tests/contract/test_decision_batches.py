"""Batches of decisions: none waits for a later one, and one that fails costs the others nothing; on each engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from events import codec
from machine import changes, ports
from store import store as stores
from tests import engines, transactions, waiting


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
