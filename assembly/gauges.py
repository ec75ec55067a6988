"""Gauges of a node: its parts as they are when somebody scrapes, and the backlog in the database.

Rules: a scrape waits for no database. Spool and backlog are read by a task, at most once in EVERY_S, and not while nobody
scrapes. Old figures are left out, so that an outage is no flat line.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from assembly import slots, start_checks
from assembly.identity import VERSION
from config import settings as settings_module
from machine import attention, backlog, database_clock, errors, metrics, states, supervised_task
from web import app, attention_watch, stuck
from worker import capacity as capacity_module
from worker import worker as worker_module

log = structlog.get_logger()

EVERY_S = 5.0
# Prometheus scrapes at least every minute; after so long without a scrape, nothing is read.
FORGOTTEN_S = 120.0
# The first scrape after a pause waits so long for new figures.
PATIENCE_S = 0.5
STALE_S = 30.0
UNFINISHED_SESSIONS = tuple(state for state in states.SESSION_STATES if state != states.FINISHED)
UNFINISHED_RECORDINGS = tuple(state for state in states.RECORDING_STATES if state not in states.FINAL)
KINDS = (states.CAPTURE, states.TRANSCODE, states.UPLOAD, states.DELIVERY)
CHANNELS = ("event", "command", "result")
RULES = (*stuck.SESSION_RULES, *stuck.RECORDING_RULES, *stuck.DELIVERY_RULES)
CAUSES = (*attention.CAUSES, *sorted({rule.name for rule in RULES}))
Gauge = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a node that its gauges read. `ready` gives the reasons against, `parked` the dead letters of the broker,
    `view` the spool of a worker (None: no worker), and `causes` what needs attention (None: this node does not look)."""

    settings: settings_module.Settings
    clock: database_clock.DatabaseClock
    read: Callable[[], Awaitable[backlog.Backlog]]
    check_capacity: Callable[[], Awaitable[Sequence[str]]]
    ready: Callable[[], list[str]]
    parked: Callable[[], Sequence[attention.Attention]]
    view: Callable[[], Awaitable[attention.NodeView]] | None
    causes: Callable[[], Mapping[str, int]] | None
    worker: worker_module.Worker | None
    capacity: capacity_module.Capacity | None

    @property
    def distributed(self) -> bool:
        """Whether there can be other nodes."""
        return bool(self.settings.amqp_url.get_secret_value())


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the database knew at `read_s` (monotonic) and `now_ms` (its time), and whether a start would find space."""

    read_s: float
    now_ms: int
    backlog: backlog.Backlog
    can_accept: bool


class NodeMetrics:
    """The gauges of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._figures: Figures | None = None
        self._spool: attention.NodeView | None = None
        self._scraped_s = float("-inf")
        self._asked, self._read = asyncio.Event(), asyncio.Event()
        self._failing = False
        self.task = supervised_task.SupervisedTask("metrics", self._run)

    async def start(self) -> None:
        """Begin to read spool and backlog whenever somebody scrapes."""
        self.task.start()

    async def stop(self) -> None:
        """End the reading."""
        await self.task.stop()

    async def _run(self) -> None:
        while True:
            if time.monotonic() - self._scraped_s > FORGOTTEN_S:
                await self._asked.wait()
            self._asked.clear()
            await self.refresh()
            await asyncio.sleep(EVERY_S)

    async def refresh(self) -> None:
        """Read spool and backlog once. A fault is logged when it begins; nothing else depends on these figures."""
        parts = self._parts
        try:
            self._spool = await parts.view() if parts.view is not None else None
            found = await parts.read()
            accepts = await self._can_accept()
            self._figures = Figures(read_s=time.monotonic(), now_ms=parts.clock(), backlog=found, can_accept=accepts)
        except Exception as error:  # noqa: BLE001 - not swallowed: logged, and recorder_figures_age_seconds grows
            if not self._failing:
                log.warning("metrics.not_read", reason=f"{type(error).__name__}: {error}")
            self._failing = True
        else:
            self._failing = False
        self._read.set()

    async def _can_accept(self) -> bool:
        try:
            await self._parts.check_capacity()
        except (errors.InsufficientSpace, errors.Unavailable):
            return False
        return True

    async def gauges(self) -> metrics.Samples:
        """All gauges of this node."""
        self._scraped_s = time.monotonic()
        self._asked.set()
        if self._age_s() > STALE_S:
            self._read.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._read.wait()
        parts = self._parts
        return self._node() | _of_worker(parts) | self._of_spool() | self._stored()

    def _age_s(self) -> float:
        return time.monotonic() - self._figures.read_s if self._figures is not None else float("inf")

    def _node(self) -> dict[str, Gauge]:
        parts = self._parts
        engine = "distributed" if parts.distributed else "embedded"
        found: dict[str, Gauge] = {
            metrics.BUILD_INFO: {(VERSION, engine, ",".join(parts.settings.roles)): 1},
            metrics.READY: {(): float(not parts.ready())},
            metrics.CLOCK_SKEW: {(): parts.clock.skew_ms / 1000},
            metrics.PARKED: self._parked(),
        }
        if parts.causes is not None:
            found[metrics.ATTENTION] = _all(CAUSES, parts.causes())
        return found

    def _parked(self) -> Gauge:
        places = {attention.IN_BROKER: sum(each.count for each in self._parts.parked())} if self._parts.distributed else {}
        if self._figures is not None and self._age_s() <= STALE_S:
            places[attention.IN_DATABASE] = self._figures.backlog.parked
        return {(place,): count for place, count in places.items()}

    def _of_spool(self) -> dict[str, Gauge]:
        view = self._spool
        if view is None or view.free_bytes is None or view.needed_bytes is None:
            return {}
        return {metrics.SPOOL_FREE: {(): view.free_bytes}, metrics.SPOOL_NEEDED: {(): view.needed_bytes}}

    def _stored(self) -> dict[str, Gauge]:
        figures, age_s = self._figures, self._age_s()
        if figures is None:
            return {}
        if age_s > STALE_S:
            return {metrics.FIGURES_AGE: {(): age_s}}
        found, now_ms = figures.backlog, figures.now_ms
        workers: dict[str, Gauge] = {metrics.WORKERS_ALIVE: {(): found.workers}} if self._parts.distributed else {}
        return workers | {
            metrics.FIGURES_AGE: {(): age_s},
            metrics.SESSIONS: _all(UNFINISHED_SESSIONS, found.sessions),
            metrics.RECORDINGS: _all(UNFINISHED_RECORDINGS, found.recordings),
            metrics.JOBS_QUEUED: _all(KINDS, {kind: each.count for kind, each in found.queued.items()}),
            metrics.JOBS_QUEUED_AGE: _ages(KINDS, found.queued, now_ms),
            metrics.JOBS_LEASED: _all(KINDS, found.leased),
            metrics.OUTBOX: _all(CHANNELS, {channel: each.count for channel, each in found.outbox.items()}),
            metrics.OUTBOX_AGE: _ages(CHANNELS, found.outbox, now_ms),
            metrics.UNDELIVERED: _all(("pending", "failed"), found.deliveries),
            metrics.CAN_ACCEPT: {(): float(figures.can_accept)},
        }


