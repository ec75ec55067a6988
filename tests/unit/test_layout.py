"""Layout: the cost of a stream that pauses again and again."""

from __future__ import annotations

from typing import Any

import pytest

from media import layout, placement

COUNT = 2_000
STEP_MS, SOUND_MS = 1_000.0, 700.0


class Counted(list[Any]):
    """A list that counts how many of its items were looked at."""

    def __init__(self, items: Any) -> None:
        super().__init__(items)
        self.seen = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.seen += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Any:
        for item in super().__iter__():
            self.seen += 1
            yield item


@pytest.mark.parametrize("runs", [1, COUNT])
def test_each_run_is_looked_at_where_it_sounds(runs: int) -> None:
    """Thousands of pauses, in one run of audio or each between two: the work grows with their number, not with its square."""
    begins = [number * STEP_MS for number in range(COUNT)]
    spans = [placement.Span(from_ms=at_ms, to_ms=at_ms + SOUND_MS) for at_ms in begins]
    points = [[(at_ms, number * SOUND_MS), (at_ms + SOUND_MS, (number + 1) * SOUND_MS)] for number, at_ms in enumerate(begins)]
    each = [Counted(pair) for pair in points] if runs > 1 else [Counted(point for pair in points for point in pair)]
    sounds = Counted((heard[0][0], heard[-1][0], heard) for heard in each)
    made = layout.Layout()
    file = made.add(sounds, spans)
    assert file.end_ms == COUNT * SOUND_MS
    assert len(made.gaps) == COUNT - 1
    assert sum(heard.seen for heard in (sounds, *each)) < 100 * COUNT
