"""Threads for blocking calls that may hang, such as file operations on a network file system and DNS lookups.

Rules: a call cannot be cancelled once it runs, so each kind of call has its own bounded threads: in asyncio's default threads a
few hung calls would block everything else. The threads are daemons: a hung call does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """At most `threads` calls at a time; further ones wait."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._most = threads
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]]
        self._calls = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = self._unfinished = 0

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run `call(*args)` in a thread. A call that is cancelled while it waits never runs; one that runs goes on, unheard."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._unfinished += 1
            if starts := self._started < min(self._most, self._unfinished):
                self._started += 1
        if starts:
            try:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            except BaseException:
                # At the system's limit of threads. Without this, later calls would wait for a thread that never began.
                with self._lock:
                    self._started -= 1
                    self._unfinished -= 1
                raise
        self._calls.put((lambda: call(*args), loop, done))
        return await done

    async def run_within(self, timeout_s: float, call: Callable[..., Any], *args: Any) -> bool:
        """Run `call(*args)` and wait at most `timeout_s`; returns whether it ended. Raises its error if it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.run(call, *args)
                return True
        return False

    def _work(self) -> None:
        while True:
            call, loop, done = self._calls.get()
            result, error = None, None
            if not done.cancelled():
                try:
                    result = call()
                except BaseException as raised:  # noqa: BLE001 - not swallowed: the caller raises it
                    error = raised
            with self._lock:
                self._unfinished -= 1
            # The event loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result, error)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
