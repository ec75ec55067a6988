"""What the one who asked by the bus is told: `session-accepted`, `session-refused`. Imports `machine` and `events`.

Rule: an answer is kept under the event's id with the decision, or the refusal, itself. A repeat gets it again, the same message
under the same id, whatever has become of the session, the bucket or the disk meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from events import codec
from machine import errors, ports

log = structlog.get_logger()

# What users ask for, and are answered.
ASKED = ("start", "stop", "replay")
REFUSED = "Refused"
# What AMQP takes as a message_id.
MAX_ID_BYTES = 255
# What the inbox keeps as an id.
MAX_CLAIM = 256


def accepted(event_id: str, answer: Mapping[str, Any], time_ms: int) -> codec.Event:
    """The answer to a start that was taken; `answer` has TaskId, Repeated and Warnings."""
    id_, subject = _id(event_id, "accepted"), str(answer["TaskId"])
    return codec.make("session-accepted", id=id_, time_ms=time_ms, data=answer, subject=subject, correlation_id=event_id)


def refused(event_id: str, refusal: Mapping[str, Any], time_ms: int) -> codec.Event:
    """The answer to what was not taken; `refusal` has Code and Message."""
    data = {**refusal, "RequestId": event_id}
    return codec.make("session-refused", id=_id(event_id, "refused"), time_ms=time_ms, data=data, correlation_id=event_id)


async def again(store: ports.Store, event: codec.Event) -> bool:
    """Answer a repeat as the first time; False for an event that was not decided yet."""
    async with store.transaction() as tx:
        known = await tx.answered(event.inbox_id)
        if known is None:
            return False
        answer, at_ms = (json.loads(known[0]) if known[0] else {}), known[1]
        if REFUSED in answer:
            await tx.send("result", refused(event.id, answer[REFUSED], at_ms))
        elif event.type == "start" and "Repeated" in answer:
            await tx.send("result", accepted(event.id, answer, at_ms), answer["TaskId"])
    log.info("event.answered_again", event_id=event.id, event_type=event.type)
    return True


async def refuse(store: ports.Store, event: codec.Event, error: errors.RecorderError) -> None:
    """Refuse what was asked, for good: whoever asks anew does so under a new id. Raises Conflict when it is being decided
    elsewhere."""
    refusal = {"Code": error.code, "Message": error.message}
    async with store.transaction() as tx:
        if await tx.claim(event.inbox_id) is not None:
            return
        await tx.answer(event.inbox_id, json.dumps({REFUSED: refusal}, ensure_ascii=False))
        await tx.send("result", refused(event.id, refusal, tx.now_ms))
    log.info("event.refused", event_id=event.id, event_type=event.type, code=error.code, detail=error.message)


def kept_apart(event: codec.Event) -> codec.Event:
    """What a user asks for by the bus, claimed under an id that nothing of ours has: whoever may publish a start chooses its id,
    and must not answer a worker's outcome, a callback of TRTC or another's Idempotency-Key with it."""
    claim = f"bus-{event.id}"
    if len(claim) > MAX_CLAIM:
        claim = f"bus-{hashlib.sha256(event.id.encode()).hexdigest()}"
    return replace(event, claim=claim)


def _id(event_id: str, outcome: str) -> str:
    made = f"{event_id}.{outcome}"
    if len(made.encode()) <= MAX_ID_BYTES:
        return made
    return f"{hashlib.sha256(event_id.encode()).hexdigest()}.{outcome}"
