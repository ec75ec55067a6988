"""Waiting for a condition with a time limit that follows the machine (`tests/machine_probe.py`), instead of sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.machine_probe import pace as pace
from tests.machine_probe import patience as patience

T = TypeVar("T")


def limit_s(seconds: float) -> float:
    """A time limit for this machine as it is now: `seconds` on the idle reference, more on a slow or busy machine."""
    return seconds * patience()


def at_most(seconds: float) -> asyncio.Timeout:
    """`asyncio.timeout` of `limit_s`."""
    return asyncio.timeout(limit_s(seconds))


async def until(condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, what: str = "", every_s: float = 0.02) -> T:
    """Poll `condition` every `every_s` until it returns a true value; return that. Raises AssertionError after `timeout_s`, later
    on a busy machine."""
    began = time.monotonic()
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > began + limit_s(timeout_s):
            raise AssertionError(f"not within {limit_s(timeout_s):.1f} s: {what or condition}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=every_s)


async def passed(seconds: float) -> None:
    """Let this much time pass, if time is the subject of the test."""
    ends = time.monotonic() + seconds
    await until(lambda: time.monotonic() >= ends, seconds + 1)
