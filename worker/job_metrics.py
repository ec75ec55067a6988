"""Metrics of a worker's jobs."""

from __future__ import annotations

import time

from machine import internal_events, metrics, states
from machine.reasons import Reason
from worker import leased_job


def began(job: leased_job.AnyJob, command_age_ms: int) -> None:
    """Count a job that got its lease, `command_age_ms` after its command was written."""
    metrics.JOB_WAIT_SECONDS.labels(job.kind).observe(max(command_age_ms, 0) / 1000)


def first_packet(job: leased_job.AnyJob) -> None:
    """Count the first packet of a capture."""
    metrics.FIRST_PACKET_SECONDS.observe(_lasted_s(job))


def captured(job: leased_job.AnyJob, size_bytes: int) -> None:
    """Count the bytes of a capture that its rows do not have yet."""
    metrics.CAPTURE_BYTES.inc(max(size_bytes - (job.noted.size_bytes if job.noted else 0), 0))


def ended(job: leased_job.AnyJob, outcome: internal_events.WorkerEvent) -> None:
    """Count a job whose outcome is published."""
    metrics.JOBS_ENDED.labels(job.kind, str(getattr(outcome, "reason", Reason.OK))).inc()
    if isinstance(outcome, internal_events.FfmpegExit) and job.kind == states.CAPTURE:
        captured(job, outcome.size_bytes)
        return
    metrics.JOB_SECONDS.labels(job.kind).observe(_lasted_s(job))
    if isinstance(outcome, internal_events.FfmpegExit) and outcome.output is not None:
        metrics.TRANSCODE_SPEED.observe(outcome.output.duration_ms / 1000 / max(_lasted_s(job), 0.001))


def _lasted_s(job: leased_job.AnyJob) -> float:
    return time.monotonic() - job.leased_s
