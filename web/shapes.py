"""Sessions and recordings as JSON, with the contract's names. Pure. May import `machine` and `events`.

Rules: times are ISO 8601 in UTC, "" where there is none; no secret, and no address that may hold one, is ever in an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from events import codec
from machine import model, results, states
from web import advice, given

Json = dict[str, Any]


def summary(session: model.Session, recordings: Sequence[model.Recording]) -> Json:
    """A session on one line of the list; `Recordings` counts them by state."""
    counted = Counter(r.state for r in recordings if not r.awaited)
    return {
        **_head(session),
        "Recordings": {state: counted[state] for state in states.RECORDING_STATES if counted[state]},
    }


def whole(
    session: model.Session,
    recordings: Sequence[model.Recording],
    callbacks: Sequence[model.Callback],
    timeline: Iterable[given.Line],
    result_bodies: list[Json],
) -> Json:
    """A session with all that is known of it."""
    request = session.request
    return {
        **_head(session),
        "CosConfig": {"Region": request.region, "Bucket": request.bucket, "Path": request.path},
        "Callback": _origin(request.callback),
        "SubscribeUserIds": list(request.subscribe),
        "UnSubscribeUserIds": list(request.unsubscribe),
        "Warnings": list(session.warnings),
        "Next": advice.for_session(session),
        "Recordings": [recording(r) for r in recordings],
        "Callbacks": [_callback(c) for c in callbacks],
        "Timeline": [_line(line) for line in timeline],
        "Results": result_bodies,
    }


def recording(value: model.Recording) -> Json:
    """One recording: where it stands, why, and what to do next. `File` is its entry in the result, null until it has ended."""
    job = value.job
    return {
        "Speaker": value.speaker,
        "N": value.n,
        "State": value.state,
        "Capture": value.capture,
        "Job": {"Kind": job.kind, "State": job.state, "Node": job.node} if job else None,
        "Attempt": value.attempt,
        "Tries": value.tries,
        "Code": value.code,
        "Detail": value.detail,
        "Next": advice.for_recording(value),
        "StopRequested": value.stop_requested,
        "Present": value.present,
        "Awaited": value.awaited,
        "OpenedTime": _iso(value.opened_ms),
        "StartTime": _iso(value.first_packet_ms),
        "EndTime": _iso(value.last_packet_ms),
        "EndedTime": _iso(value.ended_ms),
        "MediaSeconds": value.media_ms / 1000,
        "FilesRemoved": value.files_removed,
        "File": results.file_entry(value) if value.final and value.code else None,
    }


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
    }


def _callback(value: model.Callback) -> Json:
    return {"Revision": value.revision, "State": value.state, "Tries": value.tries, "Detail": value.detail}


def _line(line: given.Line) -> Json:
    """A timeline line; `Of` is "" for the session, `speaker/n` for a recording, `#revision` for a result's delivery."""
    owner = line.owner[len(line.owner.split("/")[0].split("#")[0]) :]
    return {
        "Time": codec.iso(line.at_ms),
        "Of": owner.removeprefix("/"),
        "Event": line.event_type,
        "From": line.from_state,
        "To": line.to_state,
        "Note": line.note,
    }


def _origin(url: str) -> str:
    """Scheme and host of a URL: path, query and credentials of a callback address are often its secret."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an open bracket: nothing of it is safe to show
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…" if url else ""


def _iso(time_ms: int | None) -> str:
    return codec.iso(time_ms) if time_ms else ""
