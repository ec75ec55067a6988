"""Read-only views of a session: its timeline, segments, jobs and published results, as the database has them.

Rule: views are for operators and programs that watch; no decision reads them. `store.queries` fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from machine import job_key, model


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """The sessions of a list; a field that is "" or 0 selects all. `speaker` and `code` are of one recording, `node` holds a job
    of the session now. `since_ms` and `until_ms` (Unix ms) bound the opening. `maybe_stuck` leaves out sessions that surely
    need no attention, `undelivered` those whose newest result was not given up."""

    state: str = ""
    sdk_app_id: int = 0
    room: str = ""
    user_id: str = ""
    speaker: str = ""
    node: str = ""
    code: str = ""
    since_ms: int = 0
    until_ms: int = 0
    maybe_stuck: bool = False
    undelivered: bool = False


EVERY_SESSION = SessionFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One entry of a session's journal; `seq` orders the entries of a session."""

    seq: int
    at_ms: int
    owner: job_key.OwnerKey
    event_type: str
    from_state: str
    to_state: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentView:
    """One FLV file of a recording. `reason` tells why its capture ended; it is "" while the capture runs. `number` counts the
    recording's segments from 1, and `until_ms` is the media of all of them up to the end of this one."""

    recording: job_key.RecordingKey
    epoch: int
    node: str
    first_packet_ms: int | None
    last_packet_ms: int | None
    media_ms: int
    size_bytes: int
    reason: str
    number: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A queued or leased job. Unix ms: `since_ms` of its last journal entry (queued), `lease_until_ms` (leased)."""

    kind: str
    state: str
    node: str
    since_ms: int
    lease_until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParts:
    """The recordings of a session, the deliveries of its results, and their queued or leased jobs by owner. `manifests` has the
    newest one, if there is any."""

    recordings: list[model.Recording] = field(default_factory=list)
    deliveries: list[model.Delivery] = field(default_factory=list)
    manifests: list[model.Delivery] = field(default_factory=list)
    jobs: dict[job_key.JobKey, JobView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """One message to subscribers. `cursor` is the place behind it: reading goes on from there."""

    cursor: str
    id: str
    type: str
    time: str
    subject: str
    data: dict[str, Any]
