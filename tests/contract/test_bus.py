"""What every bus must do, whichever it is: hand out, in order, at least once, and hold nothing up. The parameter's id names
it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from bus import local
from events import codec
from machine import errors
from store import store as stores
from tests import engines, waiting

TASK = "01" + "0" * 23 + "1"


class Hands:
    """The handlers of a bus under test: they note what they are handed, and fail as they are told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.commands: list[str] = []
        self.failures: dict[str, list[Exception]] = {}

    async def on_event(self, event: codec.Event) -> None:
        self.events.append(event.id)
        if self.failures.get(event.id):
            raise self.failures[event.id].pop(0)

    async def on_command(self, command: codec.Event) -> None:
        self.commands.append(command.id)


Buses = Callable[[], local.LocalBus]


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture(params=["local"])
async def bus(store: stores.Store, clock: engines.Clock, hands: Hands) -> AsyncIterator[local.LocalBus]:
    """A running bus."""
    made = local.LocalBus(store, clock=clock, on_event=hands.on_event, on_command=hands.on_command)
    await made.start()
    await made.start()
    yield made
    await made.stop()
    await made.stop()


def stop(id_: str) -> codec.Event:
    return codec.make("stop", id=id_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def test_handed_out_in_order(bus: local.LocalBus, store: stores.Store, hands: Hands) -> None:
    """Events and commands reach their handlers once each, in the order they were written, and are marked sent."""
    for number in range(5):
        await store.send("event", stop(f"e{number}"))
    data = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1}
    await store.send("command", codec.make("start-capture", id="c1", time_ms=0, data=data))
    await waiting.until(lambda: hands.commands, what="the command")
    assert hands.events == [f"e{number}" for number in range(5)]

    async def empty() -> bool:
        return not await store.unsent()

    await waiting.until(empty, what="all to be marked sent")


async def test_temporary_failure_is_tried_again_and_holds_nothing_up(
    bus: local.LocalBus, store: stores.Store, hands: Hands
) -> None:
    """What fails for now comes again after a pause; the messages behind it do not wait for it."""
    hands.failures["bad"] = [errors.Unavailable(), RuntimeError("a fault of ours")]
    await store.send("event", stop("bad"))
    await store.send("event", stop("good"))
    await waiting.until(lambda: hands.events.count("bad") == 3, what="the third try")
    assert hands.events[:2] == ["bad", "good"]


async def test_what_can_never_be_handled_is_parked(bus: local.LocalBus, store: stores.Store, hands: Hands) -> None:
    """A refusal for good is parked with its reason and handed out no more."""
    hands.failures["never"] = [errors.Refused("no such thing")]
    await store.send("event", stop("never"))
    await store.send("event", stop("after"))
    await waiting.until(lambda: "after" in hands.events, what="the next message")

    async def empty() -> bool:
        return not await store.unsent()

    await waiting.until(empty, what="the parked message to be out of the way")
    assert hands.events == ["never", "after"]


async def test_unsent_is_handed_out_after_a_restart(store: stores.Store, clock: engines.Clock, hands: Hands) -> None:
    """A bus that stops in the middle of a handler hands the same message out again at its next start."""
    entered = asyncio.Event()

    async def stuck(event: codec.Event) -> None:
        hands.events.append(event.id)
        entered.set()
        await asyncio.Event().wait()

    first = local.LocalBus(store, clock=clock, on_event=stuck, on_command=hands.on_command)
    await store.send("event", stop("e1"))
    await first.start()
    async with asyncio.timeout(5):
        await entered.wait()
    await first.stop()
    second = local.LocalBus(store, clock=clock, on_event=hands.on_event, on_command=hands.on_command)
    await second.start()
    await waiting.until(lambda: hands.events == ["e1", "e1"], what="the second hand-out")
    await second.stop()


async def test_results_reach_listeners(bus: local.LocalBus, store: stores.Store) -> None:
    """Whoever listens in the process gets the results."""
    heard: list[str] = []
    bus.listeners.append(lambda event: heard.append(event.type))
    data = {"TaskId": TASK, "Repeated": False, "Warnings": []}
    await store.send("result", codec.make("session-accepted", id="r1", time_ms=0, data=data))
    await waiting.until(lambda: heard == ["session-accepted"], what="the result")


async def test_the_death_of_the_relay_is_told(store: stores.Store, clock: engines.Clock, hands: Hands) -> None:
    """When the store fails under the relay, `failed` holds the error: the process must not go on deaf."""
    bus = local.LocalBus(store, clock=clock, on_event=hands.on_event, on_command=hands.on_command)

    async def broken(limit: int = 100) -> list[stores.Message]:
        raise OSError("the database is gone")

    store.unsent = broken  # type: ignore[method-assign]
    await bus.start()
    assert bus.relay.failed is not None
    with pytest.raises(OSError, match="the database is gone"):
        async with asyncio.timeout(5):
            await bus.relay.failed
    await bus.stop()
