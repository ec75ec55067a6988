"""The recording's machine: one total table over (state, stop requested?, capture) × event, and the pure `decide` that reads it.

May import `machine` and `events`. Rule: `decide` does no I/O, reads no clock and raises nothing on a live system; what does not
fit the present state is ignored with a reason. The chart and table in docs/state-machine.md are made from ROWS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transitions import EventData

from machine import effects, model, states, table

# Whether TRTC lets several pulls share one UserId is not confirmed; in its SDK a second entry of a user evicts the first.
EVICTIONS_NAMED = 3
EVICTED = (
    "Pulls of this session ended one another, again and again: it seems that TRTC lets a UserId in only once. Give the service"
    " the application's key (TRTC_KEYS) and set PULL_USER=per-speaker."
)

CAPTURING = states.CAPTURING
LATER = (states.TRANSCODING, states.UPLOADING, states.DONE, states.FAILED)
WORKING = (states.TRANSCODING, states.UPLOADING)
J, R, T, U = states.JOINING, states.RECORDING, states.TRANSCODING, states.UPLOADING
ALL = states.RECORDING_STATES
OF_A_RUN = ("capture-exit", "worker-lost")
MAY_END_JOINING = (*OF_A_RUN, "stop", "idle-over", "replay")

# What may happen to a recording. `stop` stands for everything that closes its session: room-destroyed, user-removed, stop, or one
# of the session's deadlines. The three kinds of `deadline-passed` that concern a recording are events of their own here.
EVENTS = (
    "user-publishing",
    "user-left",
    "stop",
    "capture-started",
    "media-found",
    "capture-exit",
    "transcode-exit",
    "upload-finished",
    "upload-failed",
    "worker-lost",
    "retry-due",
    "linger-over",
    "idle-over",
    "node-return-over",
    "replay",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision may look at besides the recording. `data` is the event's; `callbacks_come` says whether TRTC's callbacks
    were seen for this application; `has_segments` and `has_output` say which inputs of later stages are kept: media in
    segments of any epoch, a verified file; `evictions` how many runs of this recording ended by themselves just as a pull for
    another speaker of the session began; `home` the node that holds most of the segments ("": any can reach them);
    `target_away` whether the node that the present job is for shows no sign of life."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    callbacks_come: bool = True
    has_segments: bool = False
    has_output: bool = False
    home: str = ""
    target_away: bool = False
    evictions: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The recording as it is to be, what is to be done, and what was thought: the moves made, or why nothing happens."""

    recording: model.Recording
    effects: tuple[effects.Effect, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    ignored: str = ""


class Cursor:
    """A throw-away walker of the table: conditions read the facts, actions rewrite the recording and collect effects."""

    def __init__(self, recording: model.Recording, facts: Facts) -> None:
        self.recording = recording
        self.facts = facts
        self.state = recording.state
        self.fired = table.Fired()
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
        return self.facts.data.get("Reason") in ("disk-full", "spool-lost")

    def hopeless(self, _: EventData) -> bool:
        """A refusal that no retry cures."""
        return self.facts.data.get("Reason") == "refused-for-good"

    def absent(self, _: EventData) -> bool:
        """A callback says that the speaker left."""
        return self.recording.present is False

    def present(self, _: EventData) -> bool:
        """A callback says that the speaker is there."""
        return self.recording.present is True

    def awaited(self, _: EventData) -> bool:
        """A subscribed speaker who was never seen."""
        return self.recording.awaited

    def last_pull(self, _: EventData) -> bool:
        """It was the last try, at the end of LINGER."""
        return self.recording.last_pull

    def at_once(self, _: EventData) -> bool:
        """The run ended only because a track appeared, or because its node stops: the stream is live."""
        return self.facts.data.get("Reason") in ("new-track", "node-stopping")

    def tried_often(self, _: EventData) -> bool:
        """Several runs in a row brought nothing."""
        return self.recording.tries >= 3

    def lately(self, _: EventData) -> bool:
        """Media came within IDLE_TIMEOUT."""
        return self.recording.idle_from_ms + self.facts.policy.idle_timeout_ms > self.facts.now_ms

    def verified(self, _: EventData) -> bool:
        """The output is verified."""
        return self.facts.data.get("Reason") == "ok" and "Output" in self.facts.data

    def again(self, _: EventData) -> bool:
        """The same step may succeed when tried again, and tries are left."""
        retry = bool(self.facts.data.get("Retry", True))
        if self.state == U:
            return retry and self.facts.now_ms < self.recording.step_from_ms + self.facts.policy.upload_retry_for_ms
        return retry and self.recording.tries < len(self.facts.policy.transcode_pauses_ms)

    def lost_too_often(self, _: EventData) -> bool:
        """Its workers died again and again."""
        return self.recording.tries >= self.facts.policy.lost_limit

    def node_away(self, _: EventData) -> bool:
        """Segments lie on a node that is away, and NODE_RETURN is not over."""
        return self.facts.data.get("Reason") == "node-away"

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
        """The speaker is there: no linger, no last pull."""
        self._set(present=True, awaited=False, last_pull=False)
        self._add(effects.Disarm("linger"))

    def mark_absent(self, _: EventData) -> None:
        """The speaker left: LINGER begins."""
        self._set(present=False, awaited=False, last_pull=False)
        self.arm_linger(_)

    def arm_linger(self, _: EventData) -> None:
        """LINGER begins anew."""
        self._add(effects.Arm("linger", self.facts.now_ms + self.facts.policy.linger_ms))

    def arm_idle(self, _: EventData) -> None:
        """Look again when IDLE_TIMEOUT may be over."""
        from_ms = max(self.recording.idle_from_ms, self.facts.now_ms - self.facts.policy.idle_timeout_ms + model.SECOND)
        if self.recording.present or self.recording.awaited:
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
        pauses = policy.capture_pauses_ms if self.facts.callbacks_come else policy.blind_capture_pauses_ms
        self._wait(states.CAPTURE, pauses)

    def wait_transcode(self, _: EventData) -> None:
        """Try the transcode again after a pause."""
        self._wait(states.TRANSCODE, self.facts.policy.transcode_pauses_ms)

    def wait_node(self, _: EventData) -> None:
        """Look again soon whether the node is back; that is no try in vain."""
        tries = self.recording.tries
        self._wait(states.TRANSCODE, (self.facts.policy.node_away_pause_ms,))
        self._set(tries=tries)

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
        self._wait(states.UPLOAD, self.facts.policy.upload_pauses_ms)

    def count_try(self, _: EventData) -> None:
        """It was one more try in vain."""
        self._set(tries=self.recording.tries + 1)

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

    def note_stop(self, _: EventData) -> None:
        """From here on it is stopped."""
        self._set(stop_requested=True)

    def note_media(self, _: EventData) -> None:
        """Media is on disk."""
        data = self.facts.data
        first, last = data.get("FirstPacketMs"), data.get("LastPacketMs") or data.get("FirstPacketMs")
        self._set(
            awaited=False,
            first_packet_ms=self.recording.first_packet_ms or first or self.facts.now_ms,
            last_packet_ms=max(self.recording.last_packet_ms or 0, last or 0) or self.facts.now_ms,
            idle_from_ms=max(self.recording.idle_from_ms, last or self.facts.now_ms),
        )

    def count_media(self, _: EventData) -> None:
        """Add what a run put on disk; a run that brought media ends the series of failures."""
        if self._media_ms() > 0:
            self._set(media_ms=self.recording.media_ms + self._media_ms(), tries=0)
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
        stopped = self.facts.data.get("Reason") == "stopped"  # which says nothing of why no media came
        seen = self._evicted() or (self.recording.detail if stopped else self.facts.data.get("Detail")) or self.recording.detail
        self._fail(
            f"No {tracks} of {self.recording.speaker!r} arrived before the recording ended." + (f" {seen}" if seen else "")
        )

    def fail_lost(self, _: EventData) -> None:
        """Its workers died too often."""
        self._fail(f"{self.recording.tries} workers in a row ended without an outcome; see the service's log, then replay.")

    def begin_attempt(self, _: EventData) -> None:
        """A replay begins."""
        self._set(
            attempt=self.recording.attempt + 1,
            stop_requested=True,
            tries=0,
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
        self.recording = replace(self.recording, **changes)

    def _add(self, effect: effects.Effect) -> None:
        self.effects.append(effect)

    def _begin_step(self) -> None:
        self._set(tries=0, step_from_ms=self.facts.now_ms, stop_requested=True)
        for kind in ("linger", "idle", "node-return"):
            self._add(effects.Disarm(kind))

    def _queue(self, kind: str, *, anywhere: bool = False) -> None:
        node = "" if anywhere else self._place(kind)
        self._set(epoch=self.recording.epoch + 1, job=model.Job(kind=kind, state=states.QUEUED, node=node))
        self._add(effects.Disarm("retry"))
        self._add(effects.Command(f"start-{kind}"))
        if node:
            over_ms = self.recording.step_from_ms + self.facts.policy.node_return_ms
            self._add(effects.Arm("node-return", max(over_ms, self.facts.now_ms + model.SECOND)))

    def _place(self, kind: str) -> str:
        """The only node a job is for: where its files lie; "" where that does not matter."""
        return {states.TRANSCODE: self.facts.home, states.UPLOAD: self.recording.output_node}.get(kind, "")

    def _wait(self, kind: str, pauses_ms: tuple[int, ...]) -> None:
        pause_ms = pauses_ms[min(self.recording.tries, len(pauses_ms) - 1)]
        detail = (self._evicted() if kind == states.CAPTURE else "") or str(self.facts.data.get("Detail") or "")
        self._set(
            epoch=self.recording.epoch + 1,
            tries=self.recording.tries + 1,
            job=model.Job(kind=kind, state=states.WAITING, node=self._place(kind)),
            detail=detail or self.recording.detail,
        )
        self._add(effects.Arm("retry", self.facts.now_ms + pause_ms))

    def _fail(self, detail: str) -> None:
        output = None if self.facts.data.get("Reason") == "file-missing" else self.recording.output
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


def _ignore(on: str, at: tuple[str, ...], reason: str, when: tuple[str, ...] = ()) -> table.Row:
    return table.Row(on=on, at=at, when=when, ignore=reason)


STALE = "an older epoch speaks"
OVER = "the capture is over; a new recording takes up what comes"
STOPPING = "it is stopping already"
NO_SUCH_JOB = "no such job is held in this state"
Row = table.Row

ROWS: tuple[table.Row, ...] = (
    # The speaker is there. A pull is made at once unless one runs.
    _ignore("user-publishing", CAPTURING, OVER, ("stopping",)),
    Row(on="user-publishing", at=CAPTURING, when=("running",), do=("mark_present",)),
    Row(on="user-publishing", at=CAPTURING, do=("mark_present", "queue_capture")),
    _ignore("user-publishing", LATER, OVER),
    # The speaker left. A running capture ends by itself; no new pull is made until user-publishing, or the end of LINGER.
    _ignore("user-left", CAPTURING, STOPPING, ("stopping",)),
    Row(on="user-left", at=CAPTURING, when=("leased",), do=("mark_absent",)),
    Row(on="user-left", at=CAPTURING, do=("mark_absent", "end_capture")),
    _ignore("user-left", LATER, OVER),
    # The session closes. A capture that no worker holds is void at once; a leased one is asked to end.
    _ignore("stop", CAPTURING, STOPPING, ("stopping", "leased")),
    Row(on="stop", at=CAPTURING, when=("leased",), do=("ask_stop",)),
    Row(on="stop", at=(J,), to=states.FAILED, do=("end_capture", "fail_empty")),
    Row(on="stop", at=(R,), to=T, do=("end_capture", "queue_transcode")),
    _ignore("stop", LATER, "it is not capturing any more"),
    # Media of a wanted track is on disk.
    _ignore("capture-started", ALL, STALE, ("stale",)),
    Row(on="capture-started", at=(J,), when=("running",), to=R, do=("note_media",)),
    Row(on="capture-started", at=(R,), when=("running",), do=("note_media",)),
    _ignore("capture-started", ALL, NO_SUCH_JOB),
    # Media is on disk although no capture-started was heard of it: from a run that has just ended, or a superseded one. `decide`
    # makes this move first, before what would end Joining for lack of media.
    Row(on="media-found", at=(J,), to=R, do=("note_media",)),
    _ignore("media-found", (R, *LATER), "that is known"),
    # A run of ffmpeg ended. By itself that is no stop.
    _ignore("capture-exit", ALL, STALE, ("stale",)),
    _ignore("capture-exit", LATER, NO_SUCH_JOB),
    Row(on="capture-exit", at=CAPTURING, unless=("running",), ignore=NO_SUCH_JOB),
    Row(on="capture-exit", at=CAPTURING, when=("spool_gone",), to=states.FAILED, do=("count_media", "fail")),
    Row(on="capture-exit", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_empty",)),
    Row(on="capture-exit", at=(R,), when=("stopping",), to=T, do=("count_media", "end_capture", "queue_transcode")),
    Row(on="capture-exit", at=(J,), when=("hopeless",), to=states.FAILED, do=("fail",)),
    Row(on="capture-exit", at=(J,), when=("last_pull",), unless=("got_media",), to=states.FAILED, do=("fail_empty",)),
    Row(on="capture-exit", at=(R,), when=("last_pull",), unless=("got_media",), to=T, do=("end_capture", "queue_transcode")),
    Row(on="capture-exit", at=CAPTURING, when=("absent",), unless=("last_pull",), do=("count_media", "end_capture")),
    Row(on="capture-exit", at=CAPTURING, when=("at_once", "got_media"), do=("count_media", "queue_capture")),
    Row(on="capture-exit", at=CAPTURING, when=("at_once",), unless=("tried_often",), do=("count_try", "queue_capture")),
    Row(on="capture-exit", at=CAPTURING, do=("count_media", "wait_capture")),
    # The lease of a capture, transcode or upload ended without an outcome.
    _ignore("worker-lost", ALL, STALE, ("stale",)),
    _ignore("worker-lost", states.FINAL, NO_SUCH_JOB),
    Row(on="worker-lost", at=(*CAPTURING, *WORKING), unless=("working",), ignore=NO_SUCH_JOB),
    Row(on="worker-lost", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_empty",)),
    Row(on="worker-lost", at=(R,), when=("stopping",), to=T, do=("count_media", "end_capture", "queue_transcode")),
    Row(on="worker-lost", at=CAPTURING, when=("absent",), unless=("last_pull",), do=("count_media", "end_capture")),
    Row(on="worker-lost", at=CAPTURING, do=("count_media", "queue_capture")),
    Row(on="worker-lost", at=(T,), when=("lost_too_often",), to=states.FAILED, do=("fail_lost",)),
    Row(on="worker-lost", at=(T,), do=("count_try", "queue_again")),
    Row(on="worker-lost", at=(U,), when=("again",), do=("queue_again",)),
    Row(on="worker-lost", at=(U,), to=states.FAILED, do=("fail",)),
    # A transcode ended.
    _ignore("transcode-exit", ALL, STALE, ("stale",)),
    Row(on="transcode-exit", at=(T,), unless=("working",), ignore=NO_SUCH_JOB),
    Row(on="transcode-exit", at=(T,), when=("verified",), to=U, do=("keep_output", "queue_upload")),
    Row(on="transcode-exit", at=(T,), when=("node_away",), do=("wait_node",)),
    Row(on="transcode-exit", at=(T,), when=("again",), do=("wait_transcode",)),
    Row(on="transcode-exit", at=(T,), to=states.FAILED, do=("fail",)),
    _ignore("transcode-exit", (*CAPTURING, U, *states.FINAL), NO_SUCH_JOB),
    # An upload ended.
    _ignore("upload-finished", ALL, STALE, ("stale",)),
    Row(on="upload-finished", at=(U,), unless=("working",), ignore=NO_SUCH_JOB),
    Row(on="upload-finished", at=(U,), to=states.DONE, do=("finish",)),
    _ignore("upload-finished", (*CAPTURING, T, *states.FINAL), NO_SUCH_JOB),
    _ignore("upload-failed", ALL, STALE, ("stale",)),
    Row(on="upload-failed", at=(U,), unless=("working",), ignore=NO_SUCH_JOB),
    Row(on="upload-failed", at=(U,), when=("again",), do=("wait_upload",)),
    Row(on="upload-failed", at=(U,), to=states.FAILED, do=("fail",)),
    _ignore("upload-failed", (*CAPTURING, T, *states.FINAL), NO_SUCH_JOB),
    # Deadlines.
    Row(on="retry-due", at=(*CAPTURING, *WORKING), when=("waiting",), do=("release",)),
    _ignore("retry-due", ALL, "nothing waits"),
    _ignore("linger-over", CAPTURING, STOPPING, ("stopping",)),
    Row(on="linger-over", at=CAPTURING, unless=("absent",), ignore="the speaker came back"),
    Row(on="linger-over", at=CAPTURING, when=("running",), do=("arm_linger",)),
    Row(on="linger-over", at=CAPTURING, do=("try_last",)),
    _ignore("linger-over", LATER, OVER),
    _ignore("idle-over", CAPTURING, STOPPING, ("stopping", "leased")),
    Row(on="idle-over", at=CAPTURING, when=("lately",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=CAPTURING, when=("present",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=(J,), when=("awaited",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=CAPTURING, when=("leased",), do=("ask_stop",)),
    Row(on="idle-over", at=(J,), to=states.FAILED, do=("end_capture", "fail_empty")),
    Row(on="idle-over", at=(R,), to=T, do=("end_capture", "queue_transcode")),
    _ignore("idle-over", LATER, OVER),
    # The files lie on a node that is away: after NODE_RETURN the transcode goes on without it; an upload waits for UPLOAD_RETRY_FOR.
    Row(on="node-return-over", at=WORKING, unless=("target_away",), do=("wait_longer",)),
    Row(on="node-return-over", at=(T,), do=("queue_anywhere",)),
    Row(on="node-return-over", at=(U,), when=("again",), do=("wait_longer",)),
    Row(on="node-return-over", at=(U,), to=states.FAILED, do=("fail_away",)),
    _ignore("node-return-over", (*CAPTURING, *states.FINAL), "no file is waited for"),
    # Replay: the latest state whose inputs exist, or the earlier one that was asked for. On a stuck one: the command again.
    Row(on="replay", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_empty",)),
    Row(on="replay", at=(R,), when=("stopping",), to=T, do=("end_capture", "queue_transcode")),
    Row(on="replay", at=(*CAPTURING, T), do=("queue_again",)),
    Row(on="replay", at=(U,), when=("to_transcoding",), unless=("to_uploading",), to=T, do=("queue_transcode",)),
    Row(on="replay", at=(U,), do=("queue_again",)),
    Row(on="replay", at=(states.DONE,), unless=("asked_earlier",), ignore="it is Done already; name an earlier stage with From"),
    Row(on="replay", at=states.FINAL, when=("to_uploading",), to=U, do=("begin_attempt", "queue_upload")),
    Row(on="replay", at=states.FINAL, when=("to_transcoding",), to=T, do=("begin_attempt", "queue_transcode")),
    Row(on="replay", at=states.FINAL, to=J, do=("begin_attempt", "rejoin", "queue_capture")),
)

MACHINE = table.build(ROWS, states.RECORDING_STATES, EVENTS, Cursor)


def decide(recording: model.Recording, event: str, facts: Facts) -> Decision:
    """What `event` makes of `recording`: pure and total. Raises nothing but KeyError for an event that is not in EVENTS."""
    cursor = Cursor(recording, facts)
    moves: list[tuple[str, str]] = []
    if recording.state == J and event in MAY_END_JOINING and _media_found(recording, event, facts):
        _step(cursor, "media-found", moves)
    row = _step(cursor, event, moves)
    if row.ignore:
        return Decision(recording=recording, ignored=row.ignore)
    return Decision(recording=cursor.recording, effects=tuple(cursor.effects), moves=tuple(moves))


def _media_found(recording: model.Recording, event: str, facts: Facts) -> bool:
    """Whether media is on disk: by this very run, or (whatever its epoch) by an earlier one. A stale word finds nothing."""
    if event not in OF_A_RUN:
        return facts.has_segments and (event != "replay" or recording.stop_requested)
    fresh = facts.data.get("Epoch") == recording.epoch and recording.capture in (states.QUEUED, states.LEASED)
    return fresh and (facts.has_segments or int(facts.data.get("MediaMs") or 0) > 0)


def _step(cursor: Cursor, event: str, moves: list[tuple[str, str]]) -> table.Row:
    before = cursor.state
    row = table.fire(MACHINE, cursor, event)
    if cursor.state != before:
        moves.append((before, cursor.state))
        cursor.recording = replace(cursor.recording, state=cursor.state)
    return row
