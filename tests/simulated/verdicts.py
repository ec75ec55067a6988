"""Verdicts on the end of a history, written by hand and independent of the machines.

`true`      for every history: everything has ended, once; results match the rows; all captured media is in the file.
`told`      where callbacks arrive almost in order: published time − media in the file − `Missing` is 0 within half a second.
`same`      for rough faults: the same recordings in the same states with the same codes, the same entries, the same end of the
            session. If nothing was pending when the result was due, also the same number of revisions.
`excused`   for lost and late callbacks, where the end may differ: a session whose end is not reported ends by its own deadlines;
            a speaker without a callback in time is not recorded; a speaker who was away has one recording or two. Never allowed:
            a speaker who did not publish, an end without a cause, media that is in no file.
"""

from __future__ import annotations

import json
from typing import Any

from machine import model
from tests import engines, state_chart
from tests.simulated import nodes, script
from tests.simulated.world import World

# A worker that dies may lose less than this.
LOST_WITH_WORKER_MS = 1_000
# Missing time up to this is the delay of callbacks and clocks, once for each span.
UNTOLD_MS = 500
# Callbacks that are later than this may change places.
TRTC_ORDER_MS = 200
BY_DEADLINE = ("Idle", "MaxDuration", "NobodyPublished")


def of(world: World) -> dict[str, Any]:
    """The end as users see it."""
    tables = world.store.tables
    last: dict[str, Any] = {}
    for (task_id, _), body in tables.results.items():
        last[task_id] = json.loads(body)
    return {
        "sessions": [(s.state, s.end_reason) for s in tables.sessions.values()],
        "recordings": sorted((r.speaker, r.n, r.state, _outcome(r.code)) for r in tables.recordings.values() if not r.never_seen),
        "files": sorted(
            (f["UserId"], _outcome(f["Code"]), bool(f["RecordFile"])) for body in last.values() for f in body["Files"]
        ),
        "revisions": len(tables.results) if _undisturbed_result(world) else 0,
    }


def _outcome(code: str) -> str:
    """Faults cost media, so a file may be `Partial` that is whole without them."""
    return "Success" if code == "Partial" else code


def told(world: World) -> None:
    """Each second in which a speaker published while the session recorded is in the file, or in `Missing`."""
    tables = world.store.tables
    if world.script.blind or world.profile.trtc_late_ms > TRTC_ORDER_MS or world.profile.lost or world.script.replay:
        return
    for recording in tables.recordings.values():
        alone = sum(r.task_id == recording.task_id and r.speaker == recording.speaker for r in tables.recordings.values()) == 1
        if recording.state != "Done" or recording.output is None or not alone:
            continue
        session = tables.sessions[recording.task_id]
        closed_ms = session.closing_ms or 0
        spans = [(max(a, session.opened_ms), min(b, closed_ms)) for a, b in world.published.get(recording.speaker, [])]
        spans = [(a, b) for a, b in spans if b > a]
        media_ms = sum(max(0, min(b, d) - max(a, c)) for a, b in spans for c, d in recording.output.live)
        body = json.loads(tables.results[session.task_id, session.revision])
        (entry,) = [f for f in body["Files"] if f["UserId"] == recording.speaker]
        rest_ms = sum(b - a for a, b in spans) - media_ms - entry["Missing"] * 1000
        most_ms = UNTOLD_MS * (len(spans) + len(recording.output.live))
        assert abs(rest_ms) <= most_ms, f"{recording.key}: {rest_ms} ms are neither in the file nor in Missing ({spans})"
        lacks_more = entry["Missing"] * 1000 > max(2_000, 0.02 * sum(b - a for a, b in spans)) + most_ms
        assert entry["Code"] == "Partial" or not lacks_more, f"{recording.key} is {entry['Code']}, and lacks {entry['Missing']} s"


def _undisturbed_result(world: World) -> bool:
    return not (world.script.outages or world.script.replay)


def true(world: World) -> None:
    """Everything has ended, once, and the results match the rows."""
    tables = world.store.tables
    assert {s.state for s in tables.sessions.values()} <= {"Finished"}, "a session is stuck"
    assert {r.state for r in tables.recordings.values()} <= set(state_chart.FINAL), "a recording is stuck"
    assert {row.state for row in tables.jobs.values()} <= {"ended"}, "a job is left"
    failed = {str(r.key) for r in tables.recordings.values() if r.state == "Failed"}
    assert set(tables.deadlines) == {(id_, "keep") for id_ in failed}, "deadlines are left"
    assert not tables.unsent
    _results(world)
    _callbacks(world)
    for recording in tables.recordings.values():
        _recording(world, recording)
    for (owner, epoch), media_ms in world.reported_media.items():
        kept_ms = tables.segments[str(owner), epoch]["media_ms"]
        assert kept_ms >= media_ms, f"media that epoch {epoch} of {owner} reported is missing"


def predicted(world: World) -> None:
    """A roomy script without faults ends as its acts predict."""
    outer, end = world.script, of(world)
    recorded = [speaker for speaker in outer.speakers if outer.records(speaker)]
    by_deadline = "Idle" if recorded else "NobodyPublished"
    reasons = {"stop": "Stopped", "destroy": "RoomDestroyed", "remove": "UserRemoved", "max": "MaxDuration", "idle": by_deadline}
    reason = by_deadline if outer.blind and outer.ends_by == "destroy" else reasons[outer.ends_by]
    assert end["sessions"] == [("Finished", reason)], f"{end['sessions']} instead of {reason}"
    wanted = []
    for speaker in recorded:
        code = "FailedTranscode" if speaker in outer.bad and not outer.cured_ms else "Success"
        code = "FailedCosWrite" if outer.cured_ms and not outer.replay else code
        state = "Done" if code == "Success" else "Failed"
        wanted += [(speaker, n, state, code) for n in range(1, 2 + outer.long_aways[speaker])]
    assert end["recordings"] == wanted, f"{end['recordings']} instead of {wanted}"


