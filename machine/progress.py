"""Progress of a recording: events between its opening and its result, published for those who asked for them.

Rules: pure. `recording-interrupted` and `recording-resumed` alternate, after `recording-started` and before the result. A run
that ends only because another track began interrupts nothing.
"""

from __future__ import annotations

from typing import Any

from machine import effects, internal_events, model, recording, recording_facts, results, states
from machine.reasons import Reason

STARTED, INTERRUPTED = "recording-started", "recording-interrupted"
RESUMED, PROGRESS = "recording-resumed", "recording-progress"
DEADLINE = "progress"


def noted(
    session: model.Session,
    before: model.Recording,
    decision: recording.RecordingDecision,
    trigger: str,
    facts: recording_facts.Facts,
) -> list[effects.Effect]:
    """The events of a decision about a recording. Notes on its new version, a fresh copy, whether it is interrupted."""
    after, outcome = decision.recording, facts.outcome
    wanted = {*facts.policy.progress_events, *session.request.callback_events}
    interrupted = after.state == states.RECORDING and _is_interrupted(before, trigger, outcome)
    model.put(after, interrupted=interrupted)
    found: list[effects.Effect] = []

    def add(type_: str, at_ms: int | None, **more: Any) -> None:
        if type_ in wanted:
            body = results.recording_progress(session, after, at_ms or facts.now_ms, after.media_ms)
            found.append(effects.Publish(type_, body | more))

    if (states.JOINING, states.RECORDING) in decision.moves:
        add(STARTED, after.first_packet_ms)
        if PROGRESS in wanted:
            found.append(effects.Arm(DEADLINE, facts.now_ms + facts.policy.progress_every_ms))
    if before.interrupted and after.state == states.RECORDING and not interrupted:
        add(RESUMED, getattr(outcome, "first_packet_ms", None))
    if interrupted and not before.interrupted:
        reason = Reason.WORKER_LOST if isinstance(outcome, internal_events.WorkerLost) else getattr(outcome, "reason", "")
        add(INTERRUPTED, after.last_packet_ms, Reason=reason, Detail=getattr(outcome, "detail", ""))
    return found


def _is_interrupted(before: model.Recording, trigger: str, outcome: internal_events.RecordingOutcome | None) -> bool:
    """Whether no media arrives after a decision that was not ignored."""
    if trigger == "capture-started":
        return False
    if trigger in recording.ENDS_A_RUN:
        return before.interrupted or getattr(outcome, "reason", "") != Reason.NEW_TRACK
    return before.interrupted or trigger == "replay"
