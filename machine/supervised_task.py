"""A task that must live as long as its owner: started and stopped once or twice, and its unexpected end ends the process.

Imports nothing of ours. Rule: `failed` is resolved with the error of a task that ended by itself; the composition root waits
for it and exits, and its supervisor starts it anew. Nothing limps on half alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class SupervisedTask:
    """One side task under a name."""

    def __init__(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._body = body
        self._task: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the task; harmless when it runs."""
        if self._task is None:
            self.failed = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Cancel the task and wait for its end; harmless when it does not run."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        failed = self.failed
        try:
            await self._body()
            error: BaseException = RuntimeError(f"{self.name} ended by itself")
        except asyncio.CancelledError:
            raise
        except Exception as caught:  # noqa: BLE001 - not swallowed: it is handed to whoever waits for `failed`
            error = caught
        if failed is not None and not failed.done():
            failed.set_exception(error)


async def pause(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for a hint, or for `timeout_s` at most; then take the hint away."""
    # Not wait_for: on Python 3.11 it swallows a cancellation that comes just as the event is set.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()
