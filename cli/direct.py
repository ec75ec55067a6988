"""Direct access: commands that open the database and the broker of the environment's settings, without the service.

Rule: the command prints each error once, so logging is silent.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from cli import exits

if TYPE_CHECKING:
    from config.settings import Settings

Opened = TypeVar("Opened")
Answer = TypeVar("Answer")


def run(work: Callable[[Settings], Coroutine[Any, Any, Answer]]) -> Answer:
    """Run `work` with the settings. Errors end the command as in `exits.handled`."""
    from assembly import logs

    logs.configure(level="error", stream=io.StringIO())
    with exits.handled():
        return asyncio.run(work(exits.load_settings()))


def run_opened(
    opened: Callable[[Settings], AbstractAsyncContextManager[Opened]], work: Callable[[Opened], Awaitable[Answer]]
) -> Answer:
    """Run `work` with the object that `opened` yields for the settings."""

    async def open_and_work(settings: Settings) -> Answer:
        async with opened(settings) as it:
            return await work(it)

    return run(open_and_work)
