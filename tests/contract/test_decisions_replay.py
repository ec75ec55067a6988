"""Replay of every kind: from each stage, dry, refused, of stuck recordings, and its effect on the result."""

from __future__ import annotations

import pytest

from machine import errors, job_key, model
from tests import decider_harness, transactions


async def _failed(harness: decider_harness.Harness, stage: str) -> str:
    """A finished session with one recording that failed in `stage`. Returns its id."""
    task_id = await harness.start(Callback="https://example.com/done")
    await harness.publish()
    owner = f"{task_id}/al/1"
    if stage == "joining":
        await harness.capture(owner, media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    else:
        await harness.capture(owner, reason="eof")
    await harness.say("stop", TaskId=task_id)
    if stage in ("transcoding", "uploading"):
        await harness.transcode(owner, good=stage == "uploading")
    if stage == "uploading":
        await harness.upload(owner, good=False)
    assert (await harness.session(task_id)).state == "Finished"
    return owner


@pytest.mark.parametrize(
    ("stage", "from_", "to"),
    [
        ("joining", None, "Joining"),
        ("transcoding", None, "Transcoding"),
        ("transcoding", "transcoding", "Transcoding"),
        ("uploading", None, "Uploading"),
        ("uploading", "uploading", "Uploading"),
        ("uploading", "transcoding", "Transcoding"),
        ("uploading", "joining", "Joining"),
    ],
)
async def test_a_replay_re_enters_where_the_inputs_exist(
    harness: decider_harness.Harness, stage: str, from_: str | None, to: str
) -> None:
    """A replay starts at the latest state whose inputs exist, or the named earlier one; the dry run reports the same and writes
    nothing."""
    owner = await _failed(harness, stage)
    asked = {"TaskId": owner[:26]} | ({"From": from_} if from_ else {})
    before, sent = await harness.recording(owner), await harness.messages()
    dry = await harness.say("replay", DryRun=True, **asked)
    assert dry["Recordings"] == [{"Speaker": "al", "N": 1, "State": "Failed", "To": to, "Attempt": 2}]
    assert await harness.recording(owner) == before
    assert await harness.messages() == sent
    assert await harness.say("replay", **asked) == dry
    after = await harness.recording(owner)
    assert (after.state, after.attempt, after.job is not None and after.job.state) == (to, 2, "queued")
    assert (await harness.session(owner[:26])).state == ("Open" if to == "Joining" else "Finished")


async def test_a_replay_that_succeeds_and_one_that_fails_again(harness: decider_harness.Harness) -> None:
    """Each end of a replay is a new revision, with the new outcome or the new Detail."""
    owner = await _failed(harness, "uploading")
    await harness.say("replay", TaskId=owner[:26])
    await harness.upload(owner, good=False)
    await harness.say("replay", TaskId=owner[:26])
    await harness.upload(owner)
    codes = [(b["Revision"], b["Files"][0]["Code"]) for b in await harness.reading.results(owner[:26])]
    assert codes == [(1, "FailedCosWrite"), (2, "FailedCosWrite"), (3, "Success")]
    attempts = [(m.type, m.data["Attempt"]) for m in await harness.messages("result") if "Attempt" in m.data]
    assert attempts == [("failed-cos-write", 1), ("failed-cos-write", 2), ("recording-done", 3)]
    assert [c.state for c in await harness.deliveries(owner[:26])] == ["cancelled", "cancelled", "pending"]


async def test_a_replay_from_joining_reopens_with_fresh_deadlines(harness: decider_harness.Harness) -> None:
    """The session is Open again, its duration and its waits restart, and its end is the next revision."""
    owner = await _failed(harness, "joining")
    await harness.wait(model.HOUR)
    await harness.say("replay", TaskId=owner[:26], UserSig="MARK-fresh")
    current = await harness.session(owner[:26])
    assert (current.state, current.opened_ms) == ("Open", harness.clock())
    async with transactions.opened(harness.store) as tx:
        assert (await tx.read("secrets", owner[:26])).user_sig == "MARK-fresh"
    await harness.capture(owner, reason="eof")
    await harness.wait(500_000)
    assert (await harness.session(owner[:26])).end_reason == "Idle"
    await harness.recorded(owner)
    last = (await harness.reading.results(owner[:26]))[-1]
    assert (last["Revision"], last["Files"][0]["Code"]) == (2, "Success")


async def test_a_replay_from_joining_is_refused_while_the_key_is_open_elsewhere(harness: decider_harness.Harness) -> None:
    """Both the replay and its dry run refuse, and nothing changes, secrets included."""
    owner = await _failed(harness, "joining")
    other = await harness.start()
    for dry in (True, False):
        with pytest.raises(errors.Refused, match=other):
            await harness.say("replay", TaskId=owner[:26], DryRun=dry, UserSig="MARK-late")
    async with transactions.opened(harness.store) as tx:
        assert (await tx.read("secrets", owner[:26])).user_sig == "MARK-sig"
    assert (await harness.recording(owner)).state == "Failed"


async def test_replays_that_are_refused(harness: decider_harness.Harness) -> None:
    """A replay is refused for a Done recording without a named stage, for missing files of the stage, and for an unknown
    recording."""
    owner = await _failed(harness, "joining")
    for stage in ("transcoding", "uploading"):
        with pytest.raises(errors.Refused, match="are gone"):
            await harness.say("replay", TaskId=owner[:26], From=stage)
    with pytest.raises(errors.NotFound):
        await harness.say("replay", TaskId=owner[:26], Speaker="nobody")
    with pytest.raises(errors.NotFound):
        await harness.say("replay", TaskId="01" + "9" * 24)
    done = await harness.start(RoomId=99)
    await harness.publish(RoomId=99)
    await harness.capture(f"{done}/al/1", reason="eof")
    await harness.say("stop", TaskId=done)
    await harness.recorded(f"{done}/al/1")
    for which in ({}, {"Speaker": "al", "N": 1}):
        with pytest.raises(errors.Refused, match="Done"):
            await harness.say("replay", TaskId=done, **which)
    assert (await harness.say("replay", TaskId=done, From="transcoding"))["Recordings"][0]["To"] == "Transcoding"


async def test_a_replay_of_a_stuck_recording_issues_its_command_again(harness: decider_harness.Harness) -> None:
    """Unfinished recordings get the present state's command under a new epoch; the old worker's lease is refused."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    expected = []
    for command in ("start-capture", "start-transcode", "start-upload"):
        epoch = await harness.take(owner)
        await harness.say("replay", TaskId=task_id)
        job = job_key.parse_recording(owner), epoch
        assert await harness.store.leases.renew_all([job], "n1", decider_harness.LEASE_MS) == {job}
        expected += [(command, epoch), (command, epoch + 1)]
        if command == "start-capture":
            await harness.capture(owner, reason="eof")
            await harness.say("stop", TaskId=task_id)
        elif command == "start-transcode":
            await harness.transcode(owner)
    assert await harness.commands(owner) == expected
    assert (await harness.recording(owner)).attempt == 1


async def test_the_dry_run_of_an_unfinished_recording_is_true_too(harness: decider_harness.Harness) -> None:
    """For Uploading with an earlier stage named, and for a stopped capture with a silent worker, dry run and run agree."""
    owner = await harness.pending_upload()
    asked = {"TaskId": owner[:26], "From": "transcoding"}
    dry = await harness.say("replay", DryRun=True, **asked)
    assert await harness.say("replay", **asked) == dry
    assert (await harness.recording(owner)).state == dry["Recordings"][0]["To"] == "Transcoding"
    other = await harness.start(RoomId=77)
    await harness.publish(RoomId=77)
    await harness.take(f"{other}/al/1")
    await harness.say("stop", TaskId=other)
    dry = await harness.say("replay", DryRun=True, TaskId=other)
    assert await harness.say("replay", TaskId=other) == dry
    assert (await harness.recording(f"{other}/al/1")).state == dry["Recordings"][0]["To"] == "Failed"
    assert (await harness.session(other)).state == "Finished"


async def test_only_the_named_recordings_are_replayed(harness: decider_harness.Harness) -> None:
    """Speaker and N select recordings; without them, all that are not Done."""
    task_id = await harness.start()
    for speaker in ("al", "bo", "cy"):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/cy/1")
    for speaker in ("al", "bo"):
        await harness.transcode(f"{task_id}/{speaker}/1", good=False)
    await harness.say("replay", TaskId=task_id, Speaker="al", N=1)
    assert await harness.states(task_id) == {"al/1": "Transcoding", "bo/1": "Failed", "cy/1": "Done"}
    answer = await harness.say("replay", TaskId=task_id)
    assert [r["Speaker"] for r in answer["Recordings"]] == ["al", "bo"]
