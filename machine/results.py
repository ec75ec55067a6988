"""Results: a file's entry, a recording's result, a session's result.

Rules: pure. The fields and their meaning are contract. Equal facts give the same body, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from events import codec
from machine import coverage, model, states


def file_entry(recording: model.Recording) -> dict[str, Any]:
    """One entry of `Files`. A recording that is not final yet is `UploadPending`."""
    code = recording.code if recording.final else states.UPLOAD_PENDING
    _, message, status = states.OUTCOMES[code]
    output = recording.output if recording.url else None
    start_ms = output.start_ms if output and output.start_ms else recording.first_packet_ms
    end_ms = output.end_ms if output and output.end_ms else recording.last_packet_ms
    found = coverage.of(recording) if output else coverage.Coverage()
    told = recording.published
    return {
        "UserId": recording.speaker,
        "RecordFile": recording.url,
        "Status": status,
        "Message": message,
        "Code": code,
        "Detail": _detail(recording, code),
        "StartTime": codec.iso(start_ms) if start_ms else "",
        "EndTime": codec.iso(end_ms) if end_ms else "",
        "Duration": output.duration_ms / 1000 if output else 0,
        "Size": output.size_bytes if output else 0,
        "Crc64": output.crc64 if output else "",
        "Gaps": [{"At": at / 1000, "Duration": duration / 1000} for at, duration in found.gaps],
        "PublishedTime": codec.iso(told.first_ms) if told.first_ms else "",
        "LeftTime": codec.iso(told.left_ms) if told.left_ms else "",
        "Missing": found.missing_ms / 1000,
        "Anchors": [{"At": at / 1000, "Time": codec.iso(time)} for at, time in (output.anchors.points if output else ())],
        "ErrorMs": output.error_ms if output else 0,
    }


def file_entries(recording: model.Recording) -> list[dict[str, Any]]:
    """All entries of a recording. A delivered file is never withdrawn: a replay adds an entry if it delivers another file."""
    if not recording.delivered:
        return [file_entry(recording)]
    before = [
        file_entry(
            model.changed(recording, state=states.DONE, url=file.url, code=file.code, detail=file.detail, output=file.output)
        )
        for file in recording.delivered
        if file.url != recording.url
    ]
    return [*before, *([file_entry(recording)] if recording.url else [])]


def recording_result(session: model.Session, recording: model.Recording) -> tuple[str, dict[str, Any]]:
    """(event type, data) of a recording that has just become final."""
    type_ = states.OUTCOMES[recording.code][0]
    outcome = {"Speaker": recording.speaker, "N": recording.n, "Attempt": recording.attempt, "File": file_entry(recording)}
    return type_, {"TaskId": session.task_id, **_key(session), **outcome, **user_data(session)}


def recording_progress(session: model.Session, recording: model.Recording, at_ms: int, media_ms: int) -> dict[str, Any]:
    """The data of an event of machine/progress.py: at that time (Unix ms), with so much media on disk."""
    known = {"TaskId": session.task_id, **_key(session), "Speaker": recording.speaker, "N": recording.n}
    return {**known, "Time": codec.iso(at_ms), "MediaSeconds": media_ms / 1000, **user_data(session)}


def session_result(session: model.Session, recordings: Sequence[model.Recording]) -> dict[str, Any]:
    """The body of `session-finished` and of its delivery. A subscribed speaker who was never seen leaves no entry."""
    seen = sorted((r for r in recordings if not r.never_seen), key=lambda r: (r.opened_ms, r.speaker, r.n))
    files = [entry for r in seen for entry in file_entries(r)]
    extensions = {"TaskId": session.task_id, "Revision": session.revision, "EndReason": session.end_reason}
    return {**_key(session), "Files": files, **extensions, **user_data(session)}


def user_data(session: model.Session) -> dict[str, Any]:
    """The UserData of the start, under its name; nothing if it had none."""
    return {"UserData": json.loads(session.request.user_data)} if session.request.user_data else {}


def _key(session: model.Session) -> dict[str, str]:
    room = session.request.room
    return {
        "SdkAppId": str(room.sdk_app_id),
        "RoomId": str(room.room_id) if room.room_id else "",
        "StrRoomId": room.str_room_id,
        "UserId": session.request.user_id,
    }


def _detail(recording: model.Recording, code: str) -> str:
    if code != states.UPLOAD_PENDING:
        return recording.detail
    return f"The upload is being retried; a later revision reports its outcome. {recording.detail}".strip()
