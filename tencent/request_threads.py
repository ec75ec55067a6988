"""Threads for blocking requests to COS, with a connection pool of their own.

Rule: a thread cannot be cancelled. A cancelled call returns at once; if its request already runs, the thread is free again only
when the request ends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from concurrent import futures
from typing import Literal, TypeVar

import requests

from machine import errors
from machine.reasons import Reason
from tencent import cos_requests

T = TypeVar("T")


class RequestThreads:
    """A bounded number of threads. `start` and `stop` are safe to call twice."""

    def __init__(self, threads: int, name: str) -> None:
        self._count = threads
        self._name = name
        self._threads: futures.ThreadPoolExecutor | None = None
        self._session: requests.Session | None = None
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._waiting: set[asyncio.Task[Literal[True]]] = set()

    def start(self) -> None:
        """Create the threads and the connection pool. Connects to nothing."""
        if self._threads is None:
            self._threads = futures.ThreadPoolExecutor(self._count, thread_name_prefix=self._name)
            self._session = cos_requests.session(self._count)

    async def stop(self) -> None:
        """Start no further request, wait for running ones (each has a time limit), and close the connections."""
        threads, pool, self._threads, self._session = self._threads, self._session, None, None
        for each in self._waiting:
            each.cancel()
        if threads is not None:
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        if pool is not None:
            pool.close()

    @property
    def session(self) -> requests.Session:
        """The connection pool. Raises errors.UploadFailed after `stop`."""
        if self._session is None:
            raise _not_running("is not running")
        return self._session

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread. Raises errors.UploadFailed after `stop`."""
        return await self._answer(self._submit(work))

    async def run_at_most(self, limit: int, key: str, work: Callable[[], T]) -> T:
        """Like `run`, in at most `limit` threads for the server of `key`: if it hangs, it leaves threads for others."""
        turns = self._turns.get(key) or self._turns.setdefault(key, asyncio.Semaphore(limit))
        await self._take(turns)
        loop = asyncio.get_running_loop()
        try:
            future = self._submit(work)
        except errors.UploadFailed:
            turns.release()
            raise
        # When the thread is free, not when the caller gives up.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(turns.release))
        return await self._answer(future)

    async def _take(self, turns: asyncio.Semaphore) -> None:
        """Wait for a turn. Raises errors.UploadFailed after `stop`, also if it comes meanwhile."""
        if self._threads is None:
            raise _not_running("is not running")
        turn = asyncio.ensure_future(turns.acquire())
        self._waiting.add(turn)
        turn.add_done_callback(self._waiting.discard)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                turns.release()
            if self._threads is None and not _is_cancelled():
                raise _not_running("was stopped") from None
            raise

    def _submit(self, work: Callable[[], T]) -> futures.Future[T]:
        if self._threads is None:
            raise _not_running("is not running")
        return self._threads.submit(work)

    async def _answer(self, future: futures.Future[T]) -> T:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._threads is None and not _is_cancelled():  # `stop` dropped the queued work
                raise _not_running("was stopped") from None
            raise


def _not_running(what: str) -> errors.UploadFailed:
    return errors.UploadFailed(f"The uploader {what}.", reason=Reason.NETWORK, retry=True)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
