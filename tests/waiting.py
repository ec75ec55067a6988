"""Waiting for a condition with a time limit that follows the machine (`tests/machine_probe.py`), instead of sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.machine_probe import patience as patience
from tests.machine_probe import slowness as slowness

T = TypeVar("T")


def at_most(seconds: float) -> asyncio.Timeout:
    """`asyncio.timeout` of so many seconds on the idle reference machine; on a slow or busy one it is longer."""
    return asyncio.timeout(seconds * patience())


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
