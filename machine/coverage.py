"""Coverage: how much of a speaker's published time a finished file has, and why the rest is missing.

Rule: pure. `Partial` means that the file lacks more than max(2 s, 2 %) of the time in which the speaker was known to publish,
that media which a capture noted is lost, or that a track could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass

from events import codec
from machine import model, published
from machine.reasons import Reason

MOST_MISSING_MS = 2_000
MOST_MISSING_SHARE = 0.02
# Missing time at an edge: less is the delay of callbacks and clocks. Inside: less is the jitter of arrivals.
EDGE_MS = 500
INSIDE_MS = 250
# A pull that ended shortly before a gap belongs to it.
_NEAR_MS = 2_000
_SENTENCES = {
    Reason.REFUSED: "The server refused the pulls from {0} to {1}.",
    Reason.REFUSED_FOR_GOOD: "The server refused the UserSig or the account from {0} to {1}.",
    Reason.NO_MEDIA: "The pulls brought no media from {0} to {1}.",
    Reason.EOF: "The server ended the stream, and no media came from {0} to {1}.",
    Reason.STALLED: "The stream stalled, and no media came from {0} to {1}.",
    Reason.ERROR: "The pulls failed from {0} to {1}.",
    Reason.WORKER_LOST: "The worker of the capture was lost: no media from {0} to {1}.",
    Reason.NODE_STOPPING: "The node of the capture stopped: no media from {0} to {1}.",
    Reason.DISK_FULL: "The disk was full from {0} to {1}.",
    Reason.SPOOL_LOST: "The spool could not be written from {0} to {1}.",
}
_UNKNOWN = "No media was captured from {0} to {1}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The judgement of one file. `gaps`: (position, ms missing), those at the edges included; `missing_ms`: published time that
    the file lacks; `cause`: one sentence in English, "" if nothing is missing."""

    gaps: tuple[tuple[int, int], ...] = ()
    missing_ms: int = 0
    partial: bool = False
    cause: str = ""


def of(recording: model.Recording) -> Coverage:
    """The coverage of a recording's file."""
    output = recording.output
    if output is None:
        return Coverage()
    live = list(output.live)
    known = recording.published.known(live)
    if output.window is not None:
        begin_ms, end_ms = output.window
        known = [(max(a, begin_ms), min(b, end_ms)) for a, b in known if a < end_ms and b > begin_ms]
    missing = _missing(known, live)
    missing_ms = max(published.total_ms(missing), output.lost_ms)
    most_ms = max(MOST_MISSING_MS, published.total_ms(known) * MOST_MISSING_SHARE)
    return Coverage(
        gaps=_gaps(output, missing),
        missing_ms=missing_ms,
        partial=missing_ms > most_ms or output.lost_segments > 0 or bool(output.unreadable),
        cause=_cause(output, missing),
    )


def _missing(known: list[published.Span], live: list[published.Span]) -> list[published.Span]:
    """The published time without media."""
    if not live:
        return []
    begin_ms, end_ms = live[0][0], max(span[1] for span in live)
    found = []
    for from_ms, to_ms in published.without(known, live):
        at_edge = to_ms <= begin_ms or from_ms >= end_ms
        if to_ms - from_ms > (EDGE_MS if at_edge else INSIDE_MS):
            found.append((from_ms, to_ms))
    return found


def _gaps(output: model.Output, missing: list[published.Span]) -> tuple[tuple[int, int], ...]:
    """The gaps of the file, with those at its edges. A segment that vanished there and the published time are one gap."""
    if not output.live:
        return output.gaps
    begin_ms, end_ms = output.live[0][0], max(span[1] for span in output.live)
    edges = {
        0: published.total_ms([span for span in missing if span[1] <= begin_ms]),
        output.duration_ms: published.total_ms([span for span in missing if span[0] >= end_ms]),
    }
    inside = [(at_ms, length_ms) for at_ms, length_ms in output.gaps if at_ms not in edges]
    for at_ms, length_ms in output.gaps:
        if at_ms in edges:
            edges[at_ms] = max(edges[at_ms], length_ms)
    return tuple(sorted([*inside, *((at_ms, length_ms) for at_ms, length_ms in edges.items() if length_ms)]))


def _cause(output: model.Output, missing: list[published.Span]) -> str:
    if output.unreadable:
        return f"The file lacks a track that ffmpeg cannot read: {', '.join(output.unreadable)}."
    if output.lost_segments:
        which = "a segment was" if output.lost_segments == 1 else f"{output.lost_segments} segments were"
        return (
            f"Bytes of {which} damaged or deleted after the capture: {output.lost_ms / 1000:.1f} s of media are lost. Check the"
            " disk of the spool; the segments are kept for KEEP_FAILED."
        )
    if not missing:
        return ""
    from_ms, to_ms = max(missing, key=lambda span: span[1] - span[0])
    near = [p for p in output.pulls if p.from_ms < to_ms and p.to_ms > from_ms - _NEAR_MS]
    pause = max(near, key=lambda p: min(p.to_ms, to_ms) - max(p.from_ms, from_ms), default=None)
    sentence = _SENTENCES.get(Reason(pause.reason), _UNKNOWN) if pause and pause.reason in set(Reason) else _UNKNOWN
    return sentence.format(codec.iso(from_ms), codec.iso(to_ms))
