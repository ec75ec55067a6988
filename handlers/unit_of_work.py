"""Unit of work: the decisions of one event, and the changes that they yield.

Rules: no I/O and no waiting; the store loads before and writes afterwards. This module alone notes what a decision yields (state,
job, command, deadline, journal line, result), so that no handler notes half of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from events import codec, requests
from handlers import deliveries, journal_notes, snapshot_facts
from machine import (
    changes,
    effects,
    errors,
    internal_events,
    job_key,
    model,
    ports,
    progress,
    published,
    recording,
    results,
    session,
    states,
)

# The triggers after which a session may revise its result.
REVISING = ("all-final", "revise-over")
# Commands whose work is on a recording's files.
FILE_COMMANDS = ("start-transcode", "start-upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What handlers get besides snapshot and event."""

    policy: model.Policy
    new_id: Callable[[], str]  # a fresh ULID
    shared_spool: bool = True  # any node can reach any segment
    several: bool = False  # there may be several nodes
    # The address of a recording's object.
    object_url: Callable[[requests.StartRequest, model.Recording], str] = lambda request, recording: ""
    # The address of a session's manifest.
    manifest_url: Callable[[requests.StartRequest, str], str] = lambda request, task_id: ""
    mints: Callable[[int], bool] = lambda sdk_app_id: False  # whether the service can generate UserSigs for the application
    user_per_speaker: bool = False  # PULL_USER


