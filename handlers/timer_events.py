"""Handlers of the events that time causes: `deadline-passed` and `worker-lost`.

Rule: a deadline counts only if it is still the one that was armed. An event that names an unknown owner is logged and ignored.
"""

from __future__ import annotations

from typing import Any

from events import codec
from handlers import unit_of_work, worker_events
from machine import internal_events, model, states
from machine.reasons import Reason

SESSION_TRIGGERS = {
    "max-duration": "max-duration-over",
    "join": "join-over",
    "idle": "idle-over",
    "result-wait": "result-wait-over",
}
RECORDING_TRIGGERS = {
    "retry": "retry-due",
    "linger": "linger-over",
    "idle": "idle-over",
    "node-return": "node-return-over",
}


async def worker_lost(uow: unit_of_work.UnitOfWork) -> None:
    """A lease ended without an outcome."""
    lost = codec.to_payload(internal_events.WorkerLost, uow.event.data)
    if "/" not in lost.owner:
        await worker_events.advance_delivery(uow, lost.owner, "worker-lost", lost)
        return
    if lost.media_ms is not None:
        values: dict[str, Any] = {"media_ms": lost.media_ms, "last_packet_ms": lost.last_packet_ms, "reason": Reason.WORKER_LOST}
        if lost.size_bytes is not None:
            values["size_bytes"] = lost.size_bytes
        await uow.tx.close_segment(lost.owner, lost.epoch, values)
    await worker_events.advance_recording(uow, lost.owner, "worker-lost", lost)


async def deadline_passed(uow: unit_of_work.UnitOfWork) -> None:
    """A deadline passed: trigger what its kind means for its owner."""
    passed, tx = codec.to_payload(internal_events.DeadlinePassed, uow.event.data), uow.tx
    owner, kind = passed.owner, passed.kind
    # Lock the session first, as everywhere: the transaction that holds it may be about to disarm this deadline.
    current = await tx.session(owner.split("/")[0].split("#")[0])
    if not await tx.spend_deadline(owner, kind, passed.serial):
        return
    if "/" in owner:
        if kind == "keep":
            await _expire_files(uow, current, owner)
        else:
            await worker_events.advance_recording(uow, owner, RECORDING_TRIGGERS[kind])
    elif "#" in owner:
        await worker_events.advance_delivery(uow, owner, "retry-due")
    elif current is not None:
        await uow.advance_session(current, SESSION_TRIGGERS[kind])


async def _expire_files(uow: unit_of_work.UnitOfWork, current: model.Session | None, owner: str) -> None:
    """KEEP_FAILED passed: the janitor may delete the files. Wipe the secrets too, unless the session is Open or another recording
    may still need them."""
    task_id, keep_ms = model.split_id(owner)[0], uow.context.policy.keep_failed_ms
    recordings = await uow.tx.recordings(task_id)
    active = (current is not None and current.state == states.OPEN) or any(not r.final for r in recordings)
    needed = active or uow.needs_secrets(recordings)
    if active:
        # The rest of the session may end in Done, and then no other deadline would wipe the secrets.
        await uow.tx.arm(owner, "keep", uow.tx.now_ms + keep_ms)
    if not needed:
        await uow.tx.wipe_secrets(task_id)
    note = "KEEP_FAILED is over: files may go" + ("" if needed else ", secrets wiped")
    await uow.tx.journal(task_id, owner, uow.event, note=note)
