"""Replies to user requests from the bus: `session-accepted` and `session-refused`.

Rule: the reply is stored under the event's id, in the transaction of the decision or of the refusal. A repeated event gets the
same reply under the same id, whatever has happened to the session, the bucket or the disk since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from events import codec, requests
from machine import changes, errors, ports

log = structlog.get_logger()

# The event types that get a reply.
REQUESTS = requests.TYPES
REFUSED = "Refused"
# The length limit of a message_id in AMQP.
MAX_ID_BYTES = 255
# The length limit of an id in the inbox.
MAX_CLAIM = 256


def accepted(event_id: str, answer: Mapping[str, Any], time_ms: int) -> codec.Event:
    """The reply to an accepted start; `answer` has TaskId, Repeated and Warnings."""
    id_, subject = _id(event_id, "accepted"), str(answer["TaskId"])
    return codec.make("session-accepted", id=id_, time_ms=time_ms, data=answer, subject=subject, correlation_id=event_id)


def refused(event_id: str, refusal: Mapping[str, Any], time_ms: int) -> codec.Event:
    """The reply to a refused request; `refusal` has Code and Message, and may have Fields and TaskId."""
    data = {**refusal, "RequestId": event_id}
    return codec.make("session-refused", id=_id(event_id, "refused"), time_ms=time_ms, data=data, correlation_id=event_id)


async def repeat(store: ports.Store, event: codec.Event) -> bool:
    """Send the first reply again. Returns False for an event that was not decided yet."""
    try:
        known = await store.decisions.answered(event.inbox_id, requests.fingerprint(event.type, event.inbox_id, event.data))
    except errors.KeyReused as error:
        await _refuse_reuse(store, event, error)
        return True
    if known is None:
        return False
    answer, at_ms = known
    again = changes.Changes()
    if REFUSED in answer:
        again.send("result", refused(event.id, answer[REFUSED], at_ms))
    elif event.type == "start" and "Repeated" in answer:
        again.send("result", accepted(event.id, answer, at_ms), answer["TaskId"])
    await store.decisions.write(again)
    log.info("event.answered_again", event_id=event.id, event_type=event.type)
    return True


async def _refuse_reuse(store: ports.Store, event: codec.Event, error: errors.KeyReused) -> None:
    """Refuse another request under the id of an earlier one, whose answer stays: the reply has an id of its own."""
    refusal = {"Code": error.code, "Message": error.message, "RequestId": event.id}
    reply = changes.Changes()
    id_ = _id(event.id, "reused")
    reply.send("result", codec.make("session-refused", id=id_, time_ms=event.time_ms, data=refusal, correlation_id=event.id))
    await store.decisions.write(reply)
    log.info("event.refused", event_id=event.id, event_type=event.type, code=error.code, detail=error.message)


async def refuse(store: ports.Store, event: codec.Event, error: errors.RecorderError) -> None:
    """Refuse a request: the refusal is final for this event id."""
    refusal = {"Code": error.code, "Message": error.message, **error.details}
    decided = False

    def decide(snapshot: ports.Snapshot) -> tuple[ports.Answer, changes.Changes]:
        nonlocal decided
        decided = True
        reply = changes.Changes()
        reply.send("result", refused(event.id, refusal, snapshot.now_ms))
        return {REFUSED: refusal}, reply

    try:
        await store.decisions.decide(event, lambda _: iter(()), decide)
    except errors.KeyReused as reused:
        await _refuse_reuse(store, event, reused)
        return
    if not decided:  # a repeat of this event was refused at the same moment
        await repeat(store, event)
        return
    log.info("event.refused", event_id=event.id, event_type=event.type, code=error.code, detail=error.message)


def with_own_claim(event: codec.Event) -> codec.Event:
    """The request with a claim of its own. A publisher chooses the event's id; without the prefix, that id could claim a worker's
    outcome, a TRTC callback or the Idempotency-Key of another caller."""
    claim = f"bus-{event.id}"
    if len(claim) > MAX_CLAIM:
        claim = f"bus-{hashlib.sha256(event.id.encode()).hexdigest()}"
    return replace(event, claim=claim)


def _id(event_id: str, outcome: str) -> str:
    made = f"{event_id}.{outcome}"
    if len(made.encode()) <= MAX_ID_BYTES:
        return made
    return f"{hashlib.sha256(event_id.encode()).hexdigest()}.{outcome}"
