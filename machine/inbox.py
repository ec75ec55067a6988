"""Inbox: the one transaction for an event. Claim its id, let the handler decide, commit; on a conflict load and decide again.

Rule: an event's claim, writes, journal lines and messages commit together or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from events import codec
from machine import errors, failpoints, ports

log = structlog.get_logger()

Answer = dict[str, Any]
Handler = Callable[[ports.Transaction, codec.Event], Awaitable[Answer | None]]
MAX_DECISIONS = 20


async def handle_once(store: ports.Store, event: codec.Event, handler: Handler) -> Answer:
    """Run `handler` once for this event's id, in one transaction. A repeat gets the first answer and changes nothing.

    Raises the handler's errors; then nothing is written, not even the claim. Raises Conflict after `MAX_DECISIONS` conflicts;
    the caller then has the message retried."""
    for attempt in range(1, MAX_DECISIONS + 1):
        try:
            return await _once(store, event, handler)
        except errors.Conflict as error:
            log.info("decision.conflict", event_id=event.id, event_type=event.type, attempt=attempt, detail=error.message)
            if attempt == MAX_DECISIONS:
                raise
    raise AssertionError("unreachable")


async def _once(store: ports.Store, event: codec.Event, handler: Handler) -> Answer:
    async with store.transaction() as tx:
        failpoints.hit("inbox.claim.before")
        first = await tx.claim(event.inbox_id)
        if first is not None:
            log.info("decision.repeated", event_id=event.id, event_type=event.type)
            answer: Answer = json.loads(first) if first else {}
            return answer
        failpoints.hit("inbox.claim.after")
        answer = await handler(tx, event) or {}
        if answer:
            await tx.answer(event.inbox_id, json.dumps(answer, ensure_ascii=False))
        failpoints.hit("decision.commit.before")
    failpoints.hit("decision.commit.after")
    return answer
