"""Drawings on the page of one session: the state machines from their own tables, and recordings on the session's wall clock.

Rule: pure geometry in the units of an SVG. The template draws it, and translates and escapes every word.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A part of a clock: a segment (media, or live while it grows) or a gap, with its bitrate in kbit/s and that one's height."""

    kind: str
    x: float
    width: float
    from_ms: int
    to_ms: int
    kbps: int = 0
    height: float = 0.0


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


def clock(segments: Sequence[session_view.SegmentView], begin_ms: int, end_ms: int, now_ms: int, most_kbps: int) -> list[Bar]:
    """One recording on the clock from `begin_ms` to `end_ms`: its segments in their order, and the gaps between them. A growing
    segment reaches to `now_ms`. Bitrates are drawn as shares of `most_kbps`."""
    scale = WIDTH / max(1, end_ms - begin_ms)
    bars: list[Bar] = []
    last_ms = 0

    def bar(kind: str, from_ms: int, to_ms: int, kbps: int = 0) -> Bar:
        width = max(_LEAST_WIDTH, (to_ms - from_ms) * scale)
        height = round(RATE_HEIGHT * kbps / max(1, most_kbps), 1)
        x = round((from_ms - begin_ms) * scale, 1)
        return Bar(kind=kind, x=x, width=round(width, 1), from_ms=from_ms, to_ms=to_ms, kbps=kbps, height=height)

    for segment in segments:
        if segment.first_packet_ms is None:
            continue
        first_ms = max(segment.first_packet_ms, begin_ms)
        if last_ms and first_ms - last_ms > _LEAST_GAP_MS:
            bars.append(bar("gap", last_ms, first_ms))
        last_ms = max(first_ms, segment.last_packet_ms or first_ms) if segment.reason else max(first_ms, now_ms)
        bars.append(bar("media" if segment.reason else "live", first_ms, last_ms, kbps_of(segment)))
    return bars


def kbps_of(segment: session_view.SegmentView) -> int:
    """The mean bitrate of a segment, in kbit/s; 0 before its size is known."""
    return round(segment.size_bytes * 8 / segment.media_ms) if segment.media_ms else 0


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
