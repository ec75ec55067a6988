"""One job as its worker holds it, and how events and rows tell of it. Imports `machine` and `events`.

Rule: values and their spelling only; what is done with them stands in worker.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from events import codec
from machine import internal_events, model, states
from machine.reasons import Reason
from worker import work_ports


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One job that this node holds. `ended`: its outcome is said; it is renewed until the machine has moved on."""

    owner: str
    epoch: int
    kind: str
    task: asyncio.Task[None] | None = None
    capture: work_ports.Capture | None = None
    stop_asked: bool = False
    handed_over: bool = False
    ended: bool = False
    said: set[asyncio.Task[None]] = field(default_factory=set)


def with_missing(output: model.Output, segments: Sequence[Any], missing: set[int]) -> tuple[tuple[int, int], ...]:
    """The gaps of the file, and those that segments which could not be reached leave at its edges; one between two others is in
    the wall time between these already."""
    reached = [s for s in segments if s.epoch not in missing and s.media_ms]
    before = sum(s.media_ms for s in segments if s.epoch in missing and reached and s.epoch < reached[0].epoch)
    after = sum(s.media_ms for s in segments if s.epoch in missing and reached and s.epoch > reached[-1].epoch)
    edges = (((0, before),) if before else (), ((output.duration_ms, after),) if after else ())
    return (*edges[0], *output.gaps, *edges[1])


def owner_of(command: codec.Event) -> str:
    """Whose job a command orders: a recording's id, or `TaskId#revision`."""
    data = command.data
    return f"{data['TaskId']}/{data['Speaker']}/{data['N']}" if "Speaker" in data else f"{data['TaskId']}#{data['Revision']}"


def names(job: Job) -> dict[str, Any]:
    """What events call the job's owner by."""
    if job.kind == states.CALLBACK:
        task_id, revision = job.owner.split("#")
        return {"TaskId": task_id, "Revision": int(revision)}
    task_id, speaker, n = model.split_id(job.owner)
    return {"TaskId": task_id, "Speaker": speaker, "N": n}


def capture_exit(
    job: Job, reason: Reason, detail: str, progress: work_ports.Progress | None = None
) -> internal_events.FfmpegExit:
    """The outcome of a capture; `progress` None: it never began."""
    if progress is None:
        return internal_events.FfmpegExit(epoch=job.epoch, job=job.kind, reason=reason, detail=detail)
    return internal_events.FfmpegExit(
        epoch=job.epoch,
        job=job.kind,
        reason=reason,
        detail=detail,
        media_ms=progress.media_ms,
        size_bytes=progress.size_bytes,
        first_packet_ms=progress.first_packet_ms,
        last_packet_ms=progress.last_packet_ms,
    )


def transcode_exit(job: Job, reason: Reason, detail: str, *, retry: bool) -> internal_events.FfmpegExit:
    """The outcome of a transcode without an output."""
    return internal_events.FfmpegExit(epoch=job.epoch, job=job.kind, reason=reason, detail=detail, retry=retry)


def segment(progress: work_ports.Progress) -> dict[str, Any]:
    """How far a capture is, as its segment's row holds it."""
    return {
        "media_ms": progress.media_ms,
        "size_bytes": progress.size_bytes,
        "first_packet_ms": progress.first_packet_ms,
        "last_packet_ms": progress.last_packet_ms,
    }
