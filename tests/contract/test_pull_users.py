"""Pull users of a session with PULL_USER=per-speaker, on each engine: the session's UserId is one of them, and the removal of any
closes the session."""

from __future__ import annotations

import pytest

from machine import model, pull_users
from store import store as stores
from tests import decider_harness, engines

RECORDER = {"UserId": "rec"}


@pytest.fixture
def harness(store: stores.Store, clock: engines.Clock) -> decider_harness.Harness:
    """A service that has the application's key and pulls each speaker under a user of its own."""
    return decider_harness.connect(store, clock, user_per_speaker=True, mints=lambda sdk_app_id: True)


async def _users(harness: decider_harness.Harness, task_id: str, *speakers: str) -> list[str]:
    session = await harness.session(task_id)
    return [pull_users.of(session, await harness.recording(f"{task_id}/{each}")) for each in speakers]


async def test_the_session_user_pulls_one_speaker(harness: decider_harness.Harness) -> None:
    """The first speaker's pull is the UserId's; when that speaker's recording captures no more, the next one that opens is.
    No two speakers share a user, and the name is within TRTC's limit."""
    task_id = await harness.start()
    for speaker in ("al", "bo"):
        await harness.publish(speaker)
    first = await _users(harness, task_id, "al/1", "bo/1")
    assert first == ["rec", pull_users.per_speaker("rec", "bo")]
    assert len(pull_users.per_speaker("r" * 32, "名" * 20).encode()) <= 32
    await harness.capture(f"{task_id}/al/1")
    await harness.trtc("user-left", "al")
    await harness.wait(30 * model.SECOND)
    await harness.capture(f"{task_id}/al/1", media_ms=0, reason="no-media")
    assert (await harness.recording(f"{task_id}/al/1")).state == "Transcoding"
    await harness.publish("cy")
    assert await _users(harness, task_id, "bo/1", "cy/1") == [first[1], "rec"]


@pytest.mark.parametrize("user", ["rec", pull_users.per_speaker("rec", "bo")])
@pytest.mark.parametrize("type_", ["user-left", "user-removed"])
async def test_the_removal_of_a_pull_user_closes_the_session(harness: decider_harness.Harness, user: str, type_: str) -> None:
    """However the pulls are named: RemoveUser of any of them ends the session. Their own comings and goings do not, and neither
    does the removal of another user, whatever its name."""
    task_id = await harness.start()
    for speaker in ("al", "bo"):
        await harness.publish(speaker)
    await harness.take(f"{task_id}/bo/1")
    harness.clock.advance(6 * model.SECOND)
    for other, reason in ((user, 1), (user, 2), ("al", 3), (pull_users.per_speaker("rec", "nobody"), 3)):
        await harness.trtc("user-left", other, Reason=reason)
    assert (await harness.session(task_id)).state == "Open"
    await harness.trtc(type_, user, Reason=3)
    assert (await harness.session(task_id)).end_reason == "UserRemoved"


async def test_one_user_pulls_all_by_default(store: stores.Store, clock: engines.Clock) -> None:
    """Without the setting, or without the application's key, no speaker is noted."""
    for n, context in enumerate(({"mints": lambda sdk_app_id: True}, {"user_per_speaker": True})):
        harness = decider_harness.connect(store, clock, prefix=f"0{n + 1}", **context)
        task_id = await harness.start(UserId=f"rec{n}")
        await harness.publish()
        assert (await harness.session(task_id)).user_pulls == ""
