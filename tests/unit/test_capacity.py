"""How much a worker takes on."""

from __future__ import annotations

import asyncio

import pytest

from assembly import capacity
from machine import errors


class Bus:
    """Notes whether captures are wanted."""

    def __init__(self) -> None:
        self.wanted = True

    async def pause_captures(self) -> None:
        """As the bus does."""
        self.wanted = False

    async def resume_captures(self) -> None:
        """As the bus does."""
        self.wanted = True


class Captures:
    """Captures that are counted only once their lease is taken, which lets others run."""

    def __init__(self) -> None:
        self.running = 0

    async def begin(self) -> None:
        """Take the lease."""
        barrier = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(barrier.set_result, None)
        await barrier
        self.running += 1


def limited(bus: Bus, captures: Captures, *, free_bytes: int = 100) -> capacity.Capacity:
    """A capacity of two captures and 10 bytes."""
    limits = capacity.Limits(captures=2, load=0, free_bytes=lambda: 10)
    return capacity.Capacity(bus, limits, running=lambda: captures.running, free_bytes=lambda: free_bytes)


async def test_a_burst_does_not_pass_the_limit() -> None:
    """Of five captures delivered at once two begin; the others go back, and no more are asked for until one has ended."""
    bus, captures = Bus(), Captures()
    part = limited(bus, captures)
    answers = await asyncio.gather(*(part.take(captures.begin) for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if answer is not None]
    assert (captures.running, len(refused), bus.wanted) == (2, 3, False)
    assert all(isinstance(answer, errors.Unavailable) and answer.retry for answer in refused)
    captures.running -= 1
    await part.look()
    assert bus.wanted
    await part.take(captures.begin)
    assert (captures.running, bus.wanted) == (2, False)


async def test_a_full_spool_takes_nothing() -> None:
    """Too little free space: the capture is not begun, and the reason says so."""
    bus, captures = Bus(), Captures()
    with pytest.raises(errors.Unavailable, match="full: the spool has"):
        await limited(bus, captures, free_bytes=1).take(captures.begin)
    assert (captures.running, bus.wanted) == (0, False)
