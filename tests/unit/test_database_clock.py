"""The estimate of the database's time: by quick answers, by the monotonic clock, and never by the machine's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from machine import database_clock, model

START_MS = 1_800_000_000_000


@dataclass(slots=True)
class World:
    """True time, the machine's clock, and a database that answers after a while."""

    now_ms: int = START_MS
    machine_ahead_ms: int = 0
    database_ahead_ms: int = 0
    asked_ms: int = 0
    answered_ms: int = 0

    async def read(self) -> int:
        """The database's answer: it reads its clock between the question and the answer."""
        self.now_ms += self.asked_ms
        database_ms = self.now_ms + self.database_ahead_ms
        self.now_ms += self.answered_ms
        return database_ms


@pytest.fixture
def world() -> World:
    return World()


def clock_of(world: World) -> database_clock.DatabaseClock:
    return database_clock.DatabaseClock(lambda: world.now_ms + world.machine_ahead_ms, lambda: world.now_ms - START_MS)


SKEWS_MS = [-model.HOUR, -40_000, -1_000, 0, 1_000, 600_000, model.HOUR]


@pytest.mark.parametrize("ahead_ms", SKEWS_MS)
async def test_a_clock_that_is_off(world: World, ahead_ms: int) -> None:
    """The estimate is the database's time, and a difference of a second or more is a warning."""
    world.machine_ahead_ms = ahead_ms
    clock = clock_of(world)
    assert clock() == START_MS + ahead_ms
    await clock.measure(world.read)
    world.now_ms += 500
    assert clock() == world.now_ms
    assert clock.skew_ms == ahead_ms
    assert bool(clock.warnings()) == (abs(ahead_ms) >= 1_000)
    if ahead_ms:
        assert ("ahead of" if ahead_ms > 0 else "behind") in clock.warnings()[0]


@pytest.mark.parametrize("step_ms", [-model.HOUR, -600_000, 600_000])
async def test_a_machine_whose_clock_is_set(world: World, step_ms: int) -> None:
    """A step of the machine's clock moves the estimate by nothing, not even until the next measurement."""
    clock = clock_of(world)
    await clock.measure(world.read)
    world.machine_ahead_ms += step_ms
    assert clock() == world.now_ms
    assert clock.skew_ms == step_ms


@pytest.mark.parametrize("step_ms", [-model.HOUR, -9_000, 9_000, model.HOUR])
async def test_a_database_whose_clock_is_set(world: World, step_ms: int) -> None:
    """The next measurement follows it, even if its answer is slow."""
    clock = clock_of(world)
    await clock.measure(world.read)
    world.database_ahead_ms += step_ms
    world.asked_ms = world.answered_ms = 300
    await clock.measure(world.read)
    assert clock() == world.now_ms + step_ms


@pytest.mark.parametrize(("asked_ms", "answered_ms"), [(0, 900), (900, 0), (4_000, 100)])
async def test_slow_answers(world: World, asked_ms: int, answered_ms: int) -> None:
    """A slow answer does not blur what a quick one told, whichever way was slow."""
    clock = clock_of(world)
    world.asked_ms = world.answered_ms = 1
    await clock.measure(world.read)
    for _ in range(10):
        world.asked_ms, world.answered_ms = asked_ms, answered_ms
        await clock.measure(world.read)
        assert abs(clock() - world.now_ms) <= 1


async def test_clocks_that_drift(world: World) -> None:
    """After a while the newest answer counts, though it is slower than an earlier one."""
    clock = clock_of(world)
    await clock.measure(world.read)
    for _ in range(100):
        world.now_ms += 10_000
        world.database_ahead_ms += 2
        world.asked_ms = world.answered_ms = 5
        await clock.measure(world.read)
    assert abs(clock() - (world.now_ms + world.database_ahead_ms)) <= 10
