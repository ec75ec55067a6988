"""The lower envelope of (arrival − media time) of a growing segment, and its anchors.

Rules:
- A single sample says little: packets arrive late, and a server may begin with older media in a burst. The least delay of a
  minute counts.
- Delay that grows for good is a pause over which the timestamps stand. Several samples in a row that agree confirm it, and a new
  run of anchors begins. If the delay comes back, packets were only late, and the run before goes on.
- Delay that falls below that of the run before, after a run's first seconds, is a jump of the timestamps: also a new run.
- Memory is bounded for any stream.
"""

from __future__ import annotations

from machine import alignment

# A delay that changes by more than this belongs to another run.
STEP_MS = 500
CONFIRMED_BY = 3
SETTLING_MS = 5_000
WINDOW_MS = 60_000
ANCHOR_EVERY_MS = 600_000
MOST_ANCHORS = 600


class _Run:
    """A stretch of media without a pause. `delay_ms` is the least of this window and the one before."""

    def __init__(self, at_ms: int, delay_ms: int) -> None:
        self.begin_ms = self.end_ms = self._window_ms = self._anchored_ms = at_ms
        self._previous_ms = self._least_ms = self._first_ms = delay_ms
        self._anchors: list[alignment.Anchor] = []

    @property
    def delay_ms(self) -> int:
        return min(self._previous_ms, self._least_ms)

    @property
    def anchors(self) -> list[alignment.Anchor]:
        """One at the beginning, one every ten minutes, one at the end."""
        end = [(self.end_ms, self.end_ms + self.delay_ms)] if self.end_ms > self.begin_ms else []
        return [(self.begin_ms, self.begin_ms + self._first_ms), *self._anchors, *end]

    def add(self, at_ms: int, delay_ms: int) -> None:
        if at_ms - self._window_ms >= WINDOW_MS:
            self._window_ms = at_ms
            self._previous_ms, self._least_ms = self._least_ms, delay_ms
            if at_ms - self._anchored_ms >= ANCHOR_EVERY_MS and len(self._anchors) < MOST_ANCHORS:
                self._anchored_ms = at_ms
                self._anchors.append((at_ms, at_ms + self.delay_ms))
        self._least_ms = min(self._least_ms, delay_ms)
        if at_ms - self.begin_ms < WINDOW_MS:
            self._first_ms = min(self._first_ms, delay_ms)
        self.end_ms = max(self.end_ms, at_ms)


class Envelope:
    """Collects the samples of one segment: the position of the last packet, and when it was written."""

    def __init__(self) -> None:
        self._over: list[alignment.Anchor] = []
        self._before: _Run | None = None
        self._run: _Run | None = None
        self._late: list[tuple[int, int]] = []

    @property
    def anchors(self) -> alignment.Anchors:
        """The anchors so far."""
        points = list(self._over)
        for run in (self._before, self._run):
            points += run.anchors if run is not None else []
        return alignment.Anchors(tuple(sorted(points)))

    def add(self, at_ms: int, arrived_ms: int) -> None:
        """Add a sample."""
        delay_ms = arrived_ms - at_ms
        run = self._run
        if run is None:
            self._run = _Run(at_ms, delay_ms)
        elif delay_ms > run.delay_ms + STEP_MS:
            # ffmpeg may write the last packets before a pause late. They say nothing about the delay behind it.
            self._late = [late for late in self._late if abs(late[1] - delay_ms) <= STEP_MS]
            self._late.append((at_ms, delay_ms))
            if len(self._late) >= CONFIRMED_BY:
                self._begin(_run_of(self._late))
        elif delay_ms < run.delay_ms - STEP_MS and at_ms - run.begin_ms > SETTLING_MS:
            if self._before is not None and abs(delay_ms - self._before.delay_ms) <= STEP_MS:
                self._run, self._before = self._before, None
                self._run.add(at_ms, delay_ms)
                self._late.clear()
            else:
                self._begin(_Run(at_ms, delay_ms))
        else:
            self._late.clear()
            run.add(at_ms, delay_ms)

    def _begin(self, following: _Run) -> None:
        if self._before is not None and len(self._over) < MOST_ANCHORS:
            self._over += self._before.anchors
        self._before, self._run = self._run, following
        self._late = []


def _run_of(samples: list[tuple[int, int]]) -> _Run:
    run = _Run(*samples[0])
    for at_ms, delay_ms in samples[1:]:
        run.add(at_ms, delay_ms)
    return run
