"""Rules of the recording's decision table: the actions that its rows name, beside the guards of recording_guards.py.

Rule: pure. A rules object lives for one decision. The docstring of an action is its wording in docs/state-machine.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from machine import (
    coverage,
    delivered_files,
    effects,
    internal_events,
    model,
    pull_evictions,
    recording_guards,
    spool_wait,
    states,
)
from machine.reasons import Reason

J, R, T, U = states.JOINING, states.RECORDING, states.TRANSCODING, states.UPLOADING


class RecordingRules(recording_guards.RecordingGuards):
    """One decision about a recording: guards read the recording and the facts, actions change the recording and add effects."""

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
        self._set(published=self.recording.published.stopped(self.facts.now_ms))
        self._begin_stage()
        self._queue(states.TRANSCODE)

    def queue_upload(self) -> None:
        """Start the upload."""
        self._begin_stage()
        self._queue(states.UPLOAD)

    def remake_output(self) -> None:
        """Start the transcode again, from the segments."""
        if output := self.recording.output:
            self._set(output=replace(output, remade=output.remade + 1))
        self.queue_transcode()

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
        self._wait(states.TRANSCODE, (self.facts.policy.node_away_backoff_ms,), counted=False)

    def wait_for_spool(self) -> None:
        """Retry on any node after a growing backoff, without counting a failure."""
        pause_ms = spool_wait.pause_ms(self.recording, self.facts.now_ms)
        self._wait(states.TRANSCODE, (pause_ms,), anywhere=True, counted=False)

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
        self._set(stop_requested=True, published=self.recording.published.stopped(self.facts.now_ms))
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
            forgives = self.media_ms >= recording_guards.LASTED_MS or not isinstance(self.outcome, internal_events.WorkerLost)
            failures = 0 if forgives else self.recording.failures
            self._set(media_ms=self.recording.media_ms + self.media_ms, failures=failures)
            self.note_media()

    def keep_output(self) -> None:
        """Keep the verified output."""
        if isinstance(self.outcome, internal_events.FfmpegExit) and self.outcome.output is not None:
            remade = self.recording.output.remade if self.recording.output else 0
            object_n = delivered_files.object_n(self.recording, self.outcome.output)
            output = replace(self.outcome.output, remade=remade)
            self._set(output=output, output_node=self.outcome.node, object_n=object_n)

    def finish(self) -> None:
        """The object is in the bucket."""
        if isinstance(self.outcome, internal_events.UploadFinished):
            stored, output = self.outcome, self.recording.output
            if output is not None:
                self._set(delivered=delivered_files.with_earlier(self.recording, output))
                output = replace(output, size_bytes=stored.size_bytes, crc64=stored.crc64)
            self._set(output=output, url=stored.url)
        found = coverage.of(self.recording)
        evicted = pull_evictions.detail(self.recording)
        code, cause = (states.PARTIAL, found.cause) if found.partial else (states.SUCCESS, "")
        self._set(code=code, detail=" ".join(filter(None, (cause, evicted))))
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
        """A replay begins. A delivered file keeps its object and its entry."""
        self._set(delivered=delivered_files.kept(self.recording))
        self._set(replays=self.recording.replays + 1, stop_requested=True, failures=0, last_pull=False, files_removed=False)
        output = self.recording.output
        self._set(code="", detail="", url="", ended_ms=None, output=output and replace(output, remade=0))
        self.effects.append(effects.Disarm("keep"))

    def spare_delivered(self) -> None:
        """The new file gets an object of its own if the present one was delivered."""
        if delivered_files.has_object(self.recording):
            self._set(object_n=self.facts.free_n)

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

    def _wait(self, kind: str, backoff_ms: tuple[int, ...], *, anywhere: bool = False, counted: bool = True) -> None:
        pause_ms = backoff_ms[min(self.recording.failures, len(backoff_ms) - 1)]
        evicted = pull_evictions.detail(self.recording) if kind == states.CAPTURE else ""
        self._set(
            epoch=self.recording.epoch + 1,
            failures=self.recording.failures + counted,
            job=model.Job(kind=kind, state=states.WAITING, node="" if anywhere else self._place(kind)),
            detail=evicted or self.detail or self.recording.detail,
        )
        self.effects.append(effects.Arm("retry", self.facts.now_ms + pause_ms))

    def _fail(self, detail: str) -> None:
        output = None if self.reason in (Reason.FILE_DAMAGED, Reason.FILE_MISSING) else self.recording.output
        self._set(code=states.FAILURE_OF[self.recording.state], detail=detail, output=output)
        self.effects.append(effects.Arm("keep", self.facts.now_ms + self.facts.policy.keep_failed_ms))
        self._end()

    def _end(self) -> None:
        if self.recording.job is not None and self.recording.job.state in (states.WAITING, states.QUEUED):
            self._set(epoch=self.recording.epoch + 1)
        told = self.recording.published.stopped(self.facts.now_ms)
        self._set(job=None, stop_requested=True, ended_ms=self.facts.now_ms, published=told)
        self.effects += [effects.Disarm(kind) for kind in ("linger", "idle", "retry", "node-return")]
        self.effects.append(effects.Report())
