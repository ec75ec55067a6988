"""Secrets: in one table only, wiped in time, found nowhere else."""

from __future__ import annotations

import pytest

from handlers import dispatch, unit_of_work
from machine import errors, model
from store import tables
from tests import decider_harness, engines, transactions


async def _secrets(harness: decider_harness.Harness, task_id: str) -> str:
    async with transactions.opened(harness.store) as tx:
        return (await tx.read("secrets", task_id)).user_sig


async def test_secrets_are_wiped_when_all_is_done(harness: decider_harness.Harness) -> None:
    """With every recording Done the secrets are wiped; with one Failed they stay for its replay."""
    task_id = await harness.start()
    for speaker in ("al", "bo"):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/al/1")
    await harness.transcode(f"{task_id}/bo/1", good=False)
    assert (await harness.session(task_id)).state == "Finished"
    assert await _secrets(harness, task_id) == "MARK-sig"
    await harness.say("replay", TaskId=task_id)
    await harness.recorded(f"{task_id}/bo/1")
    assert await _secrets(harness, task_id) == ""


@pytest.mark.parametrize("end", ["stop", "nobody published", "nobody came whom it waited for"])
async def test_secrets_of_a_session_without_a_recording_go_at_its_end(harness: decider_harness.Harness, end: str) -> None:
    """Without recorded media nothing can be replayed: secrets are wiped when the session ends, and not before."""
    task_id = await harness.start(SubscribeUserIds=["al"] if "came" in end else None)
    assert await _secrets(harness, task_id) == "MARK-sig"
    if end == "stop":
        await harness.say("stop", TaskId=task_id)
    else:
        await harness.jump(model.HOUR)
    session = await harness.session(task_id)
    assert (session.state, await _secrets(harness, task_id)) == ("Finished", "")


async def test_secrets_are_wiped_at_keep_failed(harness: decider_harness.Harness) -> None:
    """KEEP_FAILED after the last failure secrets are wiped, and not while another recording may still need them."""
    task_id = await harness.start()
    for speaker in ("al", "bo"):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(f"{task_id}/al/1", good=False)
    await harness.jump(3 * 24 * model.HOUR)
    await harness.transcode(f"{task_id}/bo/1", good=False)
    await harness.jump(5 * 24 * model.HOUR)
    assert await _secrets(harness, task_id) == "MARK-sig"
    await harness.jump(3 * 24 * model.HOUR)
    assert await _secrets(harness, task_id) == ""


@pytest.mark.parametrize("replayed_after_days", [2, 8], ids=["before KEEP_FAILED of the other", "after its own KEEP_FAILED"])
async def test_secrets_of_a_late_replay_do_not_stay(harness: decider_harness.Harness, replayed_after_days: int) -> None:
    """One recording failed and its files are gone, the other is replayed with fresh secrets and becomes Done: secrets are wiped
    with it, or with the last failure that may still be replayed."""
    task_id = await harness.start()
    for speaker in ("al", "bo"):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(f"{task_id}/al/1", good=False)
    await harness.jump(6 * 24 * model.HOUR)
    await harness.transcode(f"{task_id}/bo/1", good=False)
    await harness.jump(replayed_after_days * 24 * model.HOUR)
    await harness.say("replay", TaskId=task_id, Speaker="bo", UserSig="MARK-fresh", CosConfig=decider_harness.SECRETS)
    assert await _secrets(harness, task_id) == "MARK-fresh"
    await harness.recorded(f"{task_id}/bo/1")
    assert await harness.states(task_id) == {"al/1": "Failed", "bo/1": "Done"}
    assert await _secrets(harness, task_id) == ""


async def test_secrets_outlive_keep_failed_as_long_as_they_are_used(harness: decider_harness.Harness) -> None:
    """KEEP_FAILED of one recording passes while the session is Open: secrets stay for the next speaker, and are wiped when
    KEEP_FAILED has passed once more."""
    context = unit_of_work.Context(policy=model.Policy(keep_failed_ms=model.HOUR), new_id=engines.ids())
    harness.decider = dispatch.Decider(harness.store, context)
    task_id = await harness.start()
    await harness.publish("al")
    await harness.capture(f"{task_id}/al/1", media_ms=0, reason="refused-for-good")
    await harness.publish("bo")
    await harness.jump(model.HOUR + model.MINUTE)
    await harness.capture(f"{task_id}/bo/1", reason="eof")
    assert (await harness.session(task_id)).state == "Open"
    assert await _secrets(harness, task_id) == "MARK-sig"
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(f"{task_id}/bo/1")
    await harness.jump(model.HOUR)
    assert await harness.states(task_id) == {"al/1": "Failed", "bo/1": "Done"}
    assert await _secrets(harness, task_id) == ""


async def test_secrets_outlive_keep_failed_for_a_replay(harness: decider_harness.Harness) -> None:
    """KEEP_FAILED of one recording passes while another of its session is replayed: the fresh secrets stay until its end."""
    task_id = await harness.start()
    await harness.publish("al")
    await harness.publish("bo")
    await harness.capture(f"{task_id}/bo/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(f"{task_id}/bo/1", good=False)
    await harness.jump(7 * 24 * model.HOUR - model.MINUTE)
    await harness.say("replay", TaskId=task_id, Speaker="bo", UserSig="MARK-fresh")
    await harness.jump(2 * model.MINUTE)
    assert await _secrets(harness, task_id) == "MARK-fresh"
    await harness.recorded(f"{task_id}/bo/1")
    assert await _secrets(harness, task_id) == ""


async def test_secrets_lie_nowhere_in_plain(harness: decider_harness.Harness, database: engines.Database) -> None:
    """Planted secrets, a callback URL among them, are in no table and no file of the database; wiped ones are gone even in
    encrypted form."""
    url = "https://user:MARK-password@example.com/hooks/MARK-path?token=MARK-query"
    task_id = await harness.start(Callback=url)
    fresh = {"SecretId": "MARK-id3", "SecretKey": "MARK-key3", "Token": "MARK-token3"}
    target = {k: decider_harness.COS[k] for k in ("Region", "Bucket", "Path")}
    await harness.start(UserSig="MARK-sig2", CosConfig=target, Callback=url)
    await harness.publish()
    await harness.say("replay", TaskId=task_id, UserSig="MARK-sig3", CosConfig=fresh)
    for refused in ({"RoomId": 0}, {"CosConfig": decider_harness.COS | {"Path": ".."}}):
        with pytest.raises(errors.InvalidParameter):
            await harness.start(**refused)
    await harness.capture(f"{task_id}/al/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    assert await _secrets(harness, task_id) == "MARK-sig3"
    assert "MARK" not in "".join(repr(database.ask(f"SELECT * FROM {table}")) for table in tables.metadata.tables)
    await harness.recorded(f"{task_id}/al/1")
    (callback,) = await harness.deliveries(task_id)
    assert callback.url == "https://example.com/…"
    found = await harness.store.assignments.delivery(callback.key)
    assert found is not None
    assert found.url == url
    assert database.ask("SELECT kind FROM secrets") == [("callback",)]
    await harness.store.stop()
    assert b"MARK" not in database.everything()
