"""The values of the page of one session: recordings with their drawings and attempts, the folded timeline, and what to do next.

Rule: pure. Every value is one of the API's (`web/views.py`), or follows from the same rows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from events import codec
from machine import job_key, model, session_view, states
from web import stuck, views
from web.console import charts

Json = dict[str, Any]

# Besides moves to Failed: what a worker reports when a job did not succeed.
_FAILURES = frozenset(("upload-failed", "callback-failed", "worker-lost"))
_RETRIES = ("capture waiting", "transcode waiting", "upload waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the timeline."""

    value: Json
    at_ms: int
    first_ms: int
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One recording: `value` is the API's, `failures` are the lines of what did not succeed, `next_ms` its next try (None: none
    waits)."""

    key: job_key.RecordingKey
    value: Json
    machine: charts.Machine
    bars: Sequence[charts.Bar]
    failures: Sequence[Line]
    next_ms: int | None
    watchable: bool
    playable: bool
    replayable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The whole page. `begin_ms` and `end_ms` are the ends of the clock, `most_kbps` the top of the bitrates."""

    session: model.Session
    value: Json
    machine: charts.Machine
    cards: Sequence[Card]
    lines: Sequence[Line]
    failures: Sequence[Line]
    replayable: bool
    begin_ms: int
    end_ms: int
    most_kbps: int


def page(snapshot: stuck.Snapshot, pages: views.SessionPages, progress: Mapping[job_key.RecordingKey, int]) -> Page:
    """All values of the page."""
    session, now_ms = snapshot.session, snapshot.now_ms
    value = views.details(snapshot, pages, progress)
    lines = [_line(each) for each in reversed(value["Timeline"])]
    begin_ms, end_ms = session.opened_ms, _end_ms(snapshot, pages)
    segments: dict[job_key.RecordingKey, list[session_view.SegmentView]] = defaultdict(list)
    for segment in pages.segments:
        segments[segment.recording].append(segment)
    stuck_ones = {finding["Of"] for finding in value["Stuck"]}
    spans = {
        each.key: charts.spans_of(segments[each.key], now_ms) or (charts.spans_of_file(each.output) if each.output else [])
        for each in pages.recordings
    }
    most_kbps = max((span.kbps for of in spans.values() for span in of), default=0)
    moves: dict[str, set[charts.Move]] = defaultdict(set)
    for entry in pages.timeline:
        if entry.to_state and entry.from_state != entry.to_state:
            moves[entry.owner.text].add((entry.from_state, entry.to_state))
    cards = [
        Card(
            key=each.key,
            value=shown,
            machine=charts.of_recording(each, moves[each.key.text]),
            bars=charts.clock(spans[each.key], begin_ms, end_ms, most_kbps),
            failures=[line for line in lines if line.failed and line.value["Of"] == f"{each.speaker}/{each.n}"],
            next_ms=pages.next_tries.get(each.key.text),
            watchable=each.state in states.CAPTURING and each.capture == states.LEASED,
            playable=each.state == states.DONE and bool(each.url),
            replayable=_may_be_replayed(each, stuck_ones),
        )
        for each, shown in zip(pages.recordings, value["Recordings"], strict=True)
    ]
    return Page(
        session=session,
        value=value,
        machine=charts.of_session(session),
        cards=cards,
        lines=lines,
        failures=[line for line in lines if line.failed],
        replayable="" in stuck_ones or any(_may_be_replayed(each, stuck_ones) for each in snapshot.parts.recordings),
        begin_ms=begin_ms,
        end_ms=end_ms,
        most_kbps=most_kbps,
    )


def _may_be_replayed(value: model.Recording, stuck_ones: Container[str]) -> bool:
    """Whether the page offers a replay: a recording that makes progress needs none."""
    return (value.state == states.FAILED and not value.files_removed) or f"{value.speaker}/{value.n}" in stuck_ones


def ms(time: str) -> int | None:
    """A time of the API as Unix ms; None for ""."""
    return round(datetime.fromisoformat(time).timestamp() * 1000) if time else None


def utc(at_ms: int) -> str:
    """A time (Unix ms) for a title, which no script changes."""
    return codec.iso(at_ms)


def as_json(value: Any) -> str:
    """A value as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def _end_ms(snapshot: stuck.Snapshot, pages: views.SessionPages) -> int:
    """The end of the clock: now while anything is captured, else the last media or the end of the session."""
    session = snapshot.session
    if session.state == states.OPEN or any(not segment.reason for segment in pages.segments):
        return snapshot.now_ms
    last = max((segment.last_packet_ms or 0 for segment in pages.segments), default=0)
    return max(last, session.closing_ms or session.opened_ms)


def _line(value: Json) -> Line:
    note, moved = value["Note"], value["From"] != value["To"]
    failed = (
        (moved and value["To"] == states.FAILED)
        or (value["Event"] in _FAILURES and value["Of"] != "")
        or any(each in note for each in _RETRIES)
    )
    return Line(
        value=value,
        at_ms=ms(value["Time"]) or 0,
        first_ms=ms(value["FirstTime"]) or 0,
        failed=failed and not note.startswith("ignored:"),
    )
