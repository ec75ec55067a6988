"""Resend: a result that was given up, cancelled or delivered is posted again, as the same message."""

from __future__ import annotations

import asyncio

import pytest

from events import codec
from machine import errors, job_key, model, session_view
from tests import decider_harness

URL = "https://hooks.example.com:8443/done?key=MARK"

UNDELIVERED = session_view.SessionFilter(undelivered=True)


async def _finished(harness: decider_harness.Harness, **changes: object) -> str:
    """A session that finished without recordings, with its result's delivery queued. Returns its id."""
    task_id = await harness.start(Callback=URL, **changes)
    await harness.say("stop", TaskId=task_id)
    return task_id


async def _post(harness: decider_harness.Harness, task_id: str, *, good: bool = False, retry: bool = False) -> None:
    """The present delivery is taken and ends."""
    key = job_key.DeliveryKey(task_id, 1)
    (value,) = [d for d in await harness.deliveries(task_id) if d.revision == 1]
    assert await harness.store.leases.take(key, value.epoch, "n1", decider_harness.LEASE_MS)
    names = {"TaskId": task_id, "Revision": 1, "Epoch": value.epoch}
    if good:
        await harness.say("callback-finished", **names)
    else:
        await harness.say("callback-failed", **names, Reason="status", Detail="It answered 503.", Retry=retry)


@pytest.mark.parametrize("end", ["failed", "delivered", "waiting"])
async def test_a_result_is_posted_again(harness: decider_harness.Harness, end: str) -> None:
    """Given up, delivered or waiting for a retry: the same bytes go to the same URL, at once and under a new epoch; attempts go
    on counting, and it may be asked for any number of times."""
    task_id = await _finished(harness)
    await _post(harness, task_id, good=end == "delivered", retry=end == "waiting")
    before = await harness.store.assignments.delivery(job_key.DeliveryKey(task_id, 1))
    for attempt in (2, 3):
        answer = await harness.say("resend", TaskId=task_id)
        assert answer == {"TaskId": task_id, "Revision": 1, "State": "pending"}
        await _post(harness, task_id, good=True)
        (value,) = await harness.deliveries(task_id)
        assert (value.state, value.posts, value.tried_ms) == ("delivered", attempt, harness.clock())
    after = await harness.store.assignments.delivery(job_key.DeliveryKey(task_id, 1))
    assert before is not None
    assert after is not None
    assert (after.url, after.body) == (before.url, before.body) == (URL, before.body)


async def test_an_older_revision_is_posted_again(harness: decider_harness.Harness) -> None:
    """A revision that a newer one cancelled is posted if it is named; by default it is the newest."""
    owner = await harness.pending_upload(Callback=URL)
    task_id = owner[:26]
    await harness.wait(15 * model.MINUTE)
    await harness.upload(owner)
    assert [d.state for d in await harness.deliveries(task_id)] == ["cancelled", "pending"]
    assert (await harness.say("resend", TaskId=task_id, Revision=1))["Revision"] == 1
    assert [d.state for d in await harness.deliveries(task_id)] == ["pending", "pending"]
    assert (await harness.say("resend", TaskId=task_id))["Revision"] == 2
    with pytest.raises(errors.NotFound, match="the newest is 2"):
        await harness.say("resend", TaskId=task_id, Revision=3)


async def test_a_revision_after_a_resend_cancels_it(harness: decider_harness.Harness) -> None:
    """Both are decided in one transaction, after the delivery was given up: only the newest revision is pending."""
    owner = await harness.pending_upload(Callback=URL)
    task_id = owner[:26]
    await harness.wait(15 * model.MINUTE)
    await _post(harness, task_id)
    epoch = await harness.take(owner)
    await asyncio.gather(
        harness.say("resend", TaskId=task_id),
        harness.outcome("upload-finished", owner, epoch, Crc64="5", SizeBytes=3, Url="https://cos/a"),
    )
    assert [d.state for d in await harness.deliveries(task_id)] == ["cancelled", "pending"]


async def test_resends_that_are_refused(harness: decider_harness.Harness) -> None:
    """Without a result, without a Callback, of an unknown session, and while it is being posted."""
    task_id = await harness.start(RoomId=1, Callback=URL)
    with pytest.raises(errors.Refused, match="no result yet"):
        await harness.say("resend", TaskId=task_id)
    silent = await harness.start(RoomId=2)
    await harness.say("stop", TaskId=silent)
    with pytest.raises(errors.Refused, match="Callback"):
        await harness.say("resend", TaskId=silent)
    with pytest.raises(errors.NotFound):
        await harness.say("resend", TaskId="01" + "9" * 24)
    posted = await _finished(harness, RoomId=3)
    assert await harness.store.leases.take(job_key.DeliveryKey(posted, 1), 1, "n1", decider_harness.LEASE_MS)
    with pytest.raises(errors.Refused, match="being posted"):
        await harness.say("resend", TaskId=posted)


async def test_a_resend_from_the_bus_is_answered(harness: decider_harness.Harness) -> None:
    """The event is a user's request: one that is refused gets a reply under its id."""
    task_id = await _finished(harness)
    await _post(harness, task_id)
    for id_, data in (("one", {"TaskId": task_id}), ("two", {"TaskId": task_id, "Revision": 7})):
        event = codec.make("resend", id=id_, time_ms=harness.clock(), data=data)
        await harness.decider.decide_from_bus(event)
    assert [d.state for d in await harness.deliveries(task_id)] == ["pending"]
    (refused,) = [m for m in await harness.messages("result") if m.type == "session-refused"]
    assert (refused.data["Code"], refused.data["RequestId"]) == ("NotFound", "two")


async def test_what_was_given_up_is_listed(harness: decider_harness.Harness) -> None:
    """`undelivered` has the sessions whose newest result was given up, and no other."""
    given_up = await _finished(harness, RoomId=1)
    await _post(harness, given_up)
    accepted = await _finished(harness, RoomId=2)
    await _post(harness, accepted, good=True)
    await _finished(harness, RoomId=3)
    waits = await _finished(harness, RoomId=4)
    await _post(harness, waits, retry=True)
    assert [s.task_id for s in (await harness.reading.sessions(UNDELIVERED))[0]] == [given_up]
    (delivery,) = await harness.deliveries(waits)
    assert await harness.reading.next_tries([delivery.key]) == {delivery.key.text: harness.clock() + 5_000}
    await harness.say("resend", TaskId=given_up)
    assert await harness.reading.sessions(UNDELIVERED) == ([], "")
