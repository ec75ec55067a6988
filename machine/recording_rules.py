"""What a recording's decision may look at, and what it may do: the conditions and actions that the rows of its table name.

May import `machine` and `events`. Rule: pure. A cursor lives for one decision; the docstring of a condition or action is its
wording in docs/state-machine.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transitions import EventData

from machine import decision_table, effects, model, recording_facts, states
from machine.reasons import Reason

J, R, T, U = states.JOINING, states.RECORDING, states.TRANSCODING, states.UPLOADING

# Whether TRTC lets several pulls share one UserId is not confirmed; in its SDK a second entry of a user evicts the first.
EVICTIONS_NAMED = 3
EVICTED = (
    "Pulls of this session ended one another, again and again: it seems that TRTC lets a UserId in only once. Give the service"
    " the application's key (TRTC_KEYS) and set PULL_USER=per-speaker."
)


class Cursor:
    """A throw-away walker of the table: conditions read the facts, actions rewrite the recording and collect effects."""

    def __init__(self, recording: model.Recording, facts: recording_facts.Facts) -> None:
        self.recording = recording
        self.facts = facts
        self.state = recording.state
        self.fired = decision_table.Fired()
        self.effects: list[effects.Effect] = []

    # --- conditions -----------------------------------------------------------------------------------------------------
    def stopping(self, _: EventData) -> bool:
        """A stop was requested."""
        return self.recording.stop_requested

    def leased(self, _: EventData) -> bool:
        """A worker holds the capture."""
        return self.recording.capture == states.LEASED

    def running(self, _: EventData) -> bool:
        """The capture is queued or leased."""
        return self.recording.capture in (states.QUEUED, states.LEASED)

    def waiting(self, _: EventData) -> bool:
        """The present job waits for its next try."""
        return self.recording.job is not None and self.recording.job.state == states.WAITING

    def working(self, _: EventData) -> bool:
        """A worker holds the present job, or it is on its way to one."""
        return self.recording.job is not None and self.recording.job.state in (states.QUEUED, states.LEASED)

    def stale(self, _: EventData) -> bool:
        """An older epoch speaks."""
        return bool(self.facts.data.get("Epoch") != self.recording.epoch)

    def got_media(self, _: EventData) -> bool:
        """This run put media of a wanted track on disk."""
        return self._media_ms() > 0

    def spool_gone(self, _: EventData) -> bool:
        """The disk is full or the spool is lost."""
        return self.facts.data.get("Reason") in (Reason.DISK_FULL, Reason.SPOOL_LOST)

    def hopeless(self, _: EventData) -> bool:
        """A refusal that no retry cures."""
        return self.facts.data.get("Reason") == Reason.REFUSED_FOR_GOOD

    def absent(self, _: EventData) -> bool:
        """A callback says that the speaker left."""
        return self.recording.present is False

    def present(self, _: EventData) -> bool:
        """A callback says that the speaker is there."""
        return self.recording.present is True

    def never_seen(self, _: EventData) -> bool:
        """A subscribed speaker who was never seen."""
        return self.recording.never_seen

    def last_pull(self, _: EventData) -> bool:
        """It was the last try, at the end of LINGER."""
        return self.recording.last_pull

    def publish_pending(self, _: EventData) -> bool:
        """A track was switched on since this run was asked for, and no media was told of since."""
        return self.recording.publish_pending

    def at_once(self, _: EventData) -> bool:
        """The run ended only because a track appeared, or because its node stops: the stream is live."""
        return self.facts.data.get("Reason") in (Reason.NEW_TRACK, Reason.NODE_STOPPING)

    def node_stops(self, _: EventData) -> bool:
        """Its node stops, in an orderly way."""
        return self.facts.data.get("Reason") == Reason.NODE_STOPPING

    def tried_often(self, _: EventData) -> bool:
        """Several runs in a row brought nothing."""
        return self.recording.failures >= 3

    def lately(self, _: EventData) -> bool:
        """Media came within IDLE_TIMEOUT."""
        return self.recording.idle_from_ms + self.facts.policy.idle_timeout_ms > self.facts.now_ms

    def verified(self, _: EventData) -> bool:
        """The output is verified."""
        return self.facts.data.get("Reason") == Reason.OK and "Output" in self.facts.data

    def again(self, _: EventData) -> bool:
        """The same step may succeed when tried again, and tries are left."""
        retry = bool(self.facts.data.get("Retry", True))
        if self.state == U:
            return retry and self.facts.now_ms < self.recording.stage_started_ms + self.facts.policy.upload_retry_for_ms
        return retry and self.recording.failures < len(self.facts.policy.transcode_backoff_ms)

    def lost_too_often(self, _: EventData) -> bool:
        """Its workers died again and again."""
        return self.recording.failures >= self.facts.policy.lost_limit

    def node_away(self, _: EventData) -> bool:
        """Segments lie on a node that is away, and NODE_RETURN is not over."""
        return self.facts.data.get("Reason") == Reason.NODE_AWAY

    def target_away(self, _: EventData) -> bool:
        """The job is for a node that is away."""
        return self.facts.target_away

    def to_uploading(self, _: EventData) -> bool:
        """A verified output exists, and no earlier stage was asked for."""
        return self.facts.has_output and self.facts.data.get("From", "uploading") == "uploading"

    def to_transcoding(self, _: EventData) -> bool:
        """Segments exist, and Joining was not asked for."""
        return self.facts.has_segments and self.facts.data.get("From", "transcoding") in ("transcoding", "uploading")

    def asked_earlier(self, _: EventData) -> bool:
        """An earlier stage was asked for by name."""
        return "From" in self.facts.data

    # --- actions --------------------------------------------------------------------------------------------------------
    def mark_present(self, _: EventData) -> None:
        """The speaker is there: no linger, no last pull, and pauses grow from the shortest again."""
        self._set(present=True, never_seen=False, last_pull=False, failures=0)
        self._add(effects.Disarm("linger"))

    def note_call(self, _: EventData) -> None:
        """The run on its way may be too early for the track: should it end without media, the next one starts at once."""
        self._set(publish_pending=True)

    def answer_call(self, _: EventData) -> None:
        """The run was early enough."""
        self._set(publish_pending=False)

    def mark_absent(self, _: EventData) -> None:
        """The speaker left: LINGER begins."""
        self._set(present=False, never_seen=False, last_pull=False, publish_pending=False)
        self.arm_linger(_)

    def arm_linger(self, _: EventData) -> None:
        """LINGER begins anew."""
        self._add(effects.Arm("linger", self.facts.now_ms + self.facts.policy.linger_ms))

    def arm_idle(self, _: EventData) -> None:
        """Look again when IDLE_TIMEOUT may be over."""
        from_ms = max(self.recording.idle_from_ms, self.facts.now_ms - self.facts.policy.idle_timeout_ms + model.SECOND)
        if self.recording.present or self.recording.never_seen:
            from_ms = self.facts.now_ms
        self._add(effects.Arm("idle", from_ms + self.facts.policy.idle_timeout_ms))

    def queue_capture(self, _: EventData) -> None:
        """Start the next segment now."""
        self._queue(states.CAPTURE)

    def queue_transcode(self, _: EventData) -> None:
        """Start the transcode."""
        self._begin_step()
        self._queue(states.TRANSCODE)

    def queue_upload(self, _: EventData) -> None:
        """Start the upload."""
        self._begin_step()
        self._queue(states.UPLOAD)

    def queue_again(self, _: EventData) -> None:
        """Issue the present step's command again under a new epoch."""
        kind = {J: states.CAPTURE, R: states.CAPTURE, T: states.TRANSCODE, U: states.UPLOAD}[self.state]
        self._queue(kind)

    def release(self, _: EventData) -> None:
        """The waiting job's time has come: same epoch, now queued."""
        job = self.recording.job
        if job is not None:
            self._set(job=replace(job, state=states.QUEUED))
            self._add(effects.Command(f"start-{job.kind}"))

    def try_last(self, _: EventData) -> None:
        """Pull one last time."""
        self._set(last_pull=True)
        self._queue(states.CAPTURE)

    def wait_capture(self, _: EventData) -> None:
        """Start the next segment after a growing pause."""
        if self._media_ms() > 0 and self.recording.last_pull:
            self._set(last_pull=False, present=None)
        policy = self.facts.policy
        pauses = policy.capture_backoff_ms if self.facts.callbacks_come else policy.blind_capture_backoff_ms
        self._wait(states.CAPTURE, pauses)

    def wait_transcode(self, _: EventData) -> None:
        """Try the transcode again after a pause."""
        self._wait(states.TRANSCODE, self.facts.policy.transcode_backoff_ms)

    def wait_node(self, _: EventData) -> None:
        """Look again soon whether the node is back; that is no try in vain."""
        failures = self.recording.failures
        self._wait(states.TRANSCODE, (self.facts.policy.node_away_backoff_ms,))
        self._set(failures=failures)

    def queue_anywhere(self, _: EventData) -> None:
        """Whoever takes it goes on with the segments that can be reached."""
        self._queue(states.TRANSCODE, anywhere=True)

    def wait_longer(self, _: EventData) -> None:
        """The node is there: only look again later."""
        self._add(effects.Arm("node-return", self.facts.now_ms + self.facts.policy.node_return_ms))

    def fail_away(self, _: EventData) -> None:
        """The node that holds the finished file did not come back."""
        node = self.recording.output_node
        self._fail(f"The finished file lies on {node}, which did not come back in time; start it and replay.")

    def wait_upload(self, _: EventData) -> None:
        """Try the upload again after a growing pause."""
        self._wait(states.UPLOAD, self.facts.policy.upload_backoff_ms)

    def count_try(self, _: EventData) -> None:
        """It was one more try in vain."""
        self._set(failures=self.recording.failures + 1)

    def end_capture(self, _: EventData) -> None:
        """No capture any more; a queued or waiting one is void under a new epoch."""
        if self.recording.capture != states.LEASED:
            self._set(epoch=self.recording.epoch + 1)
        self._set(job=None)
        self._add(effects.Disarm("retry"))

    def ask_stop(self, _: EventData) -> None:
        """Ask the worker to end the capture, and wait for it."""
        self._set(stop_requested=True)
        self._add(effects.Command("stop-capture"))

    def note_media(self, _: EventData) -> None:
        """Media is on disk."""
        data = self.facts.data
        first, last = data.get("FirstPacketMs"), data.get("LastPacketMs") or data.get("FirstPacketMs")
        self._set(
            never_seen=False,
            first_packet_ms=self.recording.first_packet_ms or first or self.facts.now_ms,
            last_packet_ms=max(self.recording.last_packet_ms or 0, last or 0) or self.facts.now_ms,
            idle_from_ms=max(self.recording.idle_from_ms, last or self.facts.now_ms),
        )

    def count_media(self, _: EventData) -> None:
        """Add what a run put on disk; a run that brought media ends the series of failures."""
        if self._media_ms() > 0:
            self._set(media_ms=self.recording.media_ms + self._media_ms(), failures=0)
            self.note_media(_)

    def keep_output(self, _: EventData) -> None:
        """The verified file is known."""
        output = model.Output.from_json(self.facts.data["Output"])
        self._set(output=output, output_node=str(self.facts.data.get("Node") or ""))

    def finish(self, _: EventData) -> None:
        """The object is in the bucket."""
        output = self.recording.output
        if output is not None:
            output = replace(output, size_bytes=self.facts.data["SizeBytes"], crc64=self.facts.data["Crc64"])
        self._set(output=output, url=self.facts.data["Url"], code=states.SUCCESS, detail=self._evicted())
        self._end()

    def fail(self, _: EventData) -> None:
        """It failed in the present state; what is on disk is kept."""
        detail = str(self.facts.data.get("Detail") or self.facts.data.get("Reason") or "The worker ended without an outcome.")
        self._fail(detail)

    def fail_empty(self, _: EventData) -> None:
        """It ended without any media."""
        tracks = " or ".join(states.WANTED_KINDS[self.recording.mode])
        stopped = self.facts.data.get("Reason") == Reason.STOPPED  # which says nothing of why no media came
        seen = self._evicted() or (self.recording.detail if stopped else self.facts.data.get("Detail")) or self.recording.detail
        self._fail(
            f"No {tracks} of {self.recording.speaker!r} arrived before the recording ended." + (f" {seen}" if seen else "")
        )

    def fail_lost(self, _: EventData) -> None:
        """Its workers died too often."""
        self._fail(f"{self.recording.failures} workers in a row ended without an outcome; see the service's log, then replay.")

    def begin_attempt(self, _: EventData) -> None:
        """A replay begins."""
        self._set(
            replays=self.recording.replays + 1,
            stop_requested=True,
            failures=0,
            code="",
            detail="",
            url="",
            ended_ms=None,
            last_pull=False,
            files_removed=False,
        )
        self._add(effects.Disarm("keep"))

    def rejoin(self, _: EventData) -> None:
        """Capture again from Joining; the replay has reopened the session."""
        self._set(stop_requested=False, present=None, output=None, idle_from_ms=self.facts.now_ms, state=J)
        self._add(effects.Arm("idle", self.facts.now_ms + self.facts.policy.idle_timeout_ms))

    # --- the small steps they share ---------------------------------------------------------------------------------------
    def _media_ms(self) -> int:
        return int(self.facts.data.get("MediaMs") or 0)

    def _evicted(self) -> str:
        """Names mutual eviction, once it cannot be chance any more, and goes on naming it."""
        if self.facts.evictions >= EVICTIONS_NAMED:
            return EVICTED
        return EVICTED if self.recording.detail == EVICTED else ""

    def _set(self, **changes: Any) -> None:
        self.recording = model.changed(self.recording, **changes)

    def _add(self, effect: effects.Effect) -> None:
        self.effects.append(effect)

    def _begin_step(self) -> None:
        self._set(failures=0, stage_started_ms=self.facts.now_ms, stop_requested=True)
        for kind in ("linger", "idle", "node-return"):
            self._add(effects.Disarm(kind))

    def _queue(self, kind: str, *, anywhere: bool = False) -> None:
        node = "" if anywhere else self._place(kind)
        self._set(epoch=self.recording.epoch + 1, job=model.Job(kind=kind, state=states.QUEUED, node=node), publish_pending=False)
        self._add(effects.Disarm("retry"))
        self._add(effects.Command(f"start-{kind}"))
        if node:
            over_ms = self.recording.stage_started_ms + self.facts.policy.node_return_ms
            self._add(effects.Arm("node-return", max(over_ms, self.facts.now_ms + model.SECOND)))

    def _place(self, kind: str) -> str:
        """The only node a job is for: where its files lie; "" where that does not matter."""
        return {states.TRANSCODE: self.facts.home, states.UPLOAD: self.recording.output_node}.get(kind, "")

    def _wait(self, kind: str, pauses_ms: tuple[int, ...]) -> None:
        pause_ms = pauses_ms[min(self.recording.failures, len(pauses_ms) - 1)]
        detail = (self._evicted() if kind == states.CAPTURE else "") or str(self.facts.data.get("Detail") or "")
        self._set(
            epoch=self.recording.epoch + 1,
            failures=self.recording.failures + 1,
            job=model.Job(kind=kind, state=states.WAITING, node=self._place(kind)),
            detail=detail or self.recording.detail,
        )
        self._add(effects.Arm("retry", self.facts.now_ms + pause_ms))

    def _fail(self, detail: str) -> None:
        output = None if self.facts.data.get("Reason") == Reason.FILE_MISSING else self.recording.output
        self._set(code=states.FAILURE_OF[self.recording.state], detail=detail, output=output)
        self._add(effects.Arm("keep", self.facts.now_ms + self.facts.policy.keep_failed_ms))
        self._end()

    def _end(self) -> None:
        if self.recording.job is not None and self.recording.job.state in (states.WAITING, states.QUEUED):
            self._set(epoch=self.recording.epoch + 1)
        self._set(job=None, stop_requested=True, ended_ms=self.facts.now_ms)
        for kind in ("linger", "idle", "retry", "node-return"):
            self._add(effects.Disarm(kind))
        self._add(effects.Report())
