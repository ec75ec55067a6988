"""What every bus must do, whichever it is: hand out, in order, at least once, and hold nothing up. A test's id names the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from events import codec
from machine import errors
from store import store as stores
from tests import buses, engines, rabbit, waiting

TASK = buses.TASK


@pytest.fixture
def hands() -> buses.Hands:
    return buses.Hands()


@pytest.fixture(params=buses.NAMES)
def workshop(
    request: pytest.FixtureRequest, database: engines.Database, store: stores.Store, clock: engines.Clock
) -> buses.Workshop:
    """Makes buses of each kind."""
    prefix = rabbit.shared().prefix() if request.param == "rabbitmq" else ""
    return buses.Workshop(request.param, database, store, clock, prefix)


@pytest.fixture
async def bus(workshop: buses.Workshop, hands: buses.Hands) -> AsyncIterator[buses.Bus]:
    """A running bus."""
    made = workshop.make(hands.on_event, hands.on_command)
    await made.start()
    await made.start()
    yield made
    await made.stop()
    await made.stop()


def stop(id_: str) -> codec.Event:
    return codec.make("stop", id=id_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def emptied(store: stores.Store) -> None:
    """Wait until nothing is left in the outbox."""

    async def empty() -> bool:
        return not await store.unsent()

    await waiting.until(empty, what="all to be marked sent")


async def test_handed_out_in_order(bus: buses.Bus, store: stores.Store, hands: buses.Hands) -> None:
    """Events and commands reach their handlers once each, in the order they were written, and are marked sent."""
    for number in range(5):
        await store.send("event", stop(f"e{number}"))
    await store.send("command", codec.make("start-capture", id="c1", time_ms=0, data=buses.JOB))
    await waiting.until(lambda: hands.commands and len(hands.events) == 5, what="the command and the events")
    assert hands.events == [f"e{number}" for number in range(5)]
    assert hands.commands == ["c1"]
    await emptied(store)


async def test_every_command_finds_its_worker(bus: buses.Bus, store: stores.Store, hands: buses.Hands) -> None:
    """Every kind of command is handed out, whether it names this node or none."""
    types = sorted(codec.types("command"))
    async with store.transaction() as tx:
        for type_ in types:
            data = {"TaskId": TASK, "Revision": 1, "Epoch": 1} if type_ == "send-callback" else buses.JOB
            await tx.send("command", codec.make(type_, id=f"any-{type_}", time_ms=0, data=data), TASK)
            if type_ != "send-callback":
                await tx.send("command", codec.make(type_, id=f"own-{type_}", time_ms=0, data=data), TASK, "n1")
    wanted = {f"any-{type_}" for type_ in types} | {f"own-{type_}" for type_ in types if type_ != "send-callback"}
    await waiting.until(lambda: set(hands.commands) == wanted, what="every command")


async def test_temporary_failure_is_tried_again_and_holds_nothing_up(
    bus: buses.Bus, store: stores.Store, hands: buses.Hands
) -> None:
    """What fails for now comes again after a pause; the messages behind it do not wait for it."""
    hands.failures["bad"] = [errors.Unavailable(), RuntimeError("a fault of ours")]
    await store.send("event", stop("bad"))
    await store.send("event", stop("good"))
    await waiting.until(lambda: hands.events.count("bad") == 3, what="the third try")
    assert hands.events[:2] == ["bad", "good"]


async def test_what_can_never_be_handled_is_parked(
    bus: buses.Bus, store: stores.Store, hands: buses.Hands, workshop: buses.Workshop
) -> None:
    """A refusal for good is parked with its reason and handed out no more."""
    hands.failures["never"] = [errors.Refused("no such thing")]
    await store.send("event", stop("never"))
    await store.send("event", stop("after"))
    await waiting.until(lambda: "after" in hands.events, what="the next message")
    await emptied(store)
    reasons = await workshop.parked()
    assert hands.events == ["never", "after"]
    assert len(reasons) == 1
    assert "no such thing" in reasons[0]


async def test_unsent_is_handed_out_after_a_restart(workshop: buses.Workshop, store: stores.Store, hands: buses.Hands) -> None:
    """A bus that stops in the middle of a handler hands the same message out again at its next start."""
    entered = asyncio.Event()

    async def stuck(event: codec.Event) -> None:
        hands.events.append(event.id)
        entered.set()
        await asyncio.Event().wait()

    first = workshop.make(stuck, hands.on_command)
    await store.send("event", stop("e1"))
    await first.start()
    async with asyncio.timeout(10):
        await entered.wait()
    await first.stop()
    second = workshop.make(hands.on_event, hands.on_command)
    await second.start()
    await waiting.until(lambda: hands.events == ["e1", "e1"], what="the second hand-out")
    await second.stop()


async def test_a_bus_starts_again_after_it_was_stopped(bus: buses.Bus, store: stores.Store, hands: buses.Hands) -> None:
    """What was written while a bus was stopped is handed out when the same bus starts again."""
    await bus.stop()
    await store.send("event", stop("e1"))
    await bus.start()
    await waiting.until(lambda: hands.events == ["e1"], what="the event")


async def test_results_reach_listeners(bus: buses.Bus, store: stores.Store, workshop: buses.Workshop) -> None:
    """Whoever listens in the process gets the results."""
    heard: list[str] = []
    bus.listeners.append(lambda event: heard.append(event.type))
    await waiting.until(lambda: not getattr(bus, "problems", list)(), what="the bus to flow")
    data = {"TaskId": TASK, "Repeated": False, "Warnings": []}
    await store.send("result", codec.make("session-accepted", id="r1", time_ms=0, data=data))
    await waiting.until(lambda: heard == ["session-accepted"], what="the result")


async def test_the_death_of_the_relay_is_told(workshop: buses.Workshop, store: stores.Store, hands: buses.Hands) -> None:
    """When the store fails under the relay and not for being away, `failed` holds the error: the process must not go on deaf."""
    bus = workshop.make(hands.on_event, hands.on_command)

    async def broken(*_: object) -> list[stores.Message]:
        raise OSError("the store is broken")

    store.unsent = broken  # type: ignore[method-assign]
    store.claim_unsent = broken  # type: ignore[method-assign]
    await bus.start()
    assert "the store is broken" in str(await buses.failure(bus))
    await bus.stop()
