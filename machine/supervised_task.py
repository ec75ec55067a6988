"""Supervised task: a side task that must live as long as its owner.

Rules: starting or stopping it twice is safe. `failed` resolves with an error if the task ends on its own; the composition root
waits for it and exits, and the process's supervisor restarts the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable


class SupervisedTask:
    """One named side task."""

    def __init__(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._body = body
        self._task: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the task, unless it runs."""
        if self._task is None:
            self.failed = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Cancel the task, if it runs, and wait for its end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        failed = self.failed
        try:
            await self._body()
            error: BaseException = RuntimeError(f"{self.name} ended unexpectedly")
        except asyncio.CancelledError:
            raise
        except Exception as caught:  # noqa: BLE001 - not swallowed: `failed` carries it
            error = caught
        if failed is not None and not failed.done():
            failed.set_exception(error)


async def pause(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for `event`, at most `timeout_s`, then clear it."""
    # Not wait_for: on Python 3.11 it swallows a cancellation that arrives just as the event is set.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()


def jittered_s(pause_s: float) -> float:
    """A pause of about `pause_s`: up to a fifth shorter or longer, so that many tasks or nodes do not act in step."""
    return pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
