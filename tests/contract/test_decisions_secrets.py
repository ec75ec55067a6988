"""Secrets: in one table only, wiped in time, found nowhere else."""

from __future__ import annotations

import pytest

from machine import errors, model
from store import tables
from tests import decider_harness as desks
from tests import engines


async def _secrets(desk: desks.Desk, task_id: str) -> str:
    async with desk.store.transaction() as tx:
        return (await tx.secrets(task_id)).user_sig


async def test_secrets_are_wiped_when_all_is_done(desk: desks.Desk) -> None:
    """With every recording Done the secrets are wiped; with one Failed they stay for its replay."""
    task_id = await desk.start()
    for speaker in ("al", "bo"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.recorded(f"{task_id}/al/1")
    await desk.transcode(f"{task_id}/bo/1", good=False)
    assert (await desk.session(task_id)).state == "Finished"
    assert await _secrets(desk, task_id) == "MARK-sig"
    await desk.say("replay", TaskId=task_id)
    await desk.recorded(f"{task_id}/bo/1")
    assert await _secrets(desk, task_id) == ""


@pytest.mark.parametrize("end", ["stop", "nobody published", "nobody came whom it waited for"])
async def test_secrets_of_a_session_without_a_recording_go_at_its_end(desk: desks.Desk, end: str) -> None:
    """Without recorded media nothing can be replayed: secrets are wiped when the session ends, and not before."""
    task_id = await desk.start(SubscribeUserIds=["al"] if "came" in end else None)
    assert await _secrets(desk, task_id) == "MARK-sig"
    if end == "stop":
        await desk.say("stop", TaskId=task_id)
    else:
        await desk.jump(model.HOUR)
    session = await desk.session(task_id)
    assert (session.state, await _secrets(desk, task_id)) == ("Finished", "")


async def test_secrets_are_wiped_at_keep_failed(desk: desks.Desk) -> None:
    """KEEP_FAILED after the last failure secrets are wiped, and not while another recording may still need them."""
    task_id = await desk.start()
    for speaker in ("al", "bo"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.transcode(f"{task_id}/al/1", good=False)
    await desk.jump(3 * 24 * model.HOUR)
    await desk.transcode(f"{task_id}/bo/1", good=False)
    await desk.jump(5 * 24 * model.HOUR)
    assert await _secrets(desk, task_id) == "MARK-sig"
    await desk.jump(3 * 24 * model.HOUR)
    assert await _secrets(desk, task_id) == ""


@pytest.mark.parametrize("replayed_after_days", [2, 8], ids=["before KEEP_FAILED of the other", "after its own KEEP_FAILED"])
async def test_secrets_of_a_late_replay_do_not_stay(desk: desks.Desk, replayed_after_days: int) -> None:
    """One recording failed and its files are gone, the other is replayed with fresh secrets and becomes Done: secrets are wiped
    with it, or with the last failure that may still be replayed."""
    task_id = await desk.start()
    for speaker in ("al", "bo"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.transcode(f"{task_id}/al/1", good=False)
    await desk.jump(6 * 24 * model.HOUR)
    await desk.transcode(f"{task_id}/bo/1", good=False)
    await desk.jump(replayed_after_days * 24 * model.HOUR)
    await desk.say("replay", TaskId=task_id, Speaker="bo", UserSig="MARK-fresh", CosConfig=desks.SECRETS)
    assert await _secrets(desk, task_id) == "MARK-fresh"
    await desk.recorded(f"{task_id}/bo/1")
    assert await desk.states(task_id) == {"al/1": "Failed", "bo/1": "Done"}
    assert await _secrets(desk, task_id) == ""


async def test_secrets_outlive_keep_failed_as_long_as_they_are_used(desk: desks.Desk) -> None:
    """KEEP_FAILED of one recording passes while another of its session is, or was, replayed, and the session is Open: secrets
    stay for the next speaker, and are wiped when KEEP_FAILED has passed once more."""
    task_id = await desk.start()
    await desk.publish("al")
    await desk.publish("bo")
    await desk.capture(f"{task_id}/bo/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.recorded(f"{task_id}/bo/1")
    await desk.jump(7 * 24 * model.HOUR - model.MINUTE)
    await desk.say("replay", TaskId=task_id, Speaker="bo", From="joining", UserSig="MARK-fresh")
    await desk.capture(f"{task_id}/bo/1", reason="eof")
    await desk.trtc("user-left", "bo")
    await desk.jump(40_000)
    await desk.capture(f"{task_id}/bo/1", media_ms=0, reason="eof")
    await desk.recorded(f"{task_id}/bo/1")
    await desk.jump(model.MINUTE)
    assert await desk.states(task_id) == {"al/1": "Failed", "bo/1": "Done"}
    assert (await desk.session(task_id)).state == "Open"
    assert await _secrets(desk, task_id) == "MARK-fresh"
    await desk.say("stop", TaskId=task_id)
    await desk.jump(7 * 24 * model.HOUR)
    assert await _secrets(desk, task_id) == ""


async def test_secrets_lie_nowhere_in_plain(desk: desks.Desk, database: engines.Database) -> None:
    """Planted secrets, a callback URL among them, are in no table and no file of the database; wiped ones are gone even in
    encrypted form."""
    task_id = await desk.start(Callback="https://user:MARK-password@example.com/hooks/MARK-path?token=MARK-query")
    fresh = {"SecretId": "MARK-id3", "SecretKey": "MARK-key3", "Token": "MARK-token3"}
    await desk.start(UserSig="MARK-sig2", CosConfig={k: desks.COS[k] for k in ("Region", "Bucket", "Path")})
    await desk.publish()
    await desk.say("replay", TaskId=task_id, UserSig="MARK-sig3", CosConfig=fresh)
    for refused in ({"RoomId": 0}, {"CosConfig": desks.COS | {"Path": ".."}}):
        with pytest.raises(errors.InvalidParameter):
            await desk.start(**refused)
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    assert await _secrets(desk, task_id) == "MARK-sig3"
    assert "MARK" not in "".join(repr(database.ask(f"SELECT * FROM {table}")) for table in tables.metadata.tables)
    await desk.recorded(f"{task_id}/al/1")
    (callback,) = await desk.deliveries(task_id)
    assert callback.url == "https://example.com/…"
    found = await desk.store.assignments.delivery(callback.key)
    assert found is not None
    assert found.url == "https://user:MARK-password@example.com/hooks/MARK-path?token=MARK-query"
    assert database.ask("SELECT kind FROM secrets") == [("callback",)]
    await desk.store.stop()
    assert b"MARK" not in database.everything()
