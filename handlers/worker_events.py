"""Deciding: what workers and time say. Imports `machine` and `events`.

Rule: an outcome that names what is not there is ignored and logged, never raised: nobody could mend it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from handlers import unit_of_work, user_requests
from machine import model, recording, states

log = structlog.get_logger()

SESSION_DEADLINES = {
    "max-duration": "max-duration-over",
    "join": "join-over",
    "idle": "idle-over",
    "result-wait": "result-wait-over",
}
RECORDING_DEADLINES = {
    "retry": "retry-due",
    "linger": "linger-over",
    "idle": "idle-over",
    "node-return": "node-return-over",
}


async def capture_started(step: unit_of_work.Applying) -> None:
    """The first packet is on disk."""
    await _to_recording(step, "capture-started")


async def ffmpeg_exit(step: unit_of_work.Applying) -> None:
    """A run of ffmpeg ended; a capture's leaves a closed segment behind."""
    data = step.event.data
    if data["Job"] == states.CAPTURE:
        values = {"media_ms": data.get("MediaMs", 0), "size_bytes": data.get("SizeBytes", 0), "reason": data["Reason"]}
        values |= {"first_packet_ms": data.get("FirstPacketMs"), "last_packet_ms": data.get("LastPacketMs")}
        await step.tx.close_segment(_id(step), data["Epoch"], values)
    await _to_recording(step, f"{data['Job']}-exit")


async def upload_finished(step: unit_of_work.Applying) -> None:
    """The object is in the bucket."""
    await _to_recording(step, "upload-finished")


async def upload_failed(step: unit_of_work.Applying) -> None:
    """The object is not in the bucket."""
    await _to_recording(step, "upload-failed")


async def callback_finished(step: unit_of_work.Applying) -> None:
    """The receiver took the result."""
    await _to_callback(step, "callback-finished")


async def callback_failed(step: unit_of_work.Applying) -> None:
    """The receiver did not take the result."""
    await _to_callback(step, "callback-failed")


async def worker_lost(step: unit_of_work.Applying) -> None:
    """A lease ended without an outcome."""
    data = step.event.data
    owner = data["Owner"]
    if "/" not in owner:
        await _to_owner_callback(step, owner, "worker-lost")
        return
    if "MediaMs" in data:
        values = {name: data[key] for name, key in (("media_ms", "MediaMs"), ("size_bytes", "SizeBytes")) if key in data}
        values |= {"last_packet_ms": data.get("LastPacketMs"), "reason": "worker-lost"}
        await step.tx.close_segment(owner, data["Epoch"], values)
    await _to_recording(step, "worker-lost", owner)


async def deadline_passed(step: unit_of_work.Applying) -> None:
    """A deadline is over, if it is still the one that was armed."""
    data, tx = step.event.data, step.tx
    owner, kind = data["Owner"], data["Kind"]
    # The session first, as everywhere: who holds it may be about to take this deadline away.
    current = await tx.session(owner.split("/")[0].split("#")[0])
    if not await tx.spend_deadline(owner, kind, data["Serial"]):
        return
    if "/" in owner:
        if kind == "keep":
            await _forget(step, current, owner)
        else:
            await _to_recording(step, RECORDING_DEADLINES[kind], owner)
    elif "#" in owner:
        await _to_owner_callback(step, owner, "retry-due")
    elif current is not None:
        await step.to_session(current, SESSION_DEADLINES[kind])


async def _forget(step: unit_of_work.Applying, current: model.Session | None, owner: str) -> None:
    """KEEP_FAILED is over: the files are the janitor's, and the secrets go unless another recording, or whoever speaks next, may
    still need them."""
    task_id, keep_ms = model.split_id(owner)[0], step.context.policy.keep_failed_ms
    recordings = await step.tx.recordings(task_id)
    going_on = (current is not None and current.state == states.OPEN) or any(not r.final for r in recordings)
    needed = going_on or step.needs_secrets(recordings)
    if going_on:
        # What goes on may end well, and nothing else would wipe them then.
        await step.tx.arm(owner, "keep", step.tx.now_ms + keep_ms)
    if not needed:
        await step.tx.wipe_secrets(task_id)
    note = "KEEP_FAILED is over: files may go" + ("" if needed else ", secrets wiped")
    await step.tx.journal(task_id, owner, step.event, note=note)


async def _to_recording(step: unit_of_work.Applying, trigger: str, recording_id: str = "") -> None:
    recording_id = recording_id or _id(step)
    current = await step.tx.session(model.split_id(recording_id)[0])
    value = await step.tx.recording(recording_id)
    if current is None or value is None:
        log.warning("outcome.unknown_recording", recording_id=recording_id, event_type=step.event.type)
        return
    decision = await step.to_recording(current, value, trigger)
    current = await _note_media(step, current, decision)
    if value.state in states.CAPTURING and decision.recording.state == states.TRANSCODING:
        await _await_again(step, current, decision.recording)
    if decision.recording.final and not value.final:
        await step.settle(current.task_id)


async def _note_media(step: unit_of_work.Applying, current: model.Session, decision: recording.Decision) -> model.Session:
    """What a recording's media means for its session: somebody publishes, and idleness counts from here."""
    published = current.published or (states.JOINING, states.RECORDING) in decision.moves
    idle_from_ms = max(current.idle_from_ms, decision.recording.idle_from_ms)
    if (published, idle_from_ms) == (current.published, current.idle_from_ms):
        return current
    return await step.tx.save_session(current, replace(current, published=published, idle_from_ms=idle_from_ms))


async def _await_again(step: unit_of_work.Applying, current: model.Session, value: model.Recording) -> None:
    """A subscribed speaker is tried as long as the session is Open, callbacks or not: the next recording waits for media."""
    if current.state == states.OPEN and value.speaker in current.request.subscribe and value.present is not False:
        await user_requests.open_for(step, current, value.speaker, present=None)


async def _to_callback(step: unit_of_work.Applying, trigger: str) -> None:
    data = step.event.data
    await _to_owner_callback(step, f"{data['TaskId']}#{data['Revision']}", trigger)


async def _to_owner_callback(step: unit_of_work.Applying, owner: str, trigger: str) -> None:
    task_id = owner.split("#")[0]
    await step.tx.session(task_id)
    for value in await step.tx.callbacks(task_id):
        if value.id == owner:
            await step.to_callback(value, trigger)
            return
    log.warning("outcome.unknown_callback", owner=owner, event_type=step.event.type)


def _id(step: unit_of_work.Applying) -> str:
    data = step.event.data
    return f"{data['TaskId']}/{data['Speaker']}/{data['N']}"
