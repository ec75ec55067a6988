"""A job under this worker's lease, and its spelling in events and rows. Values only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from machine import capture_progress, job_key, model, segments
from worker import work_ports

Owner = TypeVar("Owner", bound=job_key.JobKey)


@dataclass(slots=True, kw_only=True, eq=False)
class LeasedJob(Generic[Owner]):
    """One job that this node holds. `ended`: its outcome is published; its lease is renewed until the machine has moved on.
    `renewals`: how often it was renewed since. `noted`: the capture's progress that its rows have. `leased_s`: when it got its
    lease (monotonic). `traceparent`: the span that its outcomes follow from. Of an upload: its `bucket`, "" until it is read, and
    when COS confirmed something (`moved_s`, monotonic)."""

    owner: Owner
    epoch: int
    kind: str
    task: asyncio.Task[None] | None = None
    capture: work_ports.Capture | None = None
    stop_requested: bool = False
    handed_over: bool = False
    ended: bool = False
    renewals: int = 0
    publishing: set[asyncio.Task[None]] = field(default_factory=set)
    noted: capture_progress.CaptureProgress | None = None
    leased_s: float = field(default_factory=time.monotonic)
    traceparent: str = ""
    bucket: str = ""
    moved_s: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[Owner, int]:
        """The owner and the epoch."""
        return self.owner, self.epoch

    def stop(self) -> None:
        """Ask a capture to end, or not to begin."""
        self.stop_requested = True
        if self.capture is not None:
            self.capture.stop()


AnyJob = LeasedJob[Any]
RecordingJob = LeasedJob[job_key.RecordingKey]
DeliveryJob = LeasedJob[job_key.DeliveryKey]


def gaps_with_missing(output: model.Output, parts: Sequence[segments.Segment], missing: set[int]) -> tuple[tuple[int, int], ...]:
    """The gaps of the file, plus the gaps that unreachable segments leave at its edges. A missing segment between two others is
    already part of the wall time between these."""
    reached = [s for s in parts if s.epoch not in missing and s.media_ms]
    before = sum(s.media_ms for s in parts if s.epoch in missing and reached and s.epoch < reached[0].epoch)
    after = sum(s.media_ms for s in parts if s.epoch in missing and reached and s.epoch > reached[-1].epoch)
    edges = (((0, before),) if before else (), ((output.duration_ms, after),) if after else ())
    return (*edges[0], *output.gaps, *edges[1])