def of(
    settings: settings_module.Settings,
    api: app.Api,
    watch: attention_watch.AttentionWatch,
    space: start_checks.SpoolSpace,
    clock: database_clock.DatabaseClock,
    check_capacity: Callable[[], Awaitable[Sequence[str]]],
    worker: worker_module.Worker | None,
    capacity: capacity_module.Capacity | None,
) -> NodeMetrics:
    """The gauges of the node that has these parts."""
    parts = Parts(
        settings=settings,
        clock=clock,
        read=api.backlog,
        check_capacity=check_capacity,
        ready=api.ready,
        parked=api.findings,
        view=(lambda: space.view(clock(), clock.skew_ms)) if "worker" in settings.roles else None,
        causes=watch.counts if "api" in settings.roles else None,
        worker=worker,
        capacity=capacity,
    )
    return NodeMetrics(parts)


def _of_worker(parts: Parts) -> dict[str, Gauge]:
    """The jobs of this worker; nothing for a node without that role."""
    running, capacity = parts.worker, parts.capacity
    if running is None or capacity is None:
        return {}
    limits = slots.by_kind(parts.settings)
    if parts.distributed and parts.settings.max_captures:
        limits[states.CAPTURE] = parts.settings.max_captures
    return {
        metrics.JOBS_RUNNING: {(kind,): running.running(kind) for kind in KINDS},
        metrics.JOB_SLOTS: {(kind,): number for kind, number in limits.items()},
        metrics.LEASES_HELD: {(): len(running.leases.jobs)},
        metrics.CPU_RATIO: {(): capacity.live_share},
    }


def _all(names: Sequence[str], counts: Mapping[str, float]) -> Gauge:
    """A number for each name, 0 without a row: a series that vanishes looks like an outage."""
    return {(name,): counts.get(name, 0) for name in (*names, *(name for name in counts if name not in names))}


def _ages(names: Sequence[str], rows: Mapping[str, backlog.Waiting], now_ms: int) -> Gauge:
    """Seconds since the oldest row, by name; 0 where none waits, or its time is unknown."""
    ages = {name: max(now_ms - (each.since_ms or now_ms), 0) / 1000 for name, each in rows.items()}
    return _all(names, ages)
