"""Conversion of rows to values and back."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from events import object_attributes, requests
from machine import alignment, model, published, segments, states

# Fields of a recording whose columns kept an older name. The column `attempt` counts from 1, the field `replays` from 0.
RENAMED = {
    "failures": "tries",
    "publish_pending": "called",
    "never_seen": "awaited",
    "stage_started_ms": "step_from_ms",
}
_SEPARATE = ("job", "output", "published", "version", "replays", "delivered")
RECORDING_COLUMNS = {f.name: RENAMED.get(f.name, f.name) for f in dataclasses.fields(model.Recording) if f.name not in _SEPARATE}
DELIVERY_COLUMNS = {
    name: RENAMED.get(name, name)
    for name in ("task_id", "revision", "url", "body", "state", "version", "epoch", "failures", "posts", "tried_ms", "detail")
}
SESSION_FIELDS = (
    "state",
    "opened_ms",
    "closing_ms",
    "finished_ms",
    "end_reason",
    "revision",
    "idle_from_ms",
    "published",
    "live",
    "uploading",
    "present",
    "key_id",
    "user_pulls",
    "events_posted",
)

SEGMENT_FIELDS = tuple(f.name for f in dataclasses.fields(segments.Segment))


def anchors_text(value: alignment.Anchors) -> str:
    """Anchors for their column."""
    return dumps(value.to_json()) if value.points else ""


def anchors(text: str) -> alignment.Anchors:
    """Anchors from their column."""
    return alignment.Anchors.from_json(json.loads(text)) if text else alignment.NO_ANCHORS


def dumps(value: object) -> str:
    """JSON text for a column."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def recording_row(recording: model.Recording) -> dict[str, Any]:
    """All columns of a recording."""
    row = {column: getattr(recording, name) for name, column in RECORDING_COLUMNS.items()}
    output = recording.output
    row["id"] = recording.key.text
    row["version"] = recording.version
    row["attempt"] = recording.attempt
    row["output"] = dumps(output.to_json()) if output else None
    row["published"] = "" if recording.published == published.UNKNOWN else dumps(recording.published.to_json())
    row["delivered"] = dumps([file.to_json() for file in recording.delivered]) if recording.delivered else ""
    row["partial"] = output is not None and not output.whole
    return row


def recording(row: Mapping[str, Any]) -> model.Recording:
    """A recording from its row with its present job (store/jobs.py)."""
    values = {name: row[column] for name, column in RECORDING_COLUMNS.items()}
    values["replays"] = row["attempt"] - 1
    output = model.Output.from_json(json.loads(row["output"])) if row["output"] else None
    told = published.Published.from_json(json.loads(row["published"])) if row["published"] else published.UNKNOWN
    files = json.loads(row["delivered"]) if row["delivered"] else []
    delivered = tuple(model.DeliveredFile.from_json(file) for file in files)
    parts: dict[str, Any] = {"output": output, "published": told, "delivered": delivered, "job": _job(row)}
    return model.Recording(**values, version=row["version"], **parts)


def session_row(session: model.Session) -> dict[str, Any]:
    """All columns of a session; of the callback URL only the origin."""
    request = dataclasses.replace(session.request, callback=requests.origin(session.request.callback))
    body = dataclasses.asdict(request)
    if request.attributes == object_attributes.NONE:
        del body["attributes"]  # nodes of 0.1.0 read none
    if not request.manifest:
        del body["manifest"]  # nor this
    return session_columns(session) | {
        "task_id": session.task_id,
        "sdk_app_id": request.room.sdk_app_id,
        "room_kind": request.room.kind,
        "room": request.room.name,
        "user_id": request.user_id,
        "user_data": body.pop("user_data"),
        "callback_events": dumps(body.pop("callback_events")),
        "request": dumps(body),
    }


@functools.lru_cache(maxsize=1024)
def _request(text: str, user_data: str, callback_events: str) -> requests.StartRequest:
    """A request from its columns. A session's never changes, and each of its events reads it."""
    body = json.loads(text)
    room = requests.Room(**body.pop("room"))
    subscribe, unsubscribe = (tuple(body.pop(name)) for name in ("subscribe", "unsubscribe"))
    later: dict[str, Any] = {"user_data": user_data, "callback_events": tuple(json.loads(callback_events))}
    later["attributes"] = object_attributes.ObjectAttributes(**body.pop("attributes", {}))
    return requests.StartRequest(room=room, subscribe=subscribe, unsubscribe=unsubscribe, **later, **body)


@functools.lru_cache(maxsize=1024)
def _warnings(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def session(row: Mapping[str, Any]) -> model.Session:
    """A session from its row."""
    return model.Session(
        task_id=row["task_id"],
        request=_request(row["request"], row["user_data"], row["callback_events"]),
        version=row["version"],
        warnings=_warnings(row["warnings"]),
        **{name: row[name] for name in SESSION_FIELDS},
    )


def session_columns(session: model.Session) -> dict[str, Any]:
    """The columns of a session that change."""
    warnings = dumps(session.warnings) if session.warnings else "[]"
    return {"version": session.version, "warnings": warnings} | {name: getattr(session, name) for name in SESSION_FIELDS}


def segment(row: Mapping[str, Any]) -> segments.Segment:
    """A segment from its row."""
    values = {name: row[name] for name in SEGMENT_FIELDS}
    return segments.Segment(**{**values, "anchors": anchors(row["anchors"])})


def delivery(row: Mapping[str, Any]) -> model.Delivery:
    """A delivery from its row with its present job (store/jobs.py)."""
    values: dict[str, Any] = {name: row.get(column, "") for name, column in DELIVERY_COLUMNS.items()}
    return model.Delivery(**values, job=_job(row))


def delivery_row(delivery: model.Delivery) -> dict[str, Any]:
    """All columns of a delivery; only the origin of its URL."""
    row = {column: getattr(delivery, name) for name, column in DELIVERY_COLUMNS.items()}
    return row | {"url": requests.origin(delivery.url)}


def _job(row: Mapping[str, Any]) -> model.Job | None:
    if row["job_owner"] is None or row["job_state"] == states.ENDED:
        return None
    return model.Job(kind=row["job_kind"], state=row["job_state"], node=row["job_node"])
