"""Metrics of one decision: what its changes count for, once they are committed.

Rule: an event may be decided several times until a decision commits, and a repeated event is not decided again. So `note` keeps
the counts of the last decision, and only `committed` counts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from events import codec
from machine import changes, coverage, errors, metrics, model, states

# Publishers write the times of their own events; only those of the recorder tell a lag.
INTERNAL = frozenset(codec.types("inside"))
# A recording whose last packet is older than this was not live any more when its session closed.
LIVE_MS = 5 * model.SECOND
Counts = list[Callable[[], None]]


class Tally:
    """The counts of one event, from its arrival on."""

    def __init__(self, event: codec.Event) -> None:
        self._event = event
        self._began_s = time.monotonic()
        self._counts: Counts = []

    def note(self, written: changes.Changes, now_ms: int) -> None:
        """Note a decision that may commit. Before the store merges the changes of other events into these. `now_ms` is the
        database's time (Unix ms)."""
        self._counts = _counts(written, now_ms)
        if self._event.type in INTERNAL:
            age_s = max(now_ms - self._event.time_ms, 0) / 1000
            self._counts.append(lambda: metrics.EVENT_AGE_SECONDS.labels(self._event.type).observe(age_s))

    def committed(self) -> None:
        """Count the event, and the decision if it was not a repeat."""
        metrics.EVENTS.labels(self._event.type, "decided").inc()
        metrics.EVENT_SECONDS.labels(self._event.type).observe(time.monotonic() - self._began_s)
        for count in self._counts:
            count()

    def refused(self, error: errors.RecorderError) -> None:
        """Count an event that changed nothing: `failed` if it is retried."""
        metrics.EVENTS.labels(self._event.type, "failed" if error.retry else "refused").inc()


def _counts(written: changes.Changes, now_ms: int) -> Counts:
    counts: Counts = []
    for old_session, session in written.sessions.values():
        if old_session is None:
            counts.append(metrics.SESSIONS_OPENED.inc)
        if session.state == states.FINISHED and (old_session is None or old_session.state != states.FINISHED):
            counts.append(metrics.SESSIONS_FINISHED.labels(session.end_reason).inc)
    for old_recording, recording in written.recordings.values():
        if recording.final and not (old_recording and old_recording.final):
            counts += _ended(recording, written.sessions.get(recording.task_id, (None, None))[1], now_ms)
    for old_delivery, delivery in written.deliveries.values():
        if old_delivery is not None and old_delivery.state != delivery.state and delivery.state != "pending":
            counts.append(metrics.DELIVERIES_ENDED.labels(delivery.state).inc)
    return counts


def _ended(recording: model.Recording, session: model.Session | None, now_ms: int) -> Counts:
    """The counts of a recording that has just become final. Its session is among the changes, because it counts recordings."""
    counts: Counts = [metrics.RECORDINGS_ENDED.labels(recording.code).inc]
    if recording.state != states.DONE:
        return counts
    found = coverage.of(recording)
    gap_ms = sum(duration_ms for _, duration_ms in found.gaps)
    counts += [
        lambda: metrics.GAPS.inc(len(found.gaps)),
        lambda: metrics.GAP_SECONDS.inc(gap_ms / 1000),
        lambda: metrics.MISSING_SECONDS.inc(found.missing_ms / 1000),
    ]
    closing_ms = session.closing_ms if session is not None and not recording.replays else None
    if closing_ms is not None and (recording.last_packet_ms or 0) >= closing_ms - LIVE_MS:
        done_s = max(now_ms - closing_ms, 0) / 1000
        counts.append(lambda: metrics.STOP_TO_DONE_SECONDS.observe(done_s))
    return counts
