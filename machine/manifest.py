"""The manifest of a session: its result, and the segments that its files were made of. Pure; equal facts give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from events import codec
from machine import model, segments

Parts = Mapping[str, Sequence[segments.Segment]]
"""The segments of recordings, by the text of their keys."""


def body(result: str, recordings: Sequence[model.Recording], parts: Parts) -> bytes:
    """The content of the object: the result (JSON text) with `Recordings`, in the order of their opening."""
    seen = sorted((r for r in recordings if not r.never_seen), key=lambda r: (r.opened_ms, r.speaker, r.n))
    more = [
        {
            "UserId": r.speaker,
            "N": r.n,
            "Attempt": r.attempt,
            "RecordFile": r.url,
            "Segments": [_segment(s) for s in parts.get(r.key.text, ()) if s.media_ms],
        }
        for r in seen
    ]
    return json.dumps({**json.loads(result), "Recordings": more}, ensure_ascii=False, indent=1).encode()


def _segment(segment: segments.Segment) -> dict[str, Any]:
    return {
        "StartTime": codec.iso(segment.first_packet_ms) if segment.first_packet_ms else "",
        "EndTime": codec.iso(segment.last_packet_ms) if segment.last_packet_ms else "",
        "Duration": segment.media_ms / 1000,
        "Ended": segment.reason,
        "Anchors": [{"At": at / 1000, "Time": codec.iso(time)} for at, time in segment.anchors.points],
    }
