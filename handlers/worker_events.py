"""Handlers of the events that workers publish: the outcomes of captures, transcodes, uploads and deliveries.

Rule: an outcome that names an unknown recording or delivery is logged and ignored, never raised: no retry could repair it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from events import codec
from handlers import speakers, unit_of_work
from machine import internal_events, job_key, model, recording, states

log = structlog.get_logger()


async def capture_started(uow: unit_of_work.UnitOfWork) -> None:
    """The first packet is on disk."""
    outcome = codec.to_payload(internal_events.CaptureStarted, uow.event.data)
    await advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "capture-started", outcome)


async def ffmpeg_exit(uow: unit_of_work.UnitOfWork) -> None:
    """A capture or a transcode ended. A capture leaves a closed segment."""
    key, outcome = job_key.RecordingKey.of(uow.event.data), codec.to_payload(internal_events.FfmpegExit, uow.event.data)
    if outcome.job == states.CAPTURE:
        values = {"media_ms": outcome.media_ms, "size_bytes": outcome.size_bytes, "reason": outcome.reason}
        values |= {"first_packet_ms": outcome.first_packet_ms, "last_packet_ms": outcome.last_packet_ms}
        await uow.tx.close_segment(key, outcome.epoch, values)
    await advance_recording(uow, key, f"{outcome.job}-exit", outcome)


async def upload_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The object is in the bucket."""
    outcome = codec.to_payload(internal_events.UploadFinished, uow.event.data)
    await advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "upload-finished", outcome)


async def upload_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The object is not in the bucket."""
    outcome = codec.to_payload(internal_events.UploadFailure, uow.event.data)
    await advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "upload-failed", outcome)


async def callback_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver accepted the result."""
    outcome = codec.to_payload(internal_events.DeliveryFinished, uow.event.data)
    await advance_delivery(uow, job_key.DeliveryKey.of(uow.event.data), "callback-finished", outcome)


async def callback_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver did not accept the result."""
    outcome = codec.to_payload(internal_events.DeliveryFailure, uow.event.data)
    await advance_delivery(uow, job_key.DeliveryKey.of(uow.event.data), "callback-failed", outcome)


async def advance_recording(
    uow: unit_of_work.UnitOfWork,
    key: job_key.RecordingKey,
    trigger: str,
    outcome: internal_events.RecordingOutcome | None = None,
) -> None:
    """Trigger a recording by its key, and apply to its session what follows from the decision."""
    current = await uow.tx.session(key.task_id)
    value = await uow.tx.recording(key)
    if current is None or value is None:
        log.warning("outcome.unknown_recording", recording_id=key, event_type=uow.event.type)
        return
    decision = await uow.advance_recording(current, value, trigger, outcome)
    current = await _note_media(uow, current, decision)
    if value.state in states.CAPTURING and decision.recording.state == states.TRANSCODING:
        await _expect_again(uow, current, decision.recording)
    if decision.recording.final and not value.final:
        await uow.settle(current.task_id)


async def advance_delivery(
    uow: unit_of_work.UnitOfWork, key: job_key.DeliveryKey, trigger: str, outcome: internal_events.DeliveryOutcome | None = None
) -> None:
    """Trigger a delivery by its key."""
    await uow.tx.session(key.task_id)
    for value in await uow.tx.deliveries(key.task_id):
        if value.revision == key.revision:
            await uow.advance_delivery(value, trigger, outcome)
            return
    log.warning("outcome.unknown_delivery", owner=key, event_type=uow.event.type)


async def _note_media(
    uow: unit_of_work.UnitOfWork, current: model.Session, decision: recording.RecordingDecision
) -> model.Session:
    """Apply a recording's media to its session: a speaker published, and idleness counts from the last packet."""
    published = current.published or (states.JOINING, states.RECORDING) in decision.moves
    idle_from_ms = max(current.idle_from_ms, decision.recording.idle_from_ms)
    if (published, idle_from_ms) == (current.published, current.idle_from_ms):
        return current
    return await uow.tx.save_session(current, replace(current, published=published, idle_from_ms=idle_from_ms))


async def _expect_again(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> None:
    """Open the next recording of a subscribed speaker, who is tried as long as the session is Open, callbacks or not."""
    if current.state == states.OPEN and value.speaker in current.request.subscribe and value.present is not False:
        await speakers.open_recording(uow, current, value.speaker, present=None)
