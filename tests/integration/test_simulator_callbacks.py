"""The simulator's callbacks: Tencent's events of a room in order, retries, and scripted faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from simulator import callbacks, server
from tests import waiting
from tests.integration import stream_viewer as streams


@pytest.fixture
async def simulator(tmp_path: Path, loops: Path) -> AsyncIterator[server.Simulator]:
    async with streams.running(tmp_path, loops) as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_callbacks_of_a_rooms_life(simulator: server.Simulator) -> None:
    """Entering, muting, leaving and dismissing give Tencent's events in order, signed over the raw body."""
    room = simulator.create_room(streams.APP, 8489)
    alice = await room.join("alice")
    bob = await room.join("bob", video=False)
    await alice.mute_video()
    await alice.mute_video()
    await alice.mute_audio()
    await alice.unmute_video()
    await bob.leave()
    await bob.leave()
    await room.dismiss()
    await room.dismiss()
    await streams.until_events(simulator, 101, 103, 203, 201, 103, 203, 202, 204, 201, 104, 102)
    for received in simulator.receiver.received["trtc"]:
        assert received.headers["Sign"] == callbacks.sign(streams.CALLBACK_KEY, received.body)
        assert received.headers["SdkAppId"] == str(streams.APP)
    messages = streams.events(simulator)
    assert all(message["EventInfo"]["RoomId"] == 8489 for message in messages)
    assert messages[1]["EventInfo"] | {"Role": 20, "UserId": "alice"} == messages[1]["EventInfo"]
    assert messages[9]["EventInfo"] | {"Reason": 1, "UserId": "bob"} == messages[9]["EventInfo"]
    assert "UserId" not in messages[10]["EventInfo"]
    times = [message["EventInfo"]["EventMsTs"] for message in messages]
    assert times == sorted(set(times))
    await room.join("alice", audio=False)
    await waiting.until(lambda: [message["EventType"] for message in streams.events(simulator)][11:] == [101, 103, 201])


async def test_string_rooms_are_other_rooms(simulator: server.Simulator, http: aiohttp.ClientSession) -> None:
    """A string room of the same digits is another room: its callbacks carry a string and its pulls no number flag."""
    await simulator.create_room(streams.APP, "8489").join("alice")
    await streams.until_events(simulator, 101, 103, 203, 201)
    assert {message["EventInfo"]["RoomId"] for message in streams.events(simulator)} == {"8489"}
    async with http.get(streams.address(simulator, 8489, "alice")) as answer:
        assert answer.status == 404
    async with http.get(streams.address(simulator, "8489", "alice")) as answer:
        assert answer.status == 200


async def _outcomes(simulator: server.Simulator, act: Callable[[], Awaitable[object]]) -> list[tuple[int, str, list[int]]]:
    await act()
    await simulator.callbacks.settled()
    messages = simulator.callbacks.messages
    return [(each.event_type, each.outcome, [attempt.status for attempt in each.attempts]) for each in messages]


async def test_callbacks_are_retried_and_lost(simulator: server.Simulator) -> None:
    """A failing receiver gets one retry immediately and more with pauses until the message is too old, each signed again."""
    simulator.receiver.answer_with("trtc", 500)
    room = simulator.create_room(streams.APP, 1)
    room.exists = True
    outcomes = await _outcomes(simulator, room.dismiss)
    assert outcomes[0][:2] == (102, callbacks.LOST)
    assert 3 <= len(outcomes[0][2]) <= 8
    assert len({received.headers["Sign"] for received in simulator.receiver.received["trtc"]}) > 2
    simulator.receiver.answer_with("trtc", 200)
    assert (await _outcomes(simulator, lambda: room.join("alice")))[1] == (101, callbacks.DELIVERED, [200])


async def test_callback_faults(simulator: server.Simulator) -> None:
    """Callbacks can be lost, doubled, late and swapped with the next one, each as often as scripted."""
    simulator.callbacks.set_faults(
        callbacks.Fault(action=callbacks.DROP, event_type=101),
        callbacks.Fault(action=callbacks.SWAP, event_type=103, user_id="alice"),
        callbacks.Fault(action=callbacks.DOUBLE, event_type=201),
        callbacks.Fault(action=callbacks.DELAY, event_type=104, delay_s=0.3),
    )
    room = simulator.create_room(streams.APP, 1)
    alice = await room.join("alice")
    await simulator.callbacks.settled()
    assert [message["EventType"] for message in streams.events(simulator)] == [203, 103, 201, 201]
    assert streams.events(simulator)[2]["EventInfo"] == streams.events(simulator)[3]["EventInfo"]
    await alice.leave()
    await room.dismiss()
    await streams.until_events(simulator, 203, 103, 201, 201, 102, 104)
