"""Rules of the recording's decision table: the guards and actions that its rows name.

Rule: pure. A rules object lives for one decision. The docstring of a guard or action is its wording in docs/state-machine.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from machine import effects, internal_events, model, pull_evictions, recording_facts, states
from machine.reasons import Reason

J, R, T, U = states.JOINING, states.RECORDING, states.TRANSCODING, states.UPLOADING

MAX_EMPTY_RUNS = 3
# A run of this length is no cause of its worker's loss.
LASTED_MS = 10 * model.SECOND


class RecordingRules:
    """One decision about a recording: guards read the recording and the facts, actions change the recording and add effects."""

    def __init__(self, recording: model.Recording, facts: recording_facts.Facts) -> None:
        self.recording = model.copied(recording)
        self.facts = facts
        self.state = recording.state
        self.effects: list[effects.Effect] = []
        self.outcome = outcome = facts.outcome
        self.reason = self.detail = ""
        self.retry = True
        self.media_ms = 0
        self.first_packet_ms: int | None = None
        self.last_packet_ms: int | None = None
        match outcome:
            case internal_events.FfmpegExit():
                self.reason, self.detail, self.retry = outcome.reason, outcome.detail, outcome.retry
                self.media_ms, self.first_packet_ms = outcome.media_ms, outcome.first_packet_ms
                self.last_packet_ms = outcome.last_packet_ms
            case internal_events.CaptureStarted():
                self.first_packet_ms = outcome.first_packet_ms
            case internal_events.WorkerLost():
                self.media_ms, self.last_packet_ms = outcome.media_ms or 0, outcome.last_packet_ms
            case internal_events.UploadFailure():
                self.reason, self.detail, self.retry = outcome.reason, outcome.detail, outcome.retry

    # --- guards -----------------------------------------------------------------------------------------------------------
    @property
    def stopping(self) -> bool:
        """A stop was requested."""
        return self.recording.stop_requested

    @property
    def capture_leased(self) -> bool:
        """A worker holds the capture."""
        return self.recording.capture == states.LEASED

    @property
    def capture_active(self) -> bool:
        """The capture is queued or leased."""
        return self.recording.capture in (states.QUEUED, states.LEASED)

    @property
    def job_waiting(self) -> bool:
        """The job waits for its retry."""
        return self.recording.job is not None and self.recording.job.state == states.WAITING

    @property
    def job_active(self) -> bool:
        """The job is queued or leased."""
        return self.recording.job is not None and self.recording.job.state in (states.QUEUED, states.LEASED)

    @property
    def stale(self) -> bool:
        """The outcome has an older epoch."""
        return self.outcome is None or self.outcome.epoch != self.recording.epoch

    @property
    def brought_media(self) -> bool:
        """This run wrote media of a wanted track."""
        return self.media_ms > 0

    @property
    def lost_again(self) -> bool:
        """The run brought little media, and the one before it failed or was lost too."""
        return self.media_ms < LASTED_MS and self.recording.failures > 0

    @property
    def disk_error(self) -> bool:
        """The disk is full or the spool is lost."""
        return self.reason in (Reason.DISK_FULL, Reason.SPOOL_LOST)

    @property
    def fatal_refusal(self) -> bool:
        """The server refused in a way that no retry cures."""
        return self.reason == Reason.REFUSED_FOR_GOOD

    @property
    def speaker_absent(self) -> bool:
        """A callback reported that the speaker left."""
        return self.recording.present is False

    @property
    def speaker_present(self) -> bool:
        """A callback reported that the speaker is there."""
        return self.recording.present is True

    @property
    def never_seen(self) -> bool:
        """The speaker is subscribed and was never seen."""
        return self.recording.never_seen

    @property
    def last_pull(self) -> bool:
        """This run is the last pull, at the end of LINGER."""
        return self.recording.last_pull

    @property
    def publish_pending(self) -> bool:
        """A track was switched on after this run was queued, and the run brought no media since."""
        return self.recording.publish_pending

    @property
    def restart_immediately(self) -> bool:
        """The run ended only because a track appeared or its node stops: the stream is live."""
        return self.reason in (Reason.NEW_TRACK, Reason.NODE_STOPPING)

    @property
    def node_stopping(self) -> bool:
        """Its node stops in an orderly way."""
        return self.reason == Reason.NODE_STOPPING

    @property
    def failed_repeatedly(self) -> bool:
        """Several runs in a row brought no media."""
        return self.recording.failures >= MAX_EMPTY_RUNS

    @property
    def media_recent(self) -> bool:
        """Media arrived within IDLE_TIMEOUT."""
        return self.recording.idle_from_ms + self.facts.policy.idle_timeout_ms > self.facts.now_ms

    @property
    def output_verified(self) -> bool:
        """The output is verified."""
        outcome = self.outcome
        return isinstance(outcome, internal_events.FfmpegExit) and self.reason == Reason.OK and outcome.output is not None

    @property
    def retryable(self) -> bool:
        """A retry may succeed, and retries are left."""
        if self.state == U:
            return self.retry and self.facts.now_ms < self.recording.stage_started_ms + self.facts.policy.upload_retry_for_ms
        return self.retry and self.recording.failures < len(self.facts.policy.transcode_backoff_ms)

    @property
    def lost_repeatedly(self) -> bool:
        """Too many workers in a row ended without an outcome."""
        return self.recording.failures >= self.facts.policy.lost_limit

    @property
    def node_away(self) -> bool:
        """Segments are on a node that is away, and NODE_RETURN is not over."""
        return self.reason == Reason.NODE_AWAY

    @property
    def target_away(self) -> bool:
        """The job is for a node that is away."""
        return self.facts.target_away

    @property
    def resume_at_upload(self) -> bool:
        """A verified output exists, and no earlier stage was named."""
        return self.facts.has_output and self.facts.from_stage in ("", "uploading")

    @property
    def resume_at_transcode(self) -> bool:
        """Segments exist, and Joining was not named."""
        return self.facts.has_segments and self.facts.from_stage in ("", "transcoding", "uploading")

    @property
    def stage_named(self) -> bool:
        """The replay names a stage."""
        return self.facts.from_stage != ""

    # --- actions ----------------------------------------------------------------------------------------------------------
    def mark_present(self) -> None:
        """The speaker is there: disarm LINGER, forget the last pull, restart the backoff."""
        self._set(present=True, never_seen=False, last_pull=False, failures=0)
        self.effects.append(effects.Disarm("linger"))

    def note_publish(self) -> None:
        """Note that the active run may be too early for the track (if it ends without media, the next one starts immediately)."""
        self._set(publish_pending=True)

    def clear_publish(self) -> None:
        """Note that the run was early enough for the track."""
        self._set(publish_pending=False)

    def mark_absent(self) -> None:
        """The speaker left: LINGER begins."""
        self._set(present=False, never_seen=False, last_pull=False, publish_pending=False)
        self.arm_linger()

    def arm_linger(self) -> None:
        """LINGER begins again."""
        self.effects.append(effects.Arm("linger", self.facts.now_ms + self.facts.policy.linger_ms))

    def arm_idle(self) -> None:
        """Check again when IDLE_TIMEOUT may be over."""
        from_ms = max(self.recording.idle_from_ms, self.facts.now_ms - self.facts.policy.idle_timeout_ms + model.SECOND)
        if self.recording.present or self.recording.never_seen:
            from_ms = self.facts.now_ms
        self.effects.append(effects.Arm("idle", from_ms + self.facts.policy.idle_timeout_ms))

    def queue_capture(self) -> None:
        """Start the next segment now."""
        self._queue(states.CAPTURE)

    def queue_transcode(self) -> None:
        """Start the transcode."""
        self._begin_stage()
        self._queue(states.TRANSCODE)

    def queue_upload(self) -> None:
        """Start the upload."""
        self._begin_stage()
        self._queue(states.UPLOAD)

    def requeue_job(self) -> None:
        """Issue the state's command again under a new epoch."""
        self._queue({J: states.CAPTURE, R: states.CAPTURE, T: states.TRANSCODE, U: states.UPLOAD}[self.state])

    def queue_waiting_job(self) -> None:
        """Queue the waiting job under the same epoch."""
        job = self.recording.job
        if job is not None:
            self._set(job=replace(job, state=states.QUEUED))
            self.effects.append(effects.Command(f"start-{job.kind}"))

    def pull_last_time(self) -> None:
        """Pull one last time."""
        self._set(last_pull=True)
        self._queue(states.CAPTURE)

    def retry_capture(self) -> None:
        """Start the next segment after a growing backoff."""
        if self.media_ms > 0 and self.recording.last_pull:
            self._set(last_pull=False, present=None)
        policy = self.facts.policy
        self._wait(states.CAPTURE, policy.capture_backoff_ms if self.facts.callbacks_come else policy.blind_capture_backoff_ms)

    def retry_transcode(self) -> None:
        """Retry the transcode after a backoff."""
        self._wait(states.TRANSCODE, self.facts.policy.transcode_backoff_ms)

    def wait_for_node(self) -> None:
        """Check again soon whether the node is back, without counting a failure."""
        failures = self.recording.failures
        self._wait(states.TRANSCODE, (self.facts.policy.node_away_backoff_ms,))
        self._set(failures=failures)

    def transcode_anywhere(self) -> None:
        """Any node transcodes the segments that it can reach."""
        self._queue(states.TRANSCODE, anywhere=True)

    def arm_node_return(self) -> None:
        """Check again after NODE_RETURN."""
        self.effects.append(effects.Arm("node-return", self.facts.now_ms + self.facts.policy.node_return_ms))

    def fail_node_away(self) -> None:
        """The node that holds the finished file did not come back."""
        node = self.recording.output_node
        self._fail(f"The finished file is on {node}, which did not come back in time; start it and replay.")

    def retry_upload(self) -> None:
        """Retry the upload after a growing backoff."""
        self._wait(states.UPLOAD, self.facts.policy.upload_backoff_ms)

    def count_failure(self) -> None:
        """Count one more failure."""
        self._set(failures=self.recording.failures + 1)

    def end_capture(self) -> None:
        """End the capture (a new epoch voids a queued or waiting one)."""
        if self.recording.capture != states.LEASED:
            self._set(epoch=self.recording.epoch + 1)
        self._set(job=None)
        self.effects.append(effects.Disarm("retry"))

    def request_stop(self) -> None:
        """Ask the worker to end the capture, and wait for it."""
        self._set(stop_requested=True)
        self.effects.append(effects.Command("stop-capture"))

    def note_media(self) -> None:
        """Note when media arrived."""
        first, last = self.first_packet_ms, self.last_packet_ms or self.first_packet_ms
        self._set(
            never_seen=False,
            first_packet_ms=self.recording.first_packet_ms or first or self.facts.now_ms,
            last_packet_ms=max(self.recording.last_packet_ms or 0, last or 0) or self.facts.now_ms,
            idle_from_ms=max(self.recording.idle_from_ms, last or self.facts.now_ms),
        )

    def count_media(self) -> None:
        """Add the run's media (media resets the count of failures; if the worker is lost, only media of some length does)."""
        if self.media_ms > 0:
            forgives = self.media_ms >= LASTED_MS or not isinstance(self.outcome, internal_events.WorkerLost)
            failures = 0 if forgives else self.recording.failures
            self._set(media_ms=self.recording.media_ms + self.media_ms, failures=failures)
            self.note_media()

    def keep_output(self) -> None:
        """Keep the verified output."""
        if isinstance(self.outcome, internal_events.FfmpegExit):
            self._set(output=self.outcome.output, output_node=self.outcome.node)

    def finish(self) -> None:
        """The object is in the bucket."""
        if isinstance(self.outcome, internal_events.UploadFinished):
            stored, output = self.outcome, self.recording.output
            if output is not None:
                output = replace(output, size_bytes=stored.size_bytes, crc64=stored.crc64)
            self._set(output=output, url=stored.url)
        self._set(code=states.SUCCESS, detail=pull_evictions.detail(self.recording))
        self._end()

    def fail(self) -> None:
        """Keep the files."""
        self._fail(self.detail or self.reason or "The worker ended without an outcome.")

    def fail_without_media(self) -> None:
        """No media arrived."""
        tracks = " or ".join(states.WANTED_KINDS[self.recording.mode])
        # The detail of a stopped run does not explain why no media came.
        own = self.detail if self.reason != Reason.STOPPED else ""
        cause = pull_evictions.detail(self.recording) or own or self.recording.detail
        self._fail(
            f"No {tracks} of {self.recording.speaker!r} arrived before the recording ended." + (f" {cause}" if cause else "")
        )

    def fail_lost(self) -> None:
        """Too many workers in a row ended without an outcome."""
        self._fail(f"{self.recording.failures} workers in a row ended without an outcome; see the service's log, then replay.")

    def begin_replay(self) -> None:
        """A replay begins."""
        self._set(replays=self.recording.replays + 1, stop_requested=True, failures=0, last_pull=False, files_removed=False)
        self._set(code="", detail="", url="", ended_ms=None)
        self.effects.append(effects.Disarm("keep"))

    def rejoin(self) -> None:
        """Capture again in the session that the replay has reopened."""
        self._set(stop_requested=False, present=None, output=None, idle_from_ms=self.facts.now_ms, state=J)
        self.effects.append(effects.Arm("idle", self.facts.now_ms + self.facts.policy.idle_timeout_ms))

    # --- shared by the actions --------------------------------------------------------------------------------------------
    def _set(self, **changes: Any) -> None:
        model.put(self.recording, **changes)

    def _begin_stage(self) -> None:
        self._set(failures=0, stage_started_ms=self.facts.now_ms, stop_requested=True)
        self.effects += [effects.Disarm(kind) for kind in ("linger", "idle", "node-return")]

    def _queue(self, kind: str, *, anywhere: bool = False) -> None:
        node = "" if anywhere else self._place(kind)
        self._set(epoch=self.recording.epoch + 1, job=model.Job(kind=kind, state=states.QUEUED, node=node), publish_pending=False)
        self.effects += [effects.Disarm("retry"), effects.Command(f"start-{kind}")]
        if node:
            over_ms = self.recording.stage_started_ms + self.facts.policy.node_return_ms
            self.effects.append(effects.Arm("node-return", max(over_ms, self.facts.now_ms + model.SECOND)))

    def _place(self, kind: str) -> str:
        """The only node a job is for, because its files are there; "": any node."""
        return {states.TRANSCODE: self.facts.home, states.UPLOAD: self.recording.output_node}.get(kind, "")

    def _wait(self, kind: str, backoff_ms: tuple[int, ...]) -> None:
        pause_ms = backoff_ms[min(self.recording.failures, len(backoff_ms) - 1)]
        evicted = pull_evictions.detail(self.recording) if kind == states.CAPTURE else ""
        self._set(
            epoch=self.recording.epoch + 1,
            failures=self.recording.failures + 1,
            job=model.Job(kind=kind, state=states.WAITING, node=self._place(kind)),
            detail=evicted or self.detail or self.recording.detail,
        )
        self.effects.append(effects.Arm("retry", self.facts.now_ms + pause_ms))

    def _fail(self, detail: str) -> None:
        output = None if self.reason == Reason.FILE_MISSING else self.recording.output
        self._set(code=states.FAILURE_OF[self.recording.state], detail=detail, output=output)
        self.effects.append(effects.Arm("keep", self.facts.now_ms + self.facts.policy.keep_failed_ms))
        self._end()

    def _end(self) -> None:
        if self.recording.job is not None and self.recording.job.state in (states.WAITING, states.QUEUED):
            self._set(epoch=self.recording.epoch + 1)
        self._set(job=None, stop_requested=True, ended_ms=self.facts.now_ms)
        self.effects += [effects.Disarm(kind) for kind in ("linger", "idle", "retry", "node-return")]
        self.effects.append(effects.Report())
