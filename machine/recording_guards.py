"""Guards of the recording's decision table: conditions that its rows name.

Rule: pure. The docstring of a guard is its wording in docs/state-machine.md.
"""

from __future__ import annotations

from machine import effects, internal_events, model, recording_facts, spool_wait, states
from machine.reasons import Reason

U = states.UPLOADING

MAX_EMPTY_RUNS = 3
# A disk that damages every file must not keep a recording busy forever.
MAX_REMADE = 3
# A run of this length is no cause of its worker's loss.
LASTED_MS = 10 * model.SECOND


class RecordingGuards:
    """The guards of one decision about a recording. They read the recording and the facts."""

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
        """The disk is full or the spool is lost, which is a fault of one node."""
        return self.reason in spool_wait.FAULTS

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
    def output_unusable(self) -> bool:
        """The finished file is damaged or gone, its segments exist, and it was not made again too often."""
        if self.retry or self.reason not in (Reason.FILE_DAMAGED, Reason.FILE_MISSING):
            return False
        output = self.recording.output
        return (output is None or output.remade < MAX_REMADE) and self.facts.has_segments

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
    def spool_awaited(self) -> bool:
        """The disk is full and UPLOAD_RETRY_FOR is not over, or the spool is lost and NODE_RETURN is not over."""
        return self.disk_error and not spool_wait.is_over(self.recording, self.reason, self.facts.now_ms, self.facts.policy)

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
