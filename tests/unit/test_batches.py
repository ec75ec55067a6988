"""Batches: items that wait at the same moment are handled together, and nothing is handled for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from machine import batches


async def test_items_that_were_cancelled_make_no_batch() -> None:
    """All items of the next batch are cancelled while they wait: nothing is handled for them, and later items are."""
    handled: list[list[int]] = []
    begun, ends = asyncio.Event(), asyncio.Event()

    async def handle(items: Sequence[int]) -> Sequence[int]:
        handled.append(list(items))
        begun.set()
        await ends.wait()
        return items

    made = batches.Batches("test", handle, at_most=2)
    first = asyncio.create_task(made.run(1))
    await begun.wait()
    gone = [asyncio.create_task(made.run(number)) for number in (2, 3)]
    last = asyncio.create_task(made.run(4))
    async with asyncio.TaskGroup() as turn:  # each of them waits after this turn of the loop
        turn.create_task(_nothing())
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    ends.set()
    assert await asyncio.gather(first, last) == [1, 4]
    assert handled == [[1], [4]]
    await made.stop()


async def _nothing() -> None:
    """Take one turn of the loop."""
