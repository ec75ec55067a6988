"""Sessions and recordings as JSON, with the contract's names. Pure.

Rules: times are ISO 8601 in UTC, "" for none. No answer contains a secret, or an address that can contain one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from events import codec, requests
from machine import attention, coverage, delivery, job_key, model, results, session_view, start_warnings, states
from web import next_steps, stuck

Json = dict[str, Any]


def summary(session: model.Session, counted: Mapping[str, int], found: Sequence[stuck.StuckFinding] = ()) -> Json:
    """One session of the list. `Recordings` has their number in each state, `Stuck` the reasons that need attention."""
    return {
        **_head(session),
        "Recordings": {state: counted[state] for state in states.RECORDING_STATES if counted.get(state)},
        "Stuck": [_finding(f) for f in found],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPages:
    """The parts of a session that an answer shows, each at most one page, with the cursors of the pages after them ("": none)."""

    recordings: Sequence[model.Recording]
    segments: Sequence[session_view.SegmentView]
    timeline: Sequence[session_view.TimelineEntry]
    results: Sequence[Json]
    next_tries: Mapping[str, int] = field(default_factory=dict)
    recordings_next: str = ""
    timeline_next: str = ""
    results_next: str = ""


def details(snapshot: stuck.Snapshot, pages: SessionPages, progress: Mapping[job_key.RecordingKey, int]) -> Json:
    """One session with its parts. `progress` is the media (ms) of the captures that run in this process."""
    session = snapshot.session
    request = session.request
    by_recording: dict[job_key.RecordingKey, list[session_view.SegmentView]] = defaultdict(list)
    for segment in pages.segments:
        by_recording[segment.recording].append(segment)
    return {
        **_head(session),
        "CosConfig": {"Region": request.region, "Bucket": request.bucket, "Path": request.path} | request.attributes.given(),
        "Callback": requests.origin(request.callback),
        "SubscribeUserIds": list(request.subscribe),
        "UnSubscribeUserIds": list(request.unsubscribe),
        "CallbackEvents": list(request.callback_events),
        "Warnings": start_warnings.holding(session, pages.recordings, snapshot.parts.deliveries),
        "Next": next_steps.for_session(session),
        "Stuck": [_finding(f) for f in stuck.findings(snapshot)],
        "Recordings": [recording(session, r, by_recording[r.key], progress.get(r.key, 0)) for r in pages.recordings],
        "RecordingsNext": pages.recordings_next,
        "Callbacks": [_delivery(d, pages.next_tries.get(d.key.text)) for d in snapshot.parts.deliveries],
        "Manifest": next((_manifest(m, pages.next_tries.get(m.key.text)) for m in snapshot.parts.manifests), None),
        "Timeline": timeline(pages.timeline),
        "TimelineNext": pages.timeline_next,
        "Results": list(pages.results),
        "ResultsNext": pages.results_next,
    }


def recording(
    session: model.Session, value: model.Recording, segments: Sequence[session_view.SegmentView], live_ms: int = 0
) -> Json:
    """One recording: its state, the reason, and the next step. `File` is its entry in the result, null until it has ended.
    `segments` are its newest. `live_ms` is the media of the capture that runs in this process."""
    job = value.job
    captured = [_segment(s, value, live_ms) for s in segments]
    older_ms = segments[0].until_ms - segments[0].media_ms if segments else 0
    media_s = max(value.media_ms / 1000, older_ms / 1000 + sum(s["MediaSeconds"] for s in captured))
    return {
        "Speaker": value.speaker,
        "N": value.n,
        "State": value.state,
        "Capture": value.capture,
        "Job": {"Kind": job.kind, "State": job.state, "Node": job.node} if job else None,
        "Attempt": value.attempt,
        "Tries": value.failures,
        "Code": value.code,
        "Detail": value.detail,
        "Next": next_steps.for_recording(value, session),
        "StopRequested": value.stop_requested,
        "Present": value.present,
        "Awaited": value.never_seen,
        "OpenedTime": _iso(value.opened_ms),
        "StartTime": _iso(value.first_packet_ms),
        "EndTime": _iso(value.last_packet_ms),
        "EndedTime": _iso(value.ended_ms),
        "MediaSeconds": round(media_s, 3),
        "FilesRemoved": value.files_removed,
        "Segments": captured,
        "SegmentsOmitted": segments[0].number - 1 if segments else 0,
        "Gaps": _gaps(value, segments, older_ms),
        "File": results.file_entry(value) if value.final and value.code else None,
    }


def timeline(entries: Sequence[session_view.TimelineEntry]) -> list[Json]:
    """The lines of a timeline, oldest first. Lines that say the same of the same owner become one, in the place of the last of
    them, unless the owner moved to another state in between."""
    moves: dict[str, int] = defaultdict(int)
    groups: dict[tuple[Any, ...], list[session_view.TimelineEntry]] = {}
    for entry in entries:
        owner = entry.owner.text
        if entry.to_state and entry.from_state != entry.to_state:
            moves[owner] += 1
        key = (owner, moves[owner], entry.event_type, entry.from_state, entry.to_state, entry.note)
        groups.setdefault(key, []).append(entry)
    return [_timeline_line(group) for group in sorted(groups.values(), key=lambda group: group[-1].seq)]


def result(value: session_view.PublishedResult) -> Json:
    """One message to subscribers."""
    return {
        "Cursor": value.cursor,
        "Id": value.id,
        "Type": value.type,
        "Time": value.time,
        "Subject": value.subject,
        "Data": dict(value.data),
    }


def _segment(value: session_view.SegmentView, owner: model.Recording, live_ms: int) -> Json:
    live = not value.reason and value.epoch == owner.epoch and owner.capture == states.LEASED
    return {
        "Epoch": value.epoch,
        "Node": value.node,
        "StartTime": _iso(value.first_packet_ms),
        "EndTime": _iso(value.last_packet_ms),
        "MediaSeconds": max(value.media_ms, live_ms if live else 0) / 1000,
        "Size": value.size_bytes,
        "EndedBy": value.reason,
        "Live": live,
    }


def _gaps(value: model.Recording, segments: Sequence[session_view.SegmentView], media_ms: int) -> list[Json]:
    """The gaps of the finished file; before it exists, the times between these segments, which `media_ms` of media precede."""
    if value.output is not None:
        return [{"At": at / 1000, "Duration": duration / 1000} for at, duration in coverage.of(value).gaps]
    found: list[Json] = []
    last_ms = 0
    for segment in (s for s in segments if s.first_packet_ms):
        first_ms = segment.first_packet_ms or 0
        if last_ms and first_ms > last_ms:
            found.append({"At": media_ms / 1000, "Duration": (first_ms - last_ms) / 1000})
        media_ms += segment.media_ms
        last_ms = max(last_ms, segment.last_packet_ms or first_ms)
    return found


def _finding(value: stuck.StuckFinding) -> Json:
    return {"Rule": value.rule, "Of": value.of, "Why": value.why, "Next": value.next}


def needed(value: attention.Attention) -> Json:
    """One thing that needs attention beyond single sessions."""
    since = _iso(value.since_ms or None)
    return {"Cause": value.cause, "Subject": value.subject, "Since": since, "Why": value.why, "Next": value.next}


def _head(session: model.Session) -> Json:
    room = session.request.room
    return {
        "TaskId": session.task_id,
        "State": session.state,
        "EndReason": session.end_reason,
        "SdkAppId": str(room.sdk_app_id),
        "RoomId": str(room.room_id) if room.room_id else "",
        "StrRoomId": room.str_room_id,
        "UserId": session.request.user_id,
        "Mode": session.request.mode,
        "OpenedTime": _iso(session.opened_ms),
        "ClosingTime": _iso(session.closing_ms),
        "FinishedTime": _iso(session.finished_ms),
        "Revision": session.revision,
        "UserData": results.user_data(session).get("UserData"),
    }


def _delivery(value: model.Delivery, next_ms: int | None) -> Json:
    """The delivery of one revision. `next_ms` is the time of its next post."""
    return {
        "Revision": value.revision,
        "Host": urlsplit(value.url).netloc,
        "State": value.state,
        "Tries": value.failures,
        "Detail": value.detail,
        "Attempts": max(value.posts, value.failures),
        "LastTime": _iso(value.tried_ms),
        "NextTime": _iso(next_ms),
        "Answer": _answer(value),
    }


def _manifest(value: model.Delivery, next_ms: int | None) -> Json:
    """The newest manifest. `next_ms` is the time of its next attempt."""
    return {
        "Revision": value.revision - model.MANIFESTS_FROM,
        "State": value.state,
        "Detail": value.detail,
        "Attempts": max(value.posts, value.failures),
        "LastTime": _iso(value.tried_ms),
        "NextTime": _iso(next_ms),
    }


def _answer(value: model.Delivery) -> str:
    """The answer of the receiver, in words."""
    if value.state == delivery.DELIVERED:
        return "It accepted the result."
    if value.state == delivery.CANCELLED:
        return "It is not posted any more: a newer revision took its place."
    return value.detail or "It was not posted yet."


def _timeline_line(entries: Sequence[session_view.TimelineEntry]) -> Json:
    """`Of` is "" for the session, `speaker/n` for a recording, `#revision` for a result's delivery."""
    entry = entries[-1]
    return {
        "Time": codec.iso(entry.at_ms),
        "Of": entry.owner.text.removeprefix(entry.owner.task_id).removeprefix("/"),
        "Event": entry.event_type,
        "From": entry.from_state,
        "To": entry.to_state,
        "Note": entry.note,
        "Count": len(entries),
        "FirstTime": codec.iso(entries[0].at_ms),
    }


def _iso(time_ms: int | None) -> str:
    return codec.iso(time_ms) if time_ms else ""
