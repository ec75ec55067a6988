"""Dispatch of events to their handlers: one table, and one entry for HTTP and for the bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from events import codec
from events import errors as event_errors
from handlers import bus_replies, plans, replays, timer_events, trtc_events, unit_of_work, user_requests, worker_events
from machine import changes, decision_metrics, errors, model, ports, tracing

log = structlog.get_logger()

Handler = Callable[[unit_of_work.UnitOfWork], dict[str, Any] | None]
# The external checks before a start, outside any transaction: free space, the bucket. Returns warnings, or raises.
Inspect = Callable[[codec.Data], Awaitable[tuple[str, ...]]]

EVENT_HANDLERS: dict[str, Handler] = {
    "start": user_requests.start,
    "stop": user_requests.stop,
    "replay": replays.replay,
    "resend": replays.resend,
    "user-publishing": trtc_events.user_publishing,
    "user-unpublished": trtc_events.user_unpublished,
    "user-entered": trtc_events.user_entered,
    "user-left": trtc_events.user_left,
    "user-removed": trtc_events.user_removed,
    "room-destroyed": trtc_events.room_destroyed,
    "capture-started": worker_events.capture_started,
    "ffmpeg-exit": worker_events.ffmpeg_exit,
    "upload-finished": worker_events.upload_finished,
    "upload-failed": worker_events.upload_failed,
    "callback-finished": worker_events.callback_finished,
    "callback-failed": worker_events.callback_failed,
    "deadline-passed": timer_events.deadline_passed,
    "worker-lost": timer_events.worker_lost,
}


class Decider:
    """Decides events: the store loads, a handler decides, the store writes."""

    def __init__(self, store: ports.Store, context: unit_of_work.Context, inspect: Inspect | None = None) -> None:
        self._store = store
        self._context = context
        self._inspect = inspect

    async def decide(self, event: codec.Event, by: model.Caller | None = None) -> dict[str, Any]:
        """Decide one event and return its answer, which user requests have. `by` is the caller, for the audit.
        Raises the handler's errors, all of `machine.errors`; then nothing is written except the audit."""
        with tracing.span(f"decide {event.type}", parent=event.traceparent) as traceparent:
            return await self._decide(replace(event, traceparent=traceparent) if traceparent else event, by)

    async def _decide(self, event: codec.Event, by: model.Caller | None) -> dict[str, Any]:
        tally = decision_metrics.Tally(event)
        warnings, refused = await self._inspected(event)
        no_capacity = refused if isinstance(refused, errors.InsufficientSpace | errors.Unavailable) else None
        handler = EVENT_HANDLERS[event.type]

        def decide(snapshot: ports.Snapshot) -> tuple[ports.Answer, changes.Changes]:
            # Not before the claim: a repeat gets the first answer, and a repeated start of an Open session needs no capacity.
            if refused is not None and no_capacity is None:
                raise refused
            uow = unit_of_work.UnitOfWork(snapshot, event, self._context, warnings, by, no_capacity)
            answer = handler(uow) or {}
            if by is not None and answer and not event.data.get("DryRun"):
                # A repeated start opens nothing, so it does not count for the key.
                again = "-again" if answer.get("Repeated") else ""
                uow.changes.audit.append(changes.AuditNote(by, event.type + again, answer["TaskId"]))
            uow.changes.trace(event.traceparent)
            tally.note(uow.changes, uow.now_ms)
            return answer, uow.changes

        try:
            answer = await self._store.decisions.decide(event, plans.of(event), decide)
        except errors.RecorderError as error:
            tally.refused(error)
            if by is not None and not error.retry:
                note = changes.AuditNote(by, event.type, str(event.data.get("TaskId", "")), error.code)
                await self._store.decisions.write(changes.Changes(audit=[note]))
            raise
        tally.committed()
        log.info("event.decided", event_id=event.id, event_type=event.type, subject=event.subject)
        return answer

    async def _inspected(self, event: codec.Event) -> tuple[tuple[str, ...], errors.RecorderError | None]:
        """Run the checks before a start: their warnings, or the error that refuses it."""
        if event.type != "start" or self._inspect is None:
            return (), None
        try:
            return await self._inspect(event.data), None
        except errors.RecorderError as error:
            return (), error

    async def decide_from_bus(self, event: codec.Event) -> None:
        """Decide an event from the bus: the publisher of a request gets a reply message, and a repeat the same one. A full spool
        is a refusal here, because no time is known at which it will have space."""
        is_request = event.type in bus_replies.REQUESTS
        if is_request:
            event = bus_replies.with_own_claim(event)
            if await bus_replies.repeat(self._store, event):
                return
        try:
            await self.decide(event)
        except errors.RecorderError as error:
            if not is_request or (error.retry and not isinstance(error, errors.InsufficientSpace)):
                raise
            await bus_replies.refuse(self._store, event, error)

    async def refuse_invalid(self, request: codec.Event, error: event_errors.InvalidEvent) -> None:
        """Refuse a request from the bus whose message is invalid; `request` has its id, its type and a digest of its body."""
        request = bus_replies.with_own_claim(request)
        if not await bus_replies.repeat(self._store, request):
            await bus_replies.refuse(self._store, request, errors.InvalidParameter(str(error), field=error.field))
