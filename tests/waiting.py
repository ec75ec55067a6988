"""Waiting for a condition with a time limit, instead of sleeping and hoping. Imports nothing of ours."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
MOST_PATIENCE = 4.0


def patience() -> float:
    """How many times longer than on an idle machine something may take now: the processes that want to run for each core, by the
    load of the last minute, between 1 and `MOST_PATIENCE`."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), MOST_PATIENCE)


async def until(condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, what: str = "", every_s: float = 0.02) -> T:
    """Ask `condition` every `every_s` until it answers something true; return that. Raises AssertionError after `timeout_s`, on a
    busy machine later."""
    began = time.monotonic()
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > began + timeout_s * patience():
            raise AssertionError(f"not within {timeout_s * patience():.1f} s: {what or condition}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=every_s)


async def passed(seconds: float) -> None:
    """Let so much time pass, where time is what a test is about."""
    ends = time.monotonic() + seconds
    await until(lambda: time.monotonic() >= ends, seconds + 1)
