"""Runs coroutines that never wait: a hundred thousand histories have no time for an event loop."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


def run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """The result of the coroutine. Raises its error, and RuntimeError if it waits for something."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    coroutine.close()
    raise RuntimeError("a coroutine of the simulated world waited for something real")
