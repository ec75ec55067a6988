"""Drawings on the page of one session: the state machines from their own tables, and recordings on the session's wall clock.

Rule: pure geometry in the units of an SVG. The template draws it, and translates and escapes every word.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from machine import decision_table, model, recording, session, session_view, states

Move = tuple[str, str]

WIDTH = 1_000
"""Of a clock, which spans the whole session."""
RATE_HEIGHT = 40
# A shorter pause is jitter of the arrivals.
_LEAST_GAP_MS = 250
_LEAST_WIDTH = 1.5
_NODE_WIDTH, _NODE_HEIGHT, _STEP, _TOP, _BELOW = 96, 30, 132, 46, 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One state, at its middle. `mark` is now, past or ""."""

    name: str
    x: int
    y: int
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One allowed move: its line, the events that make it, and whether this machine made it."""

    line: str
    events: str
    past: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine with its present state."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    width: int
    height: int
    node_width: int = _NODE_WIDTH
    node_height: int = _NODE_HEIGHT


class Span(NamedTuple):
    """A part of a clock: media, live (while its segment grows) or a gap, with its mean bitrate in kbit/s."""

    kind: str
    from_ms: int
    to_ms: int
    kbps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A span as it is drawn. `height` is that of its bitrate."""

    span: Span
    x: float
    width: float
    height: float


def of_recording(value: model.Recording, moves: Collection[Move]) -> Machine:
    """The machine of a recording. What its row proves of its path is added to `moves`, of which old ones may be missing."""
    known = set(moves)
    if value.media_ms or value.first_packet_ms:
        known.add((states.JOINING, states.RECORDING))
    if value.output is not None:
        known |= {(states.RECORDING, states.TRANSCODING), (states.TRANSCODING, states.UPLOADING)}
    if value.state == states.DONE:
        known.add((states.UPLOADING, states.DONE))
    places = {name: (column, 0) for column, name in enumerate(states.RECORDING_STATES[:-1])} | {states.FAILED: (2, 1)}
    return _machine(recording.ROWS, places, value.state, known)


def of_session(value: model.Session) -> Machine:
    """The machine of a session, which has one path."""
    places = {name: (column, 0) for column, name in enumerate(states.SESSION_STATES)}
    at = states.SESSION_STATES.index(value.state)
    path = states.SESSION_STATES[: at + 1]
    return _machine(session.ROWS, places, value.state, set(itertools.pairwise(path)))


def spans_of(segments: Sequence[session_view.SegmentView], now_ms: int) -> list[Span]:
    """The segments of a recording in their order. A growing one reaches to `now_ms`."""
    return [
        Span("media", s.first_packet_ms, max(s.first_packet_ms, s.last_packet_ms or 0), kbps(s.size_bytes, s.media_ms))
        if s.reason
        else Span("live", s.first_packet_ms, max(s.first_packet_ms, now_ms), kbps(s.size_bytes, s.media_ms))
        for s in segments
        if s.first_packet_ms is not None
    ]


def spans_of_file(output: model.Output) -> list[Span]:
    """When the media of a finished file was live: its segments are deleted. The bitrate is that of the whole file."""
    return [Span("media", from_ms, to_ms, kbps(output.size_bytes, output.duration_ms)) for from_ms, to_ms in output.live]


def clock(spans: Sequence[Span], begin_ms: int, end_ms: int, most_kbps: int) -> list[Bar]:
    """One recording on the clock from `begin_ms` to `end_ms`, with the gaps between its spans. Bitrates are drawn as shares of
    `most_kbps`."""
    scale = WIDTH / max(1, end_ms - begin_ms)
    bars: list[Bar] = []
    last_ms = 0
    for span in spans:
        gap = [Span("gap", last_ms, span.from_ms, 0)] if last_ms and span.from_ms - last_ms > _LEAST_GAP_MS else []
        for each in (*gap, span):
            x, width = max(0.0, (each.from_ms - begin_ms) * scale), (each.to_ms - each.from_ms) * scale
            height = round(RATE_HEIGHT * each.kbps / max(1, most_kbps), 1)
            bars.append(Bar(span=each, x=round(x, 1), width=round(max(_LEAST_WIDTH, width), 1), height=height))
        last_ms = max(last_ms, span.to_ms)
    return bars


def kbps(size_bytes: int, media_ms: int) -> int:
    """The mean bitrate in kbit/s; 0 before it is known."""
    return round(size_bytes * 8 / media_ms) if media_ms else 0


def _machine(
    rows: Sequence[decision_table.DecisionRow], places: dict[str, tuple[int, int]], state: str, path: Collection[Move]
) -> Machine:
    visited = {name for move in path for name in move}
    at = {name: (_NODE_WIDTH // 2 + 4 + column * _STEP, _TOP + row * _BELOW) for name, (column, row) in places.items()}
    nodes = [
        Node(name=name, x=x, y=y, mark="now" if name == state else "past" if name in visited else "")
        for name, (x, y) in at.items()
    ]
    moves: dict[Move, list[str]] = {}
    for row in rows:
        for source in row.at if row.to else ():
            moves.setdefault((source, str(row.to)), []).append(row.on)
    edges = [
        Edge(line=_line(*at[source], *at[to]), events=", ".join(dict.fromkeys(events)), past=(source, to) in path)
        for (source, to), events in moves.items()
    ]
    # The path is drawn on top.
    edges.sort(key=lambda edge: edge.past)
    columns, levels = max(c for c, _ in places.values()), max(r for _, r in places.values())
    width, height = 2 * 4 + _NODE_WIDTH + columns * _STEP, _TOP + levels * _BELOW + _NODE_HEIGHT // 2 + 6
    return Machine(nodes=nodes, edges=edges, width=width, height=height)


def _line(x: int, y: int, to_x: int, to_y: int) -> str:
    """A straight line to a neighbor, an arc over the row for a move back, a line apart from its opposite between the rows."""
    half, rise = _NODE_WIDTH // 2, _NODE_HEIGHT // 2
    if y == to_y and to_x - x == _STEP:
        return f"M{x + half} {y}H{to_x - half - 5}"
    if y == to_y:
        bend = y - rise - 10 * (abs(to_x - x) // _STEP) - 12
        return f"M{x - 14} {y - rise}C{x - 24} {bend} {to_x + 24} {bend} {to_x + 14} {y - rise - 5}"
    if to_y > y:
        return f"M{x - 8} {y + rise}L{to_x + (x - to_x) // 8 - 8} {to_y - rise - 5}"
    return f"M{x + (to_x - x) // 8 + 8} {y - rise}L{to_x + 8} {to_y + rise + 5}"
