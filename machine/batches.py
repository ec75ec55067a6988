"""Batches: items that wait at the same moment are handled together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches(Generic[Item, Result]):
    """Hands at most `at_most` items at a time to `handle`, oldest first. It returns the result or the error of each; if it raises
    itself, each item gets that error. While one batch is handled, the next one gathers."""

    def __init__(
        self, name: str, handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]], *, at_most: int
    ) -> None:
        self._name = name
        self._handle = handle
        self._at_most = at_most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def run(self, item: Item) -> Result:
        """Have one item handled; returns its result, or raises its error."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)
        return await done

    async def stop(self) -> None:
        """Cancel what runs and what waits. Idempotent."""
        for _, done in self._waiting:
            done.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self._at_most, len(self._waiting)))]
            batch = [(item, done) for item, done in taken if not done.done()]
            if not batch:  # all of them were cancelled meanwhile
                continue
            try:
                results = await self._handle([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - not swallowed: every caller of the batch gets it
                results = [error] * len(batch)
            except asyncio.CancelledError:
                for _, done in batch:
                    done.cancel()
                raise
            for (_, done), result in zip(batch, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, BaseException):
                    done.set_exception(result)
                else:
                    done.set_result(result)
