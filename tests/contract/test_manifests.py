"""Manifests: written to the bucket with each revision of the result, in their order, and never in the way of the result."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from events import codec
from machine import job_key, model
from tests import decider_harness, engines

FIRST, SECOND = model.MANIFESTS_FROM + 1, model.MANIFESTS_FROM + 2


async def _numbers(harness: decider_harness.Harness, task_id: str) -> dict[int, str]:
    """The deliveries of manifests: number → state, with the state of a job."""
    found = {}
    for number in (FIRST, SECOND, SECOND + 1):
        value = await harness.store.assignments.delivery(job_key.DeliveryKey(task_id, number))
        if value is not None:
            found[number] = f"{value.state} {value.job.state if value.job else 'idle'}"
    return found


async def _take(harness: decider_harness.Harness, task_id: str, number: int) -> dict[str, Any]:
    """A worker takes the present delivery of a manifest; returns its outcome's fields."""
    key = job_key.DeliveryKey(task_id, number)
    value = await harness.store.assignments.delivery(key)
    assert value is not None
    assert await harness.store.leases.take(key, value.epoch, "n1", decider_harness.LEASE_MS)
    return {"TaskId": task_id, "Revision": number, "Epoch": value.epoch}


async def _first_revision(harness: decider_harness.Harness) -> str:
    """A session whose result came while an upload was pending. Returns the recording's id."""
    owner = await harness.pending_upload(Manifest=True)
    await harness.wait(15 * model.MINUTE)
    return owner


async def _content(harness: decider_harness.Harness, task_id: str, number: int) -> dict[str, Any]:
    found = await harness.store.assignments.manifest(job_key.DeliveryKey(task_id, number))
    assert found is not None
    read: dict[str, Any] = json.loads(found.body)
    return read


async def test_the_manifest_is_the_result_with_its_segments(harness: decider_harness.Harness) -> None:
    """It has all fields of the result and the segments with media, by its schema; only sessions that ask for it have one."""
    task_id = await harness.start(Manifest=True)
    await harness.publish()
    await harness.capture(f"{task_id}/al/1", reason="eof", FirstPacketMs=harness.clock() - 5_000, LastPacketMs=harness.clock())
    await harness.wait(2_000)
    await harness.capture(f"{task_id}/al/1", reason="eof", media_ms=0)
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/al/1")
    found = await _content(harness, task_id, FIRST)
    schemas = codec.schemas()
    jsonschema_rs.validator_for({"$ref": "#/$defs/Manifest", "$defs": schemas["$defs"]}).validate(found)
    (body,) = await harness.reading.results(task_id)
    (recording,) = found.pop("Recordings")
    assert found == body
    assert (recording["UserId"], recording["N"], recording["RecordFile"]) == ("al", 1, body["Files"][0]["RecordFile"])
    assert [(s["Duration"], s["Ended"]) for s in recording["Segments"]] == [(5, "eof")]
    other = await harness.start(RoomId=5)
    await harness.say("stop", TaskId=other)
    assert await _numbers(harness, other) == {}


async def test_every_session_has_one_if_the_service_is_told_so(database: engines.Database, clock: engines.Clock) -> None:
    """With MANIFEST, a start need not ask. Its address is that of the object beside the files."""
    store = database.open(clock)
    await store.start()
    try:
        harness = decider_harness.connect(
            store, clock, policy=model.Policy(manifest=True), manifest_url=lambda request, task_id: f"https://b/{task_id}"
        )
        task_id = await harness.start()
        await harness.say("stop", TaskId=task_id)
        assert await _numbers(harness, task_id) == {FIRST: "pending queued"}
        assert await store.assignments.receiver(job_key.DeliveryKey(task_id, FIRST)) == "b"
    finally:
        await store.stop()


async def test_the_result_does_not_wait_and_is_not_lost(harness: decider_harness.Harness) -> None:
    """The result goes out at once. A manifest that fails is retried like a callback, given up in the end, told, and written again
    by a resend."""
    task_id = await harness.start(Manifest=True)
    await harness.say("stop", TaskId=task_id)
    assert [m.type for m in await harness.messages("result")][-1] == "session-finished"
    failed = {"Reason": "server", "Detail": "COS 503", "Retry": True}
    for _ in model.Policy().delivery_backoff_ms:
        names = await _take(harness, task_id, FIRST)
        await harness.say("callback-failed", **names, **failed)
        assert await _numbers(harness, task_id) == {FIRST: "pending waiting"}
        await harness.wait(model.HOUR * 24)
    await harness.say("callback-failed", **await _take(harness, task_id, FIRST), **failed)
    assert await _numbers(harness, task_id) == {FIRST: "failed idle"}
    (parts,) = (await harness.reading.parts([task_id])).values()
    assert ([m.state for m in parts.manifests], parts.deliveries) == (["failed"], [])
    assert await harness.say("resend", TaskId=task_id) == {"TaskId": task_id, "Revision": 1, "State": "pending"}
    await harness.say("callback-finished", **await _take(harness, task_id, FIRST))
    assert await _numbers(harness, task_id) == {FIRST: "delivered idle"}


@pytest.mark.parametrize("end", ["callback-finished", "callback-failed", "worker-lost"])
async def test_a_newer_manifest_waits_for_the_write_of_an_older_one(harness: decider_harness.Harness, end: str) -> None:
    """Both are one object: while a worker writes the first, the second is not begun. It follows however the first one ends."""
    owner = await _first_revision(harness)
    task_id = owner[:26]
    names = await _take(harness, task_id, FIRST)
    await harness.upload(owner)
    assert await _numbers(harness, task_id) == {FIRST: "pending leased", SECOND: "pending idle"}
    if end == "worker-lost":
        await harness.say(end, Owner=f"{task_id}#{FIRST}", Epoch=names["Epoch"], Node="n1")
    else:
        more = {"Reason": "network", "Detail": "slow", "Retry": True} if end == "callback-failed" else {}
        await harness.say(end, **names, **more)
    first = "delivered idle" if end == "callback-finished" else "cancelled idle"
    assert await _numbers(harness, task_id) == {FIRST: first, SECOND: "pending queued"}
    assert (await _content(harness, task_id, SECOND))["Revision"] == 2


async def test_a_newer_manifest_replaces_one_that_waits(harness: decider_harness.Harness) -> None:
    """A manifest that no worker writes at this moment is not written any more."""
    owner = await _first_revision(harness)
    await harness.upload(owner)
    assert await _numbers(harness, owner[:26]) == {FIRST: "cancelled idle", SECOND: "pending queued"}


@pytest.mark.parametrize("good", [True, False])
async def test_credentials_stay_until_the_manifest_has_ended(harness: decider_harness.Harness, good: bool) -> None:
    """All recordings are Done: the secrets stay for the manifest, and are wiped when it is written or given up."""
    task_id = await harness.start(Manifest=True)
    await harness.publish()
    await harness.capture(f"{task_id}/al/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/al/1")
    key = job_key.DeliveryKey(task_id, FIRST)
    found = await harness.store.assignments.manifest(key)
    assert found is not None
    assert found.secrets.secret_id == "MARK-id"
    names = await _take(harness, task_id, FIRST)
    if good:
        await harness.say("callback-finished", **names)
    else:
        await harness.say("callback-failed", **names, Reason="refused", Detail="AccessDenied", Retry=False)
    found = await harness.store.assignments.manifest(key)
    assert found is not None
    assert found.secrets.secret_id == ""
