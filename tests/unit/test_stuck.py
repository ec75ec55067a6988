"""The rules for sessions that need attention: each applies where it should, and not a moment or a failure earlier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from events import requests
from machine import delivery, model, session_view, states
from web import stuck

TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
NOW_MS = 1_800_000_000_000
POLICY = model.Policy()
REQUEST = requests.StartRequest(
    room=requests.Room(sdk_app_id=1, room_id=7), user_id="rec", region="ap-x", bucket="b-1000", path="/", mode="02"
)
OPEN = model.Session(task_id=TASK_ID, request=REQUEST, opened_ms=NOW_MS - 3_600_000)
CLOSING = replace(OPEN, state=states.CLOSING, closing_ms=NOW_MS - POLICY.result_wait_ms - 1)
FINISHED = replace(CLOSING, state=states.FINISHED, finished_ms=NOW_MS - 1_000, revision=1)
FAILED = model.Recording(
    task_id=TASK_ID, speaker="ann", n=1, state=states.FAILED, code="FailedCosWrite", detail="Refused (403).", media_ms=5_000
)
UPLOADING = model.Recording(task_id=TASK_ID, speaker="ann", n=1, state=states.UPLOADING, failures=3, detail="No route to host.")
JOINING = model.Recording(task_id=TASK_ID, speaker="ann", n=1, present=True, failures=3, detail="404.")
SENT = model.Delivery(task_id=TASK_ID, revision=1, url="", body="", failures=3, detail="HTTP 500.")


def look(session: model.Session, *values: Any, now_ms: int = NOW_MS, **jobs: session_view.JobView) -> list[stuck.StuckFinding]:
    """The findings for a session with these recordings and deliveries; `jobs` are jobs by the suffix of their owner."""
    recordings = [v for v in values if isinstance(v, model.Recording)]
    deliveries = [v for v in values if isinstance(v, model.Delivery)]
    by_owner = {JOINING.key if name == "ann" else SENT.key: job for name, job in jobs.items()}
    parts = session_view.SessionParts(recordings=recordings, deliveries=deliveries, jobs=by_owner)
    return stuck.findings(stuck.Snapshot(session=session, parts=parts, policy=POLICY, now_ms=now_ms))


def rules(found: list[stuck.StuckFinding]) -> list[tuple[str, str]]:
    return [(f.rule, f.of) for f in found]


def queued(ago_ms: int) -> session_view.JobView:
    return session_view.JobView(kind="upload", state=states.QUEUED, node="", since_ms=NOW_MS - ago_ms, lease_until_ms=0)


def leased(until_ms: int) -> session_view.JobView:
    return session_view.JobView(kind="capture", state=states.LEASED, node="node-1", since_ms=0, lease_until_ms=until_ms)


def test_what_goes_on_by_itself_is_not_stuck() -> None:
    """A live session, a finished one, and running work need no attention."""
    running = replace(JOINING, state=states.RECORDING, failures=0, media_ms=9)
    assert look(OPEN, running, ann=leased(NOW_MS + 20_000)) == []
    assert look(FINISHED, replace(FAILED, state=states.DONE, code="Success"), replace(SENT, state=delivery.DELIVERED)) == []
    assert look(CLOSING, replace(UPLOADING, failures=2), now_ms=NOW_MS - 1, ann=queued(60_000)) == []


def test_failed_with_its_files_kept() -> None:
    """A replayable failure gives code, detail and command; without files it no longer counts."""
    (found,) = look(FINISHED, FAILED)
    assert (found.rule, found.of, found.why) == ("failed-kept", "ann/1", "FailedCosWrite: Refused (403).")
    assert f"`recorder replay {TASK_ID} --speaker=ann --n=1`" in found.next
    assert look(FINISHED, replace(FAILED, files_removed=True)) == []
    assert look(FINISHED, replace(FAILED, media_ms=0)) == []


def test_failed_with_nothing_in_a_session_that_is_open() -> None:
    """A failed capture counts as long as the room is live."""
    empty = replace(FAILED, media_ms=0, code="FailedRecording", detail="The UserSig has expired.")
    (found,) = look(OPEN, empty)
    assert (found.rule, "The UserSig has expired." in found.why) == ("failed-live", True)
    assert look(FINISHED, empty) == []
    assert look(OPEN, replace(empty, never_seen=True)) == []
    assert rules(look(OPEN, empty, replace(empty, n=2))) == [("failed-live", "ann/2")]


def test_a_publishing_speaker_without_media() -> None:
    """Three failed pulls count while callbacks report a track; a speaker who left, or was never seen, does not."""
    assert rules(look(OPEN, JOINING)) == [("no-media", "ann/1")]
    for other in (replace(JOINING, failures=2), replace(JOINING, present=None), replace(JOINING, present=False)):
        assert look(OPEN, other) == []


@pytest.mark.parametrize("state", [states.TRANSCODING, states.UPLOADING])
def test_tried_often(state: str) -> None:
    """Three consecutive failures of a transcode or upload count, with the last one's detail."""
    (found,) = look(FINISHED, replace(UPLOADING, state=state))
    assert (found.rule, "3 times in a row. No route to host." in found.why) == ("tried-often", True)
    assert found.next
    assert look(FINISHED, replace(UPLOADING, state=state, failures=2)) == []