def _results(world: World) -> None:
    tables = world.store.tables
    sent: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for type_, body in world.results:
        if type_ == "session-finished":
            result = json.loads(body)
            key = (result["data"]["TaskId"], result["data"]["Revision"])
            sent.setdefault(key, set()).add((result["id"], json.dumps(result["data"])))
    assert {key: len(bodies) for key, bodies in sent.items()} == dict.fromkeys(tables.results, 1), "one result per revision"
    for session in tables.sessions.values():
        body = json.loads(tables.results[session.task_id, session.revision])
        assert body["EndReason"] == session.end_reason
        of_session = [r for r in tables.recordings.values() if r.task_id == session.task_id and not r.never_seen]
        entries = sorted((f["UserId"], f["Code"], f["RecordFile"]) for f in body["Files"])
        told = [(r.speaker, "Success", d.url) for r in of_session for d in r.delivered if d.url != r.url]
        told += [(r.speaker, r.code, r.url) for r in of_session if r.url or not r.delivered]
        assert entries == sorted(told), "the last result does not match the rows"
        assert all((f["Message"], f["Status"]) == state_chart.CODES[f["Code"]] for f in body["Files"])


def _callbacks(world: World) -> None:
    tables = world.store.tables
    asked = {s.task_id for s in tables.sessions.values() if s.request.callback}
    manifests = [c for c in tables.callbacks.values() if c.is_manifest]
    callbacks = [c for c in tables.callbacks.values() if not c.is_manifest]
    assert {(c.task_id, c.revision) for c in callbacks} == {key for key in tables.results if key[0] in asked}
    assert {c.task_id for c in manifests} == {s.task_id for s in tables.sessions.values() if s.request.manifest}
    for manifest in manifests:
        last = manifest.revision == model.MANIFESTS_FROM + tables.sessions[manifest.task_id].revision
        assert manifest.state in (("delivered",) if last else ("delivered", "cancelled")), f"{manifest.key} is {manifest.state}"
    for callback in callbacks:
        last = tables.sessions[callback.task_id].revision == callback.revision
        assert callback.state == "delivered" or not last, f"{callback.key} is {callback.state}, although the receiver answers"
        assert world.received.get(callback.key, {callback.body}) == {callback.body}, "two bodies under one id"


def _recording(world: World, recording: Any) -> None:
    held = {e for e, ms in nodes.on_disk(world, recording.key).items() if ms > LOST_WITH_WORKER_MS}
    match recording.code:
        case "Success" | "Partial":
            assert held <= world.objects[recording.key], f"{recording.key}: segments {held} are not all in the object"
        case "FailedRecording":
            assert not held or recording.attempt > 1, f"{recording.key}: media is on disk, and the result is 录制失败"
        case "FailedTranscode":
            assert recording.speaker in world.script.bad, f"{recording.key}: its file could be transcoded"
        case "FailedCosWrite":
            assert world.script.cured_ms, f"{recording.key}: COS would have taken it"
    assert not (recording.never_seen and held), f"{recording.key} was seen, and leaves no entry"


def same(ordered: dict[str, Any], disturbed: dict[str, Any]) -> None:
    """The history with faults ended like the one without."""
    for what, end in ordered.items():
        assert disturbed[what] == end, f"{what}: {disturbed[what]} instead of {end}"


def excused(ordered: dict[str, Any], world: World) -> None:
    """Only the differences that lost or late callbacks excuse."""
    end = of(world)
    (_, reason), (_, ordered_reason) = end["sessions"][0], ordered["sessions"][0]
    asked = {"stop": "Stopped", "destroy": "RoomDestroyed", "remove": "UserRemoved"}.get(world.script.ends_by)
    by_deadline = BY_DEADLINE if world.profile.lost else ("Idle", "NobodyPublished")
    assert reason in (ordered_reason, asked, *by_deadline), f"it ended by {reason} without a cause"
    assert len(end["sessions"]) == len(ordered["sessions"])
    published = {act.about[0] for act in world.script.acts if act.name == "switch_on"} | set(world.script.subscribe)
    there = {speaker for speaker, _, _, _ in end["recordings"]}
    assert there <= published, f"{there - published} never published"
    for speaker in world.script.speakers:
        if _must_be_recorded(world, speaker):
            assert speaker in there, f"{speaker} had a callback in time and was not recorded"


def _must_be_recorded(world: World, speaker: str) -> bool:
    """Whether a callback came while the session was open and the speaker stayed for a minute after it."""
    outer = world.script
    closed_ms = min((s.closing_ms or 0 for s in world.store.tables.sessions.values()), default=0)
    if not outer.records(speaker) or not outer.roomy:
        return False
    mine = [a for a in outer.acts if a.about[:1] == (speaker,)]
    for at_ms in world.heard.get(speaker, []):
        since_ms = at_ms - engines.START_MS
        gone = [a.at_ms for a in mine if a.name in ("leave", "switch_off") and a.at_ms >= since_ms - 61_000]
        until_ms = min([*gone, closed_ms - engines.START_MS, *([outer.end_ms] if outer.end_ms else [])])
        if (
            not world.profile.deaths
            and not world.profile.freezes
            and since_ms >= script.START_MS
            and until_ms - since_ms > 60_000
        ):
            kinds = [a.about[1] for a in mine if a.name == "switch_on" and a.at_ms <= since_ms]
            if set(kinds) == {"audio", "video"} or set(kinds) & set(script.WANTED[outer.mode]):
                return True
    return False
