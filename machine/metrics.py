"""Metrics of this process, and the catalog of all metrics of the service.

Rules: counters and histograms count what happened in this process, so they are module values, as the failpoints are. Gauges are
read when somebody scrapes. A label has a bounded set of values: never a room, a user, a TaskId or a text from outside.

Source: the naming conventions of Prometheus, base units and suffixes included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import prometheus_client
from prometheus_client import core

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
Samples = Mapping[str, Mapping[tuple[str, ...], float]]
"""Gauges: name → label values → number."""

# A `_created` series for each label set doubles the scrape, and nothing reads it.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
_REGISTRY = prometheus_client.CollectorRegistry()
prometheus_client.ProcessCollector(registry=_REGISTRY)

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SLOW_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One metric of the catalog: its type (counter, histogram or gauge), its labels, and its meaning in one sentence."""

    type: str
    labels: tuple[str, ...]
    meaning: str


CATALOG: dict[str, Description] = {}
"""Every metric of the service by its name, without the suffixes of a histogram's series."""


def _counter(name: str, meaning: str, *labels: str) -> prometheus_client.Counter:
    CATALOG[name] = Description(type="counter", labels=labels, meaning=meaning)
    return prometheus_client.Counter(name, meaning, labels, registry=_REGISTRY)


def _histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> prometheus_client.Histogram:
    CATALOG[name] = Description(type="histogram", labels=labels, meaning=meaning)
    return prometheus_client.Histogram(name, meaning, labels, buckets=buckets, registry=_REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> str:
    CATALOG[name] = Description(type="gauge", labels=labels, meaning=meaning)
    return name


# --- requests, events, messages -------------------------------------------------------------------------------------------
HTTP_REQUESTS = _counter("recorder_http_requests_total", "HTTP requests, by the route's template.", "route", "method", "status")
HTTP_SECONDS = _histogram("recorder_http_request_duration_seconds", "Time of an HTTP request.", "route", buckets=_FAST_S)
EVENTS = _counter("recorder_events_total", "Events that were decided, refused, or failed and are retried.", "type", "outcome")
EVENT_SECONDS = _histogram("recorder_event_duration_seconds", "From taking an event to its commit.", "type", buckets=_FAST_S)
EVENT_AGE_SECONDS = _histogram(
    "recorder_event_age_seconds", "Inbox lag: from writing an event of a worker or deadline to its commit.", "type",
    buckets=_SLOW_S,
)  # fmt: skip
MESSAGES = _counter(
    "recorder_messages_total", "Deliveries of the bus: done, requeue (retried later) or park (dead letter).", "channel", "outcome"
)

# --- sessions, recordings, deliveries -------------------------------------------------------------------------------------
SESSIONS_OPENED = _counter("recorder_sessions_opened_total", "Sessions that this node opened.")
SESSIONS_FINISHED = _counter("recorder_sessions_finished_total", "Sessions that finished, by EndReason.", "reason")
RECORDINGS_ENDED = _counter("recorder_recordings_ended_total", "Recordings that became final, by the result's Code.", "code")
GAPS = _counter("recorder_gaps_total", "Gaps that results reported.")
GAP_SECONDS = _counter("recorder_gap_seconds_total", "Time of these gaps.")
MISSING_SECONDS = _counter("recorder_missing_seconds_total", "Published time that delivered files lack (`Missing`).")
STOP_TO_DONE_SECONDS = _histogram(
    "recorder_stop_to_done_seconds", "From the close of a session to Done, for recordings that were live then.", buckets=_SLOW_S
)
CALLBACKS_FORWARDED = _counter(
    "recorder_callbacks_forwarded_total",
    "TRTC callbacks for TRTC_CALLBACK_FORWARD: accepted by the receiver, or dropped.",
    "outcome",
)
DELIVERIES_ENDED = _counter("recorder_deliveries_ended_total", "Deliveries that were delivered, failed or cancelled.", "outcome")

# --- jobs of this worker --------------------------------------------------------------------------------------------------
JOBS_ENDED = _counter(
    "recorder_jobs_ended_total", "Jobs that this worker ended, by kind and reason; `ok` is success.", "kind", "reason"
)
JOB_WAIT_SECONDS = _histogram(
    "recorder_job_wait_seconds", "Schedule-to-start: from a job's command to its lease.", "kind", buckets=_SLOW_S
)
JOB_SECONDS = _histogram(
    "recorder_job_duration_seconds", "From the lease of a transcode, upload or callback to its outcome.", "kind", buckets=_SLOW_S
)
FIRST_PACKET_SECONDS = _histogram(
    "recorder_first_packet_seconds", "From the lease of a capture to its first packet on disk.", buckets=_SLOW_S
)
CAPTURE_BYTES = _counter("recorder_capture_bytes_total", "Bytes that captures wrote, as their leases are renewed.")
TRANSCODE_SPEED = _histogram(
    "recorder_transcode_speed_ratio", "Seconds of media that a transcode makes per second.",
    buckets=(0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)  # fmt: skip
UPLOAD_BYTES = _counter("recorder_upload_bytes_total", "Bytes of parts that COS took.")
UPLOAD_RETRIES = _counter(
    "recorder_upload_request_retries_total", "Requests to COS that failed for now and were repeated.", "reason"
)
LEASES_REFUSED = _counter("recorder_leases_refused_total", "Jobs that ended because another node holds their lease.")

# --- gauges of this node --------------------------------------------------------------------------------------------------
BUILD_INFO = _gauge("recorder_build_info", "Always 1; the labels describe this node.", "version", "engine", "roles")
READY = _gauge("recorder_ready", "1 if this node can take work, as /readyz answers without the database.")
JOBS_RUNNING = _gauge("recorder_jobs_running", "Jobs that this worker executes.", "kind")
JOB_SLOTS = _gauge("recorder_job_slots", "Jobs that this worker executes at most; no series where nothing limits them.", "kind")
LEASES_HELD = _gauge("recorder_leases_held", "Leases that this worker renews.")
CPU_RATIO = _gauge("recorder_live_cpu_ratio", "Share of this worker's CPUs that live work takes (MAX_CPU is its limit).")
SPOOL_FREE = _gauge("recorder_spool_free_bytes", "Free space of the spool; no series while it cannot be read.")
SPOOL_NEEDED = _gauge("recorder_spool_needed_bytes", "Free space that one more capture needs.")
CLOCK_SKEW = _gauge("recorder_clock_skew_seconds", "How far this machine's clock is ahead of the database's.")
ATTENTION = _gauge("recorder_attention", "What needs attention, by cause or rule; on nodes with the role api.", "cause")

# --- gauges of the database: every node reads the same --------------------------------------------------------------------
SESSIONS = _gauge("recorder_sessions", "Unfinished sessions.", "state")
RECORDINGS = _gauge("recorder_recordings", "Unfinished recordings; those in Uploading are the backlog of uploads.", "state")
JOBS_QUEUED = _gauge("recorder_jobs_queued", "Queue depth: jobs that wait for a worker.", "kind")
JOBS_QUEUED_AGE = _gauge("recorder_jobs_queued_oldest_seconds", "Age of the oldest job that waits for a worker.", "kind")
JOBS_LEASED = _gauge("recorder_jobs_leased", "Jobs under a lease of any worker.", "kind")
OUTBOX = _gauge("recorder_outbox_messages", "Messages that are not delivered yet, at most 1,000.", "channel")
OUTBOX_AGE = _gauge("recorder_outbox_oldest_seconds", "Outbox lag: age of the oldest of these messages.", "channel")
UNDELIVERED = _gauge("recorder_deliveries_open", "Deliveries that are retried (pending) or were given up (failed).", "state")
PARKED = _gauge("recorder_parked_messages", "Dead letters, by place; at most 1,000 of the database are counted.", "place")
WORKERS_ALIVE = _gauge("recorder_workers_alive", "Workers that send heartbeats; no series on the embedded engine.")
CAN_ACCEPT = _gauge("recorder_can_accept", "1 if a start would find space for its captures now.")
FIGURES_AGE = _gauge("recorder_figures_age_seconds", "Age of this node's figures of the database.")


def text(gauges: Samples) -> bytes:
    """A scrape in Prometheus' text format: all counters and histograms of this process, and these gauges. Raises KeyError for a
    gauge that the catalog does not have."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Gauges(gauges))
    return prometheus_client.generate_latest(_REGISTRY) + prometheus_client.generate_latest(registry)


class _Gauges:
    """Gauges as a collector."""

    def __init__(self, gauges: Samples) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[core.Metric]:
        """The families of one scrape."""
        for name, samples in self._gauges.items():
            described = CATALOG[name]
            family = core.GaugeMetricFamily(name, described.meaning, labels=described.labels)
            for labels, number in samples.items():
                family.add_metric(labels, number)
            yield family