def test_queued_and_not_taken() -> None:
    """A job of a recording or delivery that no worker takes counts after a minute."""
    calm = replace(UPLOADING, failures=0)
    assert look(FINISHED, calm, ann=queued(60_000)) == []
    (found,) = look(FINISHED, calm, ann=queued(60_001))
    assert (found.rule, found.of, found.why) == ("not-taken", "ann/1", "Its upload has been queued for 60 s: no worker takes it.")
    assert "recorder doctor" in found.next
    assert rules(look(FINISHED, replace(SENT, failures=0), sent=queued(61_000))) == [("not-taken", "#1")]


def test_a_lease_that_nobody_took_over() -> None:
    """An expired lease counts after a grace of some seconds, in which the sweeper acts."""
    calm = replace(JOINING, failures=0)
    assert look(OPEN, calm, ann=leased(NOW_MS - stuck.LEASE_GRACE_MS)) == []
    (found,) = look(OPEN, calm, ann=leased(NOW_MS - 300_000))
    assert (found.rule, found.why.startswith("The lease of its capture on node-1 ended 5 min ago")) == ("lease-over", True)


def test_closing_for_too_long() -> None:
    """A session that closes for longer than RESULT_WAIT counts, with its pending recordings."""
    calm = replace(UPLOADING, failures=0)
    (found,) = look(CLOSING, calm)
    assert (found.rule, found.of) == ("closing-long", "")
    assert "15 min" in found.why
    assert "ann/1 (Uploading)" in found.why
    assert look(CLOSING, calm, now_ms=NOW_MS - 1) == []


def test_results_that_are_not_taken() -> None:
    """A delivery refused three times, or failed, counts for KEEP_FAILED; only the newest revision's."""
    assert rules(look(FINISHED, SENT)) == [("refused-often", "#1")]
    assert look(FINISHED, replace(SENT, failures=2)) == []
    gone = replace(SENT, state=delivery.FAILED, detail="HTTP 410.")
    (found,) = look(FINISHED, gone)
    assert (found.rule, "HTTP 410." in found.why, "recorder show" in found.next) == ("not-delivered", True, True)
    assert look(FINISHED, gone, replace(SENT, revision=2, state=delivery.DELIVERED)) == []
    assert look(FINISHED, gone, now_ms=NOW_MS + POLICY.keep_failed_ms) == []


def test_every_rule_has_its_sentence() -> None:
    """Rule names are slugs for programs, meanings whole sentences for people."""
    for rule in (*stuck.SESSION_RULES, *stuck.RECORDING_RULES, *stuck.DELIVERY_RULES):
        assert rule.name.replace("-", "").isalpha()
        assert rule.meaning.endswith(".")


@pytest.mark.parametrize("state", [states.JOINING, states.RECORDING])
def test_pulls_that_fail_while_the_speaker_publishes(state: str) -> None:
    """A recording that has media loses some now as one without does: three failed pulls in a row count in both states."""
    losing = replace(JOINING, state=state, media_ms=9_000, detail="Refused (403).")
    (found,) = look(OPEN, losing)
    assert (found.rule, "3 pulls in a row" in found.why, "Refused (403)." in found.why) == ("no-media", True, True)
    assert look(CLOSING, losing, now_ms=NOW_MS - 1) == []


def test_files_on_a_node_that_is_away() -> None:
    """A recording that waits for the node of its files counts as soon as that node sends no heartbeat."""
    for state, job in ((states.TRANSCODING, states.WAITING), (states.UPLOADING, states.QUEUED)):
        waits = replace(UPLOADING, state=state, failures=0, detail="", job=model.Job(kind="upload", state=job, node="node-7"))
        parts = session_view.SessionParts(recordings=[waits])
        for alive, expected in (({"node-1"}, ["node-away"]), ({"node-1", "node-7"}, [])):
            found = stuck.findings(stuck.Snapshot(session=FINISHED, parts=parts, policy=POLICY, now_ms=NOW_MS, alive=alive))
            assert [f.rule for f in found] == expected, state
            assert all("node-7" in f.why and "node-7" in f.next for f in found)
    parked = model.Job(kind="transcode", state=states.WAITING)
    elsewhere = replace(UPLOADING, state=states.TRANSCODING, failures=0, detail="Segments are on node-9.", job=parked)
    assert rules(look(FINISHED, elsewhere)) == [("node-away", "ann/1")]
