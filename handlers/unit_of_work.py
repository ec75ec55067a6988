"""Unit of work: the decisions of one event, written to one transaction.

Rules: the caller holds the session's row. This module alone writes what a decision yields (state, job, command, deadline, journal
line, result), so that no handler writes half of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from events import codec, requests
from machine import delivery, effects, errors, internal_events, job_key, model, ports, recording, results, session, states

# The events that may give a recording a detail on how its pulls ended.
REPORTS_EVICTIONS = ("ffmpeg-exit", "upload-finished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What handlers get besides transaction and event."""

    policy: model.Policy
    new_id: Callable[[], str]  # a fresh ULID
    shared_spool: bool = True  # any node can reach any segment
    mints: Callable[[int], bool] = lambda sdk_app_id: False  # whether the service can generate UserSigs for the application


class UnitOfWork:
    """One event's decisions, written to one transaction."""

    def __init__(
        self,
        tx: ports.Transaction,
        event: codec.Event,
        context: Context,
        warnings: tuple[str, ...] = (),
        by: model.Caller | None = None,
        no_capacity: errors.RecorderError | None = None,
    ) -> None:
        """`by` is the caller; None for events that no user caused, and for events from the bus, whose broker authorizes.
        `no_capacity` is the reason to refuse a new session: the spools are full, or none is readable."""
        self.by = by
        self.no_capacity = no_capacity
        self.tx = tx
        self.event = event
        self.context = context
        self.warnings = warnings

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def advance_recording(
        self,
        current: model.Session,
        value: model.Recording,
        trigger: str,
        outcome: internal_events.RecordingOutcome | None = None,
    ) -> recording.RecordingDecision:
        """Trigger a recording and write the decision."""
        owner = value.key
        decision = recording.decide(value, trigger, await self.facts(current, value, outcome))
        if decision.ignored:
            await self.tx.journal(owner, self.event, value.state, value.state, f"ignored: {decision.ignored}")
            return decision
        saved = await self.tx.save_recording(value, decision.recording)
        decision = replace(decision, recording=saved)
        await self._journal_moves(owner, decision.moves or ((value.state, value.state),), _note(value, saved))
        await self._apply(current, saved, decision.effects)
        return decision

    async def facts(
        self, current: model.Session, value: model.Recording, outcome: internal_events.RecordingOutcome | None = None
    ) -> recording.RecordingFacts:
        """The facts for a decision about a recording."""
        home, target_away = await self._placement(value)
        return recording.RecordingFacts(
            home=home,
            target_away=target_away,
            now_ms=self.tx.now_ms,
            policy=self.context.policy,
            callbacks_come=await self.tx.callbacks_come(current.request.room.sdk_app_id),
            has_segments=value.state != states.RECORDING and not value.files_removed and await self.tx.has_segments(value.key),
            has_output=value.output is not None and not value.files_removed,
            evictions=await self.tx.evictions(value.key) if self.event.type in REPORTS_EVICTIONS else 0,
            outcome=outcome,
            from_stage=self.event.data.get("From", "") if self.event.type == "replay" else "",
        )

    async def open_recording(self, current: model.Session, value: model.Recording) -> model.Recording:
        """Add a recording with its first pull queued."""
        opened = replace(value, epoch=1, job=model.Job(kind=states.CAPTURE, state=states.QUEUED))
        await self.tx.add_recording(opened)
        await self.tx.journal(opened.key, self.event, "", states.JOINING, "a recording opens")
        idle = effects.Arm("idle", self.tx.now_ms + self.context.policy.idle_timeout_ms)
        await self._apply(current, opened, (effects.Command("start-capture"), idle))
        return opened

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def advance_session(self, value: model.Session, trigger: str) -> session.SessionDecision:
        """Trigger a session and write the decision, to its recordings too."""
        owner = value.key
        recordings = await self.tx.recordings(value.task_id)
        live = [r for r in recordings if not r.final]
        facts = session.SessionFacts(
            now_ms=self.tx.now_ms,
            policy=self.context.policy,
            live=len(live),
            uploading=sum(r.state == states.UPLOADING for r in live),
            present=any(r.present for r in live),
        )
        decision = session.decide(value, trigger, facts)
        if decision.ignored:
            note = f"ignored: {trigger}: {decision.ignored}"
            await self.tx.journal(owner, self.event, value.state, value.state, note)
            return decision
        saved = await self.tx.save_session(value, decision.session)
        moves = decision.moves or ((value.state, value.state),)
        await self._journal_moves(owner, moves, _session_note(value, saved, trigger))
        for effect in decision.effects:
            match effect:
                case effects.StopRecordings():
                    await self._stop_all(saved, recordings)
                case effects.Finish():
                    await self._finish(saved)
                case effects.Arm(kind, at_ms):
                    await self.tx.arm(owner, kind, at_ms)
                case effects.Disarm(kind):
                    await self.tx.disarm(owner, kind)
        return replace(decision, session=saved)

    async def settle(self, task_id: str) -> None:
        """A recording has ended, or the session has closed: finish the session or revise its result, if nothing is left to do."""
        current = await self.tx.session(task_id)
        if current is None or current.state == states.OPEN:
            return
        if current.state == states.CLOSING and any(not r.final for r in await self.tx.recordings(task_id)):
            return
        await self.advance_session(current, "all-final")

    async def open_session(self, opened: model.Session, secrets: requests.Secrets) -> None:
        """Add a session with its secrets, and arm its deadlines."""
        owner = job_key.SessionKey(opened.task_id)
        await self.tx.add_session(opened, secrets)
        await self.tx.journal(owner, self.event, "", states.OPEN, f"mode {opened.request.mode}")
        for effect in session.opening(session.SessionFacts(now_ms=self.tx.now_ms, policy=self.context.policy)):
            await self.tx.arm(owner, effect.kind, effect.at_ms)

    # --- deliveries -------------------------------------------------------------------------------------------------------
    async def advance_delivery(
        self, value: model.Delivery, trigger: str, outcome: internal_events.DeliveryOutcome | None = None
    ) -> delivery.DeliveryDecision:
        """Trigger the delivery of a result and write the decision."""
        decision = delivery.decide(value, trigger, now_ms=self.tx.now_ms, policy=self.context.policy, outcome=outcome)
        if decision.ignored:
            note = f"ignored: {trigger}: {decision.ignored}"
            await self.tx.journal(value.key, self.event, value.state, value.state, note)
            return decision
        await self.tx.save_delivery(value, decision.delivery)
        note = decision.delivery.detail
        await self.tx.journal(value.key, self.event, value.state, decision.delivery.state, note)
        await self._apply_to_delivery(decision)
        return decision

    async def send(self, channel: str, type_: str, data: Mapping[str, Any], owner: job_key.OwnerKey, node: str = "") -> None:
        """Put a message into the outbox, checked against its schema."""
        event = codec.make(
            type_,
            id=self.context.new_id(),
            time_ms=self.tx.now_ms,
            data=data,
            subject=owner.text,
            correlation_id=self.event.id,
        )
        await self.tx.send(channel, event, owner.task_id, node)

    async def _placement(self, value: model.Recording) -> tuple[str, bool]:
        """The node that holds most segments, and whether the node of the present job is away. Neither matters on a shared
        spool."""
        if self.context.shared_spool:
            return "", False
        nodes = await self.tx.segment_nodes(value.key)
        home = max(nodes, key=lambda node: (nodes[node], node), default="")
        job = value.job
        if job is None or not job.node or job.state not in (states.WAITING, states.QUEUED):
            return home, False
        return home, await self.tx.node_seen_ms(job.node) < self.tx.now_ms - 2 * self.context.policy.lease_ms

    def needs_secrets(self, recordings: Sequence[model.Recording]) -> bool:
        """Whether a recording still needs the secrets: it is not final, or it failed within KEEP_FAILED and may be replayed."""
        kept_from_ms = self.tx.now_ms - self.context.policy.keep_failed_ms
        failed = [r for r in recordings if r.state == states.FAILED and not r.never_seen]
        return any(not r.final for r in recordings) or any((r.ended_ms or 0) > kept_from_ms for r in failed)

    # --- shared by the methods above --------------------------------------------------------------------------------------
    async def _apply(self, current: model.Session, value: model.Recording, found: Iterable[effects.Effect]) -> None:
        owner = value.key
        for effect in found:
            match effect:
                case effects.Command(type_):
                    data = {"TaskId": value.task_id, "Speaker": value.speaker, "N": value.n, "Epoch": value.epoch}
                    node = value.job.node if value.job else ""
                    await self.send("command", type_, data, owner, node)
                case effects.Arm(kind, at_ms):
                    await self.tx.arm(owner, kind, at_ms)
                case effects.Disarm(kind):
                    await self.tx.disarm(owner, kind)
                case effects.Report():
                    await self._report(current, value)

    async def _report(self, current: model.Session, value: model.Recording) -> None:
        if value.never_seen:
            return
        type_, data = results.recording_result(current, value)
        await self.send("result", type_, data, value.key)

    async def _stop_all(self, current: model.Session, recordings: list[model.Recording]) -> None:
        for value in recordings:
            if value.state in states.CAPTURING:
                await self.advance_recording(current, value, "stop")
        await self.settle(current.task_id)

    async def _finish(self, current: model.Session) -> None:
        recordings = await self.tx.recordings(current.task_id)
        body = results.session_result(current, recordings)
        event = codec.make(
            "session-finished",
            id=f"{current.task_id}.{current.revision}",
            time_ms=self.tx.now_ms,
            data=body,
            subject=current.task_id,
            correlation_id=self.event.id,
        )
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        await self.tx.add_result(current.task_id, current.revision, text)
        await self.tx.send("result", event, current.task_id)
        for older in await self.tx.deliveries(current.task_id):
            if older.state == delivery.PENDING:
                await self.advance_delivery(older, "cancel")
        if current.request.callback:
            await self._open_delivery(current, text)
        if not self.needs_secrets(recordings):
            await self.tx.wipe_secrets(current.task_id)

    async def _open_delivery(self, current: model.Session, body: str) -> None:
        new = model.Delivery(task_id=current.task_id, revision=current.revision, url=current.request.callback, body=body)
        decision = delivery.decide(new, "send", now_ms=self.tx.now_ms, policy=self.context.policy)
        await self.tx.add_delivery(decision.delivery)
        await self._apply_to_delivery(decision)

    async def _apply_to_delivery(self, decision: delivery.DeliveryDecision) -> None:
        value = decision.delivery
        owner = value.key
        for effect in decision.effects:
            match effect:
                case effects.Command(type_):
                    data = {"TaskId": value.task_id, "Revision": value.revision, "Epoch": value.epoch}
                    await self.send("command", type_, data, owner)
                case effects.Arm(kind, at_ms):
                    await self.tx.arm(owner, kind, at_ms)
                case effects.Disarm(kind):
                    await self.tx.disarm(owner, kind)

    async def _journal_moves(self, owner: job_key.OwnerKey, moves: tuple[tuple[str, str], ...], note: str) -> None:
        for index, (source, target) in enumerate(moves):
            last = index == len(moves) - 1
            await self.tx.journal(owner, self.event, source, target, note if last else "")


def _note(old: model.Recording, new: model.Recording) -> str:
    """The journal's note on what changed."""
    parts = []
    if new.stop_requested and not old.stop_requested and new.state == old.state:
        parts.append("asked to stop")
    if new.job != old.job:
        parts.append(f"{new.job.kind} {new.job.state}" if new.job else "no job left")
    if new.epoch != old.epoch:
        parts.append(f"epoch {new.epoch}")
    if new.replays != old.replays:
        parts.append(f"attempt {new.attempt}")
    if new.present is not old.present:
        parts.append({True: "speaker present", False: "speaker left", None: "presence unknown"}[new.present])
    if new.publish_pending and not old.publish_pending:
        parts.append("a pull is active; if it brings no media, the next one starts immediately")
    if new.detail and new.detail != old.detail:
        parts.append(new.detail)
    return "; ".join(parts)


def _session_note(old: model.Session, new: model.Session, trigger: str) -> str:
    if new.revision != old.revision:
        return f"revision {new.revision}"
    return new.end_reason if new.end_reason != old.end_reason else trigger
