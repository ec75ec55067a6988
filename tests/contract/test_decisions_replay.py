"""Replay of every kind: from each stage, dry, refused, of stuck recordings, and its effect on the result."""

from __future__ import annotations

import pytest

from machine import errors, job_key, model
from tests import decider_harness, transactions


async def _failed(harness: decider_harness.Harness, stage: str, *, upload_pending: bool = False) -> str:
    """A finished session with one recording that failed in `stage`; or a Closing one, for another upload. Returns its id."""
    task_id = await harness.start(Callback="https://example.com/done")
    await harness.publish()
    if upload_pending:
        await harness.publish("zz")
        await harness.capture(f"{task_id}/zz/1", reason="eof")
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
    assert (await harness.session(task_id)).state == ("Closing" if upload_pending else "Finished")
    return owner


@pytest.mark.parametrize(
    ("stage", "from_", "to"),
    [
        ("transcoding", None, "Transcoding"),
        ("transcoding", "transcoding", "Transcoding"),
        ("uploading", None, "Uploading"),
        ("uploading", "uploading", "Uploading"),
        ("uploading", "transcoding", "Transcoding"),
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
    (planned,) = dry["Recordings"]
    assert planned.pop("Action") == {"Transcoding": "transcode from its files", "Uploading": "upload from its files"}[to]
    assert planned.pop("Object") == f"https://cos/{owner[:26]}/al_1"
    assert planned == {"Speaker": "al", "N": 1, "State": "Failed", "To": to, "Attempt": 2}
    assert await harness.recording(owner) == before
    assert await harness.messages() == sent
    assert [r["To"] for r in (await harness.say("replay", **asked))["Recordings"]] == [to]
    after = await harness.recording(owner)
    assert (after.state, after.attempt, after.job is not None and after.job.state) == (to, 2, "queued")
    assert (await harness.session(owner[:26])).state == "Finished"


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


@pytest.mark.parametrize("stage", ["joining", "transcoding", "uploading"])
@pytest.mark.parametrize("closing", [False, True], ids=["finished", "closing"])
async def test_a_closed_session_never_opens_again(harness: decider_harness.Harness, stage: str, *, closing: bool) -> None:
    """A replay of a Closing or Finished session, for whatever recording and stage, never enters the room again: the next session
    of the same room and user is a session of its own, and its speaker is recorded there."""
    owner = await _failed(harness, stage, upload_pending=closing)
    task_id = owner[:26]
    with pytest.raises(errors.Refused, match="only a new session enters the room"):
        await harness.say("replay", TaskId=task_id, Speaker="al", From="joining", UserSig="MARK-fresh")
    if stage == "joining":
        with pytest.raises(errors.Refused, match="nothing to replay"):
            await harness.say("replay", TaskId=task_id, Speaker="al")
    else:
        await harness.say("replay", TaskId=task_id, Speaker="al")
    assert (await harness.session(task_id)).state == ("Closing" if closing else "Finished")
    assert await harness.start() != task_id
    await harness.publish()
    assert [m.subject[:26] for m in await harness.messages("command") if m.type == "start-capture"][-1] != task_id
    assert {key for key in await harness.states(task_id) if key.startswith("al/")} == {"al/1"}
    async with transactions.opened(harness.store) as tx:
        assert (await tx.read("secrets", task_id)).user_sig == "MARK-sig"  # what was refused brought no secrets


async def _refused_for_good(harness: decider_harness.Harness, *speakers: str, **changes: object) -> str:
    """An Open session whose speakers cannot be captured, because the UserSig has expired. Returns its id."""
    task_id = await harness.start(**changes)
    for speaker in speakers:
        if not changes.get("SubscribeUserIds"):
            await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    return task_id


@pytest.mark.parametrize("stage", [{}, {"From": "joining"}])
async def test_a_failed_capture_is_retried_as_another_recording(harness: decider_harness.Harness, stage: dict[str, str]) -> None:
    """While the session is Open, a replay captures again as the speaker's next recording. The failed one keeps its entry."""
    task_id = await _refused_for_good(harness, "al")
    dry = await harness.say("replay", TaskId=task_id, DryRun=True, **stage)
    assert await harness.states(task_id) == {"al/1": "Failed"}
    answer = await harness.say("replay", TaskId=task_id, UserSig="MARK-fresh", **stage)
    assert answer | {"Result": dry["Result"]} == dry
    (line,) = answer["Recordings"]
    assert (line["N"], line["To"], line["Action"]) == (1, "Joining", "capture again, as recording 2")
    assert await harness.states(task_id) == {"al/1": "Failed", "al/2": "Joining"}
    with pytest.raises(errors.Refused, match="follows it already"):
        await harness.say("replay", TaskId=task_id, Speaker="al", N=1)
    await harness.capture(f"{task_id}/al/2", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/al/2")
    (result,) = await harness.reading.results(task_id)
    assert [f["Code"] for f in result["Files"]] == ["FailedRecording", "Success"]


async def test_fresh_secrets_of_a_repeated_start_retry_failed_captures(harness: decider_harness.Harness) -> None:
    """A repeated start with a fresh UserSig retries the speakers who publish, not those who left; the same UserSig retries
    nobody."""
    task_id = await _refused_for_good(harness, "al", "bo")
    await harness.trtc("user-left", "bo")
    assert await harness.start() == task_id
    assert await harness.states(task_id) == {"al/1": "Failed", "bo/1": "Failed"}
    assert await harness.start(UserSig="MARK-fresh") == task_id
    assert await harness.states(task_id) == {"al/1": "Failed", "al/2": "Joining", "bo/1": "Failed"}
    assert await harness.start(UserSig="MARK-fresher") == task_id
    assert await harness.states(task_id) == {"al/1": "Failed", "al/2": "Joining", "bo/1": "Failed"}


async def test_fresh_secrets_retry_subscribed_speakers_without_callbacks(harness: decider_harness.Harness) -> None:
    """Where no callback arrives, a subscribed speaker is retried, and leaves no entry if never seen."""
    wanted = {"SubscribeUserIds": ["al", "bo"]}
    task_id = await _refused_for_good(harness, "al", **wanted)
    assert await harness.start(UserSig="MARK-fresh", **wanted) == task_id
    assert await harness.states(task_id) == {"al/1": "Failed", "al/2": "Joining", "bo/1": "Joining"}
    await harness.say("stop", TaskId=task_id)
    assert [r["Files"] for r in await harness.reading.results(task_id)] == [[]]


async def test_a_replay_skips_what_it_cannot_replay(harness: decider_harness.Harness) -> None:
    """Of several failures, those with files are replayed, and the answer gives the reason for each other one."""
    task_id = await harness.start()
    await harness.publish("al")
    await harness.publish("bo")
    await harness.capture(f"{task_id}/bo/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(f"{task_id}/bo/1", good=False)
    answer = await harness.say("replay", TaskId=task_id)
    assert [(r["Speaker"], r["To"]) for r in answer["Recordings"]] == [("bo", "Transcoding")]
    ((speaker, n, why),) = [tuple(s.values()) for s in answer["Skipped"]]
    assert (speaker, n, "nothing to replay" in why) == ("al", 1, True)
    with pytest.raises(errors.Refused, match="its capture is over"):
        await harness.say("replay", TaskId=task_id, Speaker="bo", From="joining")


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
    assert await harness.say("replay", **asked) | {"Result": dry["Result"]} == dry
    assert (await harness.recording(owner)).state == dry["Recordings"][0]["To"] == "Transcoding"
    other = await harness.start(RoomId=77)
    await harness.publish(RoomId=77)
    await harness.take(f"{other}/al/1")
    await harness.say("stop", TaskId=other)
    dry = await harness.say("replay", DryRun=True, TaskId=other)
    assert await harness.say("replay", TaskId=other) | {"Result": dry["Result"]} == dry
    assert (await harness.recording(f"{other}/al/1")).state == dry["Recordings"][0]["To"] == "Failed"
    assert (await harness.session(other)).state == "Finished"


async def test_a_dry_run_prints_the_next_result(harness: decider_harness.Harness) -> None:
    """Object and next result of the plan are those of the replay, except for what only the transcode knows."""
    owner = await _failed(harness, "uploading", upload_pending=True)
    task_id = owner[:26]
    await harness.transcode(f"{task_id}/zz/1", good=False)
    dry = await harness.say("replay", TaskId=task_id, DryRun=True)
    assert await harness.states(task_id) == {"al/1": "Failed", "zz/1": "Failed"}
    await harness.say("replay", TaskId=task_id)
    for speaker in ("zz", "al"):
        if speaker == "zz":
            await harness.transcode(f"{task_id}/zz/1")
        address = f"https://cos/{task_id}/{speaker}_1"
        about = {"SizeBytes": 9, "Crc64": "1", "Url": address}
        await harness.outcome("upload-finished", f"{task_id}/{speaker}/1", await harness.take(f"{task_id}/{speaker}/1"), **about)
    assert [r["Object"] for r in dry["Recordings"]] == [f"https://cos/{task_id}/al_1", f"https://cos/{task_id}/zz_1"]
    result = (await harness.reading.results(task_id))[-1]
    for known in (dry["Result"], result):
        for field in ("Duration", "Size", "Crc64", "StartTime", "EndTime"):
            del known["Files"][1][field]
    assert dry["Result"] == result


async def _three(harness: decider_harness.Harness) -> str:
    """A finished session: `al` and `cy` failed to transcode, and the upload of `bo` is retried. Returns its id."""
    task_id = await harness.start()
    for speaker in ("al", "bo", "cy"):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    for speaker in ("al", "cy"):
        await harness.transcode(f"{task_id}/{speaker}/1", good=False)
    await harness.transcode(f"{task_id}/bo/1")
    await harness.upload(f"{task_id}/bo/1", good=False, retry=True)
    await harness.wait(15 * model.MINUTE)
    assert (await harness.session(task_id)).revision == 1
    await harness.say("replay", TaskId=task_id, Speaker="al")
    await harness.say("replay", TaskId=task_id, Speaker="cy")
    return task_id


async def test_the_revision_comes_with_the_last_of_what_was_replayed(harness: decider_harness.Harness) -> None:
    """No revision while a replayed recording is under way, and one at once when the last is final, pending uploads or not."""
    task_id = await _three(harness)
    await harness.recorded(f"{task_id}/al/1")
    await harness.wait(model.MINUTE)
    assert (await harness.session(task_id)).revision == 1
    await harness.transcode(f"{task_id}/cy/1", good=False)
    body = (await harness.reading.results(task_id))[-1]
    assert (body["Revision"], [f["Code"] for f in body["Files"]]) == (2, ["Success", "UploadPending", "FailedTranscode"])


async def test_the_revision_of_a_pending_upload_waits_for_replays(harness: decider_harness.Harness) -> None:
    """An upload that ends meanwhile is reported with the replays. A replay that hangs delays it by RESULT_WAIT at most."""
    task_id = await _three(harness)
    await harness.upload(f"{task_id}/bo/1")
    await harness.wait(model.MINUTE)
    assert (await harness.session(task_id)).revision == 1
    await harness.wait(20 * model.MINUTE)
    body = (await harness.reading.results(task_id))[-1]
    assert (body["Revision"], [f["Code"] for f in body["Files"]]) == (2, ["UploadPending", "Success", "UploadPending"])


async def test_slow_replays_give_no_revision_each(harness: decider_harness.Harness) -> None:
    """A replay that ends, while another began its stage longer ago than RESULT_WAIT, waits for that one."""
    task_id = await _three(harness)
    for speaker, minutes in (("al", 16), ("cy", 1)):
        await harness.wait(minutes * model.MINUTE)
        await harness.transcode(f"{task_id}/{speaker}/1", good=False)
    assert (await harness.session(task_id)).revision == 2


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
