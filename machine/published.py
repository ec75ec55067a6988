"""The time in which a speaker was known to publish: spans of Unix ms.

Rules: TRTC's callbacks tell it. Where none came, the recorder knows it from its own pulls: while media arrived, and between two
pulls if the first one did not end with the stream. A speaker who enters was not in the room just before: if no callback told of
the leaving, it was published for as long as media came. Values only; callbacks may be late, repeated and out of order.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Span = tuple[int, int]
# For a speaker who switches a track on and off more often than this, the shortest pauses count as published time.
MOST_SPANS = 512
# The clocks of TRTC and of the recorder differ by less: media that begins so shortly before an entry came after it.
_NEAR_MS = 2_000
_STILL = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """`spans`: (from, to), in order; `to` is 0 while the speaker publishes. `first_ms` and `left_ms`: the first publishing and
    the last leaving that callbacks reported; 0: none. `entries_ms`: when the speaker entered though believed to publish.
    `bridged`: the last pull ended through a fault. `until_ms`: when the capture was to end; 0: not yet."""

    spans: tuple[Span, ...] = ()
    first_ms: int = 0
    left_ms: int = 0
    entries_ms: tuple[int, ...] = ()
    bridged: bool = False
    until_ms: int = 0

    def switched_on(self, at_ms: int, known_from_ms: int) -> Published:
        """A callback reports that a recorded track is on. Time before `known_from_ms`, when the session opened, does
        not count."""
        from_ms = max(at_ms, known_from_ms)
        new = replace(self, first_ms=min(self.first_ms or at_ms, at_ms), left_ms=0)
        if self.first_ms and self.spans and self.spans[-1][1] == _STILL:
            *over, (began_ms, _) = self.spans
            # It may be late for a track that went on before the other one.
            earliest_ms = max(from_ms, over[-1][1] if over else 0)
            return replace(new, spans=(*over, (min(began_ms, earliest_ms), _STILL)))
        earlier = [(a, min(b, from_ms)) for a, b in self.spans if a < from_ms]
        return replace(new, spans=_bounded((*earlier, (from_ms, _STILL))))

    def switched_off(self, at_ms: int) -> Published:
        """A callback reports that no recorded track is on any more."""
        if not self.spans or self.spans[-1][1] != _STILL:
            return self
        from_ms = self.spans[-1][0]
        return replace(self, spans=(*self.spans[:-1], (from_ms, max(from_ms, at_ms))))

    def absent(self, from_ms: int, to_ms: int) -> Published:
        """Callbacks that arrived in another order report that no recorded track was on between these times."""
        # A late callback may tell of a time before the session opened.
        open_ended = [(a, b or max(a, to_ms) + 1) for a, b in self.spans]
        rest = without(open_ended, [(from_ms, to_ms)])
        if self.spans and self.spans[-1][1] == _STILL and rest:
            rest[-1] = (rest[-1][0], _STILL)
        return replace(self, spans=_bounded(tuple(rest)))

    def left(self, at_ms: int) -> Published:
        """A callback reports that the speaker left."""
        return replace(self.switched_off(at_ms), left_ms=at_ms)

    def entered(self, at_ms: int) -> Published:
        """A callback reports that the speaker entered the room."""
        if at_ms in self.entries_ms or not any(a < at_ms and (b == _STILL or at_ms < b) for a, b in self.spans):
            return self
        return replace(self, entries_ms=tuple(sorted((*self.entries_ms, at_ms))[-MOST_SPANS:]))

    def pulled(self, from_ms: int, to_ms: int, *, by_fault: bool) -> Published:
        """A pull brought media. `by_fault`: it did not end with the stream."""
        if self.first_ms:
            return self
        spans = self.spans
        if spans and (self.bridged or from_ms <= spans[-1][1]):
            spans = (*spans[:-1], (spans[-1][0], max(spans[-1][1], to_ms)))
        else:
            spans = _bounded((*spans, (from_ms, to_ms)))
        return replace(self, spans=spans, bridged=by_fault)

    def stopped(self, at_ms: int) -> Published:
        """The capture is to end: nothing after this is missing."""
        return self if self.until_ms else replace(self, until_ms=at_ms)

    def known(self, live: Sequence[Span] = ()) -> list[Span]:
        """The spans, ended where the capture was to end, without the time between `live` media and an entry after it."""
        until_ms = self.until_ms or max((max(span) for span in self.spans), default=0)
        ended = [(a, min(b or until_ms, until_ms)) for a, b in self.spans]
        known = [(a, b) for a, b in ended if b > a]
        return without(known, _unknown(self.entries_ms, sorted(live))) if self.entries_ms else known

    def to_json(self) -> dict[str, Any]:
        """The form in the database."""
        times = {"FirstMs": self.first_ms, "LeftMs": self.left_ms, "UntilMs": self.until_ms}
        entries = {"EntriesMs": list(self.entries_ms)}
        return {"Spans": [list(span) for span in self.spans], "Bridged": self.bridged, **entries, **times}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Published:
        """The opposite of `to_json`."""
        return Published(
            spans=tuple((int(a), int(b)) for a, b in body["Spans"]),
            first_ms=body["FirstMs"],
            left_ms=body["LeftMs"],
            entries_ms=tuple(body.get("EntriesMs", ())),  # not in rows of the first release
            bridged=body["Bridged"],
            until_ms=body["UntilMs"],
        )


UNKNOWN = Published()


def _bounded(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    if len(spans) <= MOST_SPANS:
        return spans
    at = min(range(1, len(spans)), key=lambda i: spans[i][0] - spans[i - 1][1])
    return (*spans[: at - 1], (spans[at - 1][0], spans[at][1]), *spans[at + 1 :])


def _unknown(entries_ms: Sequence[int], live: Sequence[Span]) -> list[Span]:
    """For each entry: from the last media before it to the entry, or to the media that followed it by another clock."""
    begins_ms = [a for a, _ in live]
    ends_ms = [0, *itertools.accumulate((b for _, b in live), max)]
    found = []
    for entry_ms in entries_ms:
        following = bisect.bisect_left(begins_ms, entry_ms - _NEAR_MS)
        last_ms = ends_ms[following]
        to_ms = min(entry_ms, begins_ms[following]) if following < len(begins_ms) else entry_ms
        found.append((last_ms, max(last_ms, to_ms)))
    return found


def total_ms(spans: list[Span]) -> int:
    """The length of spans that do not overlap."""
    return sum(b - a for a, b in spans)


def without(spans: list[Span], covered: list[Span]) -> list[Span]:
    """The parts of `spans` that `covered` lacks."""
    found = []
    covered, first = sorted(covered), 0
    for from_ms, to_ms in sorted(spans):
        at_ms = from_ms
        while first < len(covered) and covered[first][1] <= from_ms:
            first += 1
        for a, b in itertools.islice(covered, first, None):
            if a >= to_ms:
                break
            if b <= at_ms:
                continue
            if a > at_ms:
                found.append((at_ms, a))
            at_ms = max(at_ms, b)
        if at_ms < to_ms:
            found.append((at_ms, to_ms))
    return found