class UnitOfWork:
    """One event's decisions: reads come from the snapshot, as changed by the decisions made so far; writes go to `changes`."""

    def __init__(
        self,
        snapshot: ports.Snapshot,
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
        self.snapshot = snapshot
        self.now_ms = snapshot.now_ms
        self.event = event
        self.context = context
        self.warnings = warnings
        self.changes = changes.Changes()

    # --- reads ------------------------------------------------------------------------------------------------------------
    def find_session(self, task_id: str) -> model.Session | None:
        """The session."""
        changed = self.changes.sessions.get(task_id)
        return changed[1] if changed else self.snapshot.session(task_id)

    def held(self, task_id: str) -> model.Session:
        """A session that this decision has loaded or opened before."""
        found = self.find_session(task_id)
        if found is None:
            raise RuntimeError(f"session {task_id} is not loaded")
        return found

    def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        opened_here = task_id in self.changes.sessions and self.changes.sessions[task_id][0] is None
        return self._current(() if opened_here else self.snapshot.recordings(task_id), task_id)

    def recordings_of(self, task_id: str, speaker: str) -> list[model.Recording]:
        """The recordings of one speaker, oldest first."""
        opened_here = task_id in self.changes.sessions and self.changes.sessions[task_id][0] is None
        found = () if opened_here else self.snapshot.recordings_of(task_id, speaker)
        return [r for r in self._current(found, task_id) if r.speaker == speaker]

    def next_n(self, task_id: str, speaker: str) -> int:
        """The next free number of a speaker: of a recording, of its object, or of one that was delivered before."""
        found = self.recordings_of(task_id, speaker)
        return max((n for r in found for n in (r.n, r.object_n, *(file.n for file in r.delivered))), default=0) + 1

    def find_recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        """One recording with its present job."""
        changed = self.changes.recordings.get(key)
        return changed[1] if changed else self.snapshot.recording(key)

    def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application ever arrived."""
        return sdk_app_id in self.changes.applications or self.snapshot.callback_ms(sdk_app_id) > 0

    # --- recordings -------------------------------------------------------------------------------------------------------
    def advance_recording(
        self, value: model.Recording, trigger: str, outcome: internal_events.RecordingOutcome | None = None
    ) -> recording.RecordingDecision:
        """Trigger a recording and note the decision."""
        facts = self.facts(value, outcome)
        decision = recording.decide(value, trigger, facts)
        if decision.ignored:
            self.journal(value.key, value.state, value.state, f"ignored: {decision.ignored}")
            return decision
        events = progress.noted(self.held(value.task_id), value, decision, trigger, facts)
        saved = decision.recording
        self._save_recording(value, saved)
        self._journal_moves(value.key, decision.moves or ((value.state, value.state),), journal_notes.of_recording(value, saved))
        self._apply(saved, (*events, *decision.effects))
        return decision

    def facts(
        self, value: model.Recording, outcome: internal_events.RecordingOutcome | None = None
    ) -> snapshot_facts.SnapshotFacts:
        """The facts for a decision about a recording."""
        return snapshot_facts.SnapshotFacts(
            snapshot=self.snapshot,
            value=value,
            policy=self.context.policy,
            shared_spool=self.context.shared_spool,
            sdk_app_id=self.held(value.task_id).request.room.sdk_app_id,
            outcome=outcome,
            from_stage=self.event.data.get("From", "") if self.event.type == "replay" else "",
            next_n=lambda: self.next_n(value.task_id, value.speaker),
        )

    def open_recording(self, value: model.Recording) -> None:
        """Add a recording with its first pull queued."""
        opened = model.changed(value, epoch=1, job=model.Job(kind=states.CAPTURE, state=states.QUEUED))
        self._save_recording(None, opened)
        self.journal(opened.key, "", states.JOINING, "a recording opens")
        idle = effects.Arm("idle", self.now_ms + self.context.policy.idle_timeout_ms)
        self._apply(opened, (effects.Command("start-capture"), idle))

    def count_eviction(self, value: model.Recording) -> None:
        """Count one more run that another pull of the session ended."""
        self._save_recording(value, model.changed(value, evicted=value.evicted + 1))

    def note_published(self, value: model.Recording, told: published.Published) -> model.Recording:
        """Note when the speaker was known to publish; returns the recording's new version."""
        if told == value.published:
            return value
        new = model.changed(value, published=told)
        self._save_recording(value, new)
        return new

    def _save_recording(self, old: model.Recording | None, new: model.Recording) -> None:
        """Note a recording's new version, a fresh copy, and count it on its session's row."""
        pair = self.changes.recordings.get(new.key)
        before = pair[0] if pair else old
        if before is not None:
            model.put(new, version=before.version + 1)
        self.changes.recordings[new.key] = (before, new)
        current = self.held(new.task_id)
        counts = {
            name: getattr(current, name) + now - then
            for name, now, then in zip(model.COUNTS, model.counted(new), model.counted(old), strict=True)
            if now != then
        }
        if counts:
            self.save_session(model.changed(current, **counts))

    # --- sessions ---------------------------------------------------------------------------------------------------------
    def save_session(self, new: model.Session) -> None:
        """Note a session's new version, a fresh copy."""
        pair = self.changes.sessions.get(new.task_id)
        before = pair[0] if pair else self.snapshot.session(new.task_id)
        if before is not None:
            model.put(new, version=before.version + 1)
        self.changes.sessions[new.task_id] = (before, new)

    def advance_session(self, task_id: str, trigger: str, ended: model.Recording | None = None) -> session.SessionDecision:
        """Trigger a session and note the decision, for its recordings too. `ended` is a recording that has just become final."""
        value = self._recounted(task_id) if trigger == "result-wait-over" else self.held(task_id)
        facts = session.SessionFacts(
            now_ms=self.now_ms,
            policy=self.context.policy,
            live=value.live,
            uploading=value.uploading,
            present=value.present > 0,
            replaying=self._replaying(value, trigger, ended),
            replay_ended=ended is not None and ended.replays > 0,
        )
        decision = session.decide(value, trigger, facts)
        if decision.ignored:
            self.journal(value.key, value.state, value.state, f"ignored: {trigger}: {decision.ignored}")
            return decision
        self.save_session(decision.session)
        moves = decision.moves or ((value.state, value.state),)
        self._journal_moves(value.key, moves, journal_notes.of_session(value, decision.session, trigger))
        for effect in decision.effects:
            match effect:
                case effects.StopRecordings():
                    self._stop_all(task_id)
                case effects.Finish():
                    self._finish(task_id)
                case _:
                    self.apply_deadline(value.key, effect)
        return decision

    def _recounted(self, task_id: str) -> model.Session:
        """The session with the counts of the recordings that are there: a deleted one would be waited for without end."""
        value = self.held(task_id)
        counts = [model.counted(r) for r in self.recordings(task_id)]
        found = {name: sum(count[at] for count in counts) for at, name in enumerate(model.COUNTS)}
        if all(getattr(value, name) == number for name, number in found.items()):
            return value
        self.journal(
            value.key, value.state, value.state, f"the session counted {value.live} unfinished recordings, not {found['live']}"
        )
        self.save_session(model.changed(value, **found))
        return self.held(task_id)

    def _replaying(self, value: model.Session, trigger: str, ended: model.Recording | None) -> bool:
        """Whether the next revision waits for a replayed recording. After RESULT_WAIT in which none ended, only for one whose
        stage began meanwhile."""
        if trigger not in REVISING or value.state != states.FINISHED or not value.live:
            return False
        if trigger == "all-final" and ended is not None and not ended.replays:
            # A pending upload: the next revision comes by `revise-over`, which asks again.
            return False
        since_ms = self.now_ms - self.context.policy.result_wait_ms if trigger == "revise-over" else 0
        return any(r.replays and not r.final and r.stage_started_ms > since_ms for r in self.recordings(value.task_id))

    def settle(self, task_id: str, ended: model.Recording | None = None) -> None:
        """A recording has ended, or the session has closed: finish the session or revise its result, if nothing is left to do."""
        current = self.held(task_id)
        if current.state == states.OPEN or (current.state == states.CLOSING and current.live):
            return
        self.advance_session(task_id, "all-final", ended)

    def open_session(self, opened: model.Session, secrets: requests.Secrets) -> None:
        """Add a session with its secrets, and arm its deadlines."""
        self.changes.sessions[opened.task_id] = (None, opened)
        self.changes.secrets[opened.task_id] = secrets
        self.journal(opened.key, "", states.OPEN, f"mode {opened.request.mode}")
        for effect in session.opening(session.SessionFacts(now_ms=self.now_ms, policy=self.context.policy)):
            self.apply_deadline(opened.key, effect)

    def publish(self, type_: str, data: Mapping[str, Any], owner: job_key.RecordingKey) -> None:
        """Publish an event of a recording's progress, and post it to the callback that asked for it."""
        self.send("result", type_, data, owner)
        current = self.held(owner.task_id)
        if type_ in current.request.callback_events and current.events_posted < model.MOST_EVENTS:
            deliveries.begin(self, current, model.EVENTS_FROM + current.events_posted + 1, _json({"Type": type_, **data}))
            self.save_session(model.changed(current, events_posted=current.events_posted + 1))

    # --- journal, messages, deadlines -------------------------------------------------------------------------------------
    def journal(self, owner: job_key.OwnerKey, source: str, target: str, note: str) -> None:
        """Note one line of the timeline."""
        self.changes.journal.append(changes.JournalEntry(owner, self.event.id, self.event.type, source, target, note))

    def send(self, channel: str, type_: str, data: Mapping[str, Any], owner: job_key.OwnerKey, node: str = "") -> None:
        """Put a message into the outbox, checked against its schema."""
        event = codec.make(
            type_, id=self.context.new_id(), time_ms=self.now_ms, data=data, subject=owner.text, correlation_id=self.event.id
        )
        self.changes.send(channel, event, owner.task_id, node)

    def arm(self, owner: job_key.OwnerKey, kind: str, at_ms: int, *, once: bool = False) -> None:
        """Arm a deadline; replaces an earlier one of the same kind, unless `once`."""
        # One event arms a deadline once, so the serial of an arming differs from those of all others.
        arming = f"{self.event.inbox_id} {owner.text} {kind}".encode("utf-8", "surrogatepass")
        serial = hashlib.blake2b(arming, digest_size=16).hexdigest()
        self.changes.deadlines[owner, kind] = changes.Armed(at_ms, serial, once)

    def apply_deadline(self, owner: job_key.OwnerKey, effect: effects.Effect) -> None:
        """Apply an effect that arms or disarms a deadline."""
        match effect:
            case effects.Arm(kind, at_ms, once):
                self.arm(owner, kind, at_ms, once=once)
            case effects.Disarm(kind):
                self.changes.deadlines[owner, kind] = None
            case _:
                raise TypeError(f"{effect} is no deadline's")

    def needs_secrets(self, recordings: Iterable[model.Recording]) -> bool:
        """Whether a recording still needs the secrets: it is not final, or it failed within KEEP_FAILED and may be replayed."""
        kept_from_ms = self.now_ms - self.context.policy.keep_failed_ms
        return any(
            not r.final or (r.state == states.FAILED and not r.never_seen and (r.ended_ms or 0) > kept_from_ms)
            for r in recordings
        )

    def wipe_secrets(self, task_id: str) -> None:
        """Wipe the secrets, unless a recording still needs them."""
        if not self.needs_secrets(self.recordings(task_id)):
            self.changes.secrets[task_id] = None

    # --- shared by the methods above --------------------------------------------------------------------------------------
    def _current(self, loaded: Sequence[model.Recording], task_id: str) -> list[model.Recording]:
        """Loaded recordings in their present versions, and those that this decision added."""
        pairs = self.changes.recordings
        found = [pairs[r.key][1] if r.key in pairs else r for r in loaded]
        return found + [new for old, new in pairs.values() if old is None and new.task_id == task_id]

    def _apply(self, value: model.Recording, found: Iterable[effects.Effect]) -> None:
        for effect in found:
            match effect:
                case effects.Command(type_):
                    data = {"TaskId": value.task_id, "Speaker": value.speaker, "N": value.n, "Epoch": value.epoch}
                    self.send("command", type_, data, value.key, self._node_for(value, type_))
                case effects.Report():
                    self._report(value)
                case effects.Publish(type_, data):
                    self.publish(type_, data, value.key)
                case _:
                    self.apply_deadline(value.key, effect)

    def _node_for(self, value: model.Recording, type_: str) -> str:
        """The node that gets a command, "" for any: the only one that can do it; on a shared spool at first the one that captured
        last, because it may follow the recording. Without a free slot it returns the command to all."""
        bound = value.job.node if value.job else ""
        first = self.context.several and self.context.shared_spool and type_ in FILE_COMMANDS and not value.failures
        if bound or not first:
            return bound
        last = next(reversed(self.snapshot.segment_nodes(value.key)), "")
        alive = last and self.snapshot.node_seen_ms(last) >= self.now_ms - self.context.policy.lease_ms
        return last if alive else ""

    def _report(self, value: model.Recording) -> None:
        if value.never_seen:
            return
        type_, data = results.recording_result(self.held(value.task_id), value)
        self.send("result", type_, data, value.key)

    def _stop_all(self, task_id: str) -> None:
        for value in self.recordings(task_id):
            if value.state in states.CAPTURING:
                self.advance_recording(value, "stop")
        self.settle(task_id)

    def _finish(self, task_id: str) -> None:
        current, recordings = self.held(task_id), self.recordings(task_id)
        body = results.session_result(current, recordings)
        event = codec.make(
            "session-finished",
            id=f"{task_id}.{current.revision}",
            time_ms=self.now_ms,
            data=body,
            subject=task_id,
            correlation_id=self.event.id,
        )
        text = _json(body)
        self.changes.results.append((task_id, current.revision, text))
        self.changes.send("result", event, task_id)
        deliveries.replace(self, current, text)

    def _journal_moves(self, owner: job_key.OwnerKey, moves: tuple[tuple[str, str], ...], note: str) -> None:
        for source, target in moves[:-1]:
            self.journal(owner, source, target, "")
        self.journal(owner, *moves[-1], note)


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
