"""Drawings and values of the page of one session: machines as the design has them, spans and gaps in their places, failures."""

from __future__ import annotations

import re

import pytest

from machine import job_key, model, session_view, states
from tests import examples, state_chart
from web import stuck, views
from web.console import charts, session_page

TASK_ID = "01HZY0000000000000000000AA"


def _segment(epoch: int, from_ms: int, to_ms: int, reason: str = "eof") -> session_view.SegmentView:
    return session_view.SegmentView(
        recording=job_key.RecordingKey(TASK_ID, "alice", 1),
        epoch=epoch,
        node="node-1",
        first_packet_ms=from_ms,
        last_packet_ms=to_ms,
        media_ms=to_ms - from_ms,
        size_bytes=125 * (to_ms - from_ms),
        reason=reason,
        number=epoch,
        until_ms=to_ms,
    )


@pytest.mark.parametrize("state", states.RECORDING_STATES)
def test_the_machine_is_drawn_as_designed(state: str) -> None:
    """Every allowed move has a line, and only these. The present state is lit, and what the rows prove of the path."""
    value = examples.recording(TASK_ID, "alice", job=None, state=state, media_ms=5)
    drawn = charts.of_recording(value, {("Recording", "Transcoding")})
    # The design allows a recording with media to fail at once; no row of the table does that.
    moves = (state_chart.RECORDING_EDGES | state_chart.REPLAY_EDGES) - {("", "Joining"), ("Recording", "Failed")}
    assert len(drawn.edges) == len(moves)
    assert [node.name for node in drawn.nodes if node.mark == "now"] == [state]
    done = {"Uploading"} if state == "Done" else set()
    assert {node.name for node in drawn.nodes if node.mark} == {"Joining", "Recording", "Transcoding", state} | done
    assert sum(edge.past for edge in drawn.edges) == 2 + len(done)
    numbers = [float(found) for edge in drawn.edges for found in re.findall(r"\d+(?:\.\d+)?", edge.line)]
    assert max(numbers) <= max(drawn.width, drawn.height)
    assert min(numbers) >= 0


def test_spans_and_gaps_are_in_their_places() -> None:
    """A segment begins and ends where its packets arrived, a growing one reaches to now, and a pause between two is a gap."""
    spans = charts.spans_of([_segment(1, 1_000, 3_000), _segment(2, 3_100, 5_000), _segment(3, 7_000, 7_500, "")], 10_000)
    bars = charts.clock(spans, 0, 10_000, 2_000)
    assert [(bar.span.kind, bar.x, bar.width) for bar in bars] == [
        ("media", 100.0, 200.0),
        ("media", 310.0, 190.0),
        ("gap", 500.0, 200.0),
        ("live", 700.0, 300.0),
    ]
    assert [(bar.span.kbps, bar.height) for bar in bars if bar.span.kbps] == [(1_000, charts.RATE_HEIGHT / 2)] * 3


def _entry(seq: int, event: str, note: str, to_state: str = "Joining") -> session_view.TimelineEntry:
    return session_view.TimelineEntry(
        seq=seq,
        at_ms=seq,
        owner=job_key.RecordingKey(TASK_ID, "alice", 1),
        event_type=event,
        from_state="Joining",
        to_state=to_state,
        note=note,
    )


def test_failures_are_told_apart() -> None:
    """Repeats are one line with their number. A retry that waits, a lost worker and a move to Failed are failures; an event that
    was ignored is none. The newest line comes first."""
    session = examples.session(TASK_ID)
    recording = examples.recording(TASK_ID, "alice", job=None, state="Failed")
    entries = [
        *(_entry(seq, "ffmpeg-exit", "capture waiting; 404") for seq in range(1, 4)),
        _entry(4, "worker-lost", "ignored: no such job is active in this state"),
        _entry(5, "user-publishing", "speaker present"),
        _entry(6, "stop", "no media", "Failed"),
    ]
    parts = session_view.SessionParts(recordings=[recording])
    snapshot = stuck.Snapshot(session=session, parts=parts, policy=model.Policy(), now_ms=session.opened_ms + 1_000)
    pages = views.SessionPages(recordings=[recording], segments=[], timeline=entries, results=[])
    page = session_page.page(snapshot, pages, {})
    assert [(line.value["Event"], line.value["Count"], line.failed) for line in page.lines] == [
        ("stop", 1, True),
        ("user-publishing", 1, False),
        ("worker-lost", 1, False),
        ("ffmpeg-exit", 3, True),
    ]
    (card,) = page.cards
    assert (card.failures, card.watchable, card.playable) == ([page.lines[0], page.lines[3]], False, False)
