"""The recording's state machine: one total table over (state, stop requested?, capture) × event, and the pure `decide`.

Rules: `decide` does no I/O, reads no clock and raises nothing on a live system. An event that does not fit the present state is
ignored with a reason. The chart and table in docs/state-machine.md are generated from ROWS.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine import decision_table, effects, model, recording_facts, recording_rules, states

RecordingFacts = recording_facts.RecordingFacts
RecordingRules = recording_rules.RecordingRules
Row = decision_table.DecisionRow

CAPTURING = states.CAPTURING
LATER = (states.TRANSCODING, states.UPLOADING, states.DONE, states.FAILED)
WORKING = (states.TRANSCODING, states.UPLOADING)
J, R, T, U = states.JOINING, states.RECORDING, states.TRANSCODING, states.UPLOADING
ALL = states.RECORDING_STATES
ENDS_A_RUN = ("capture-exit", "worker-lost")
# A last pull that a fault of the disk ended says nothing about the speaker.
KEEPS_LAST_PULL = ("brought_media", "disk_error")
REMAKE = ("spare_delivered", "queue_transcode")
MAY_END_JOINING = (*ENDS_A_RUN, "stop", "idle-over", "replay")

# The events of a recording. `stop` stands for every event that closes its session: room-destroyed, user-removed, stop, or one of
# the session's deadlines. Each kind of `deadline-passed` that concerns a recording is an event of its own.
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
class RecordingDecision:
    """The recording's new version, the effects and the moves made; or the reason why the event is ignored."""

    recording: model.Recording
    effects: tuple[effects.Effect, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    ignored: str = ""


def _ignore(on: str, at: tuple[str, ...], reason: str, when: tuple[str, ...] = ()) -> Row:
    return Row(on=on, at=at, when=when, ignore=reason)


STALE = "the outcome has an older epoch"
OVER = "the capture is over; later media belongs to a new recording"
STOPPING = "it is stopping already"
NO_SUCH_JOB = "no such job is active in this state"

ROWS: tuple[decision_table.DecisionRow, ...] = (
    # The speaker is there. Pull now unless a run is active; that run may have been refused a moment too early.
    _ignore("user-publishing", CAPTURING, OVER, ("stopping",)),
    Row(on="user-publishing", at=CAPTURING, when=("capture_active",), do=("mark_present", "note_publish")),
    Row(on="user-publishing", at=CAPTURING, do=("mark_present", "queue_capture")),
    _ignore("user-publishing", LATER, OVER),
    # The speaker left. The server ends an active capture. No new pull before user-publishing or the end of LINGER.
    _ignore("user-left", CAPTURING, STOPPING, ("stopping",)),
    Row(on="user-left", at=CAPTURING, when=("capture_leased",), do=("mark_absent",)),
    Row(on="user-left", at=CAPTURING, do=("mark_absent", "end_capture")),
    _ignore("user-left", LATER, OVER),
    # The session closes. A capture without a lease is void immediately; for a leased one the worker is asked to end it.
    _ignore("stop", CAPTURING, STOPPING, ("stopping", "capture_leased")),
    Row(on="stop", at=CAPTURING, when=("capture_leased",), do=("request_stop",)),
    Row(on="stop", at=(J,), to=states.FAILED, do=("end_capture", "fail_without_media")),
    Row(on="stop", at=(R,), to=T, do=("end_capture", "queue_transcode")),
    _ignore("stop", LATER, "it no longer captures"),
    # Media of a wanted track is on disk.
    _ignore("capture-started", ALL, STALE, ("stale",)),
    Row(on="capture-started", at=(J,), when=("capture_active",), to=R, do=("note_media", "clear_publish")),
    Row(on="capture-started", at=(R,), when=("capture_active",), do=("note_media", "clear_publish")),
    _ignore("capture-started", ALL, NO_SUCH_JOB),
    # Media is on disk although no capture-started arrived: from a run that has just ended, or a superseded one. `decide` makes
    # this move first, before a row would end Joining for lack of media.
    Row(on="media-found", at=(J,), to=R, do=("note_media",)),
    _ignore("media-found", (R, *LATER), "its media is known"),
    # A run ended. An exit alone is no stop, and neither is a full disk or a lost spool: another node may have a better one.
    _ignore("capture-exit", ALL, STALE, ("stale",)),
    _ignore("capture-exit", LATER, NO_SUCH_JOB),
    Row(on="capture-exit", at=CAPTURING, unless=("capture_active",), ignore=NO_SUCH_JOB),
    Row(on="capture-exit", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_without_media",)),
    Row(on="capture-exit", at=(R,), when=("stopping",), to=T, do=("count_media", "end_capture", "queue_transcode")),
    Row(on="capture-exit", at=(J,), when=("fatal_refusal",), to=states.FAILED, do=("fail",)),
    Row(on="capture-exit", at=(J,), when=("last_pull",), unless=KEEPS_LAST_PULL, to=states.FAILED, do=("fail_without_media",)),
    Row(on="capture-exit", at=(R,), when=("last_pull",), unless=KEEPS_LAST_PULL, to=T, do=("end_capture", "queue_transcode")),
    Row(on="capture-exit", at=CAPTURING, when=("speaker_absent",), unless=("last_pull",), do=("count_media", "end_capture")),
    Row(on="capture-exit", at=CAPTURING, when=("restart_immediately", "brought_media"), do=("count_media", "queue_capture")),
    Row(
        on="capture-exit",
        at=CAPTURING,
        when=("restart_immediately",),
        unless=("failed_repeatedly",),
        do=("count_failure", "queue_capture"),
    ),
    Row(on="capture-exit", at=CAPTURING, when=("publish_pending",), do=("count_media", "queue_capture")),
    Row(on="capture-exit", at=CAPTURING, do=("count_media", "retry_capture")),
    # The lease of a capture, transcode or upload ended without an outcome.
    _ignore("worker-lost", ALL, STALE, ("stale",)),
    _ignore("worker-lost", states.FINAL, NO_SUCH_JOB),
    Row(on="worker-lost", at=(*CAPTURING, *WORKING), unless=("job_active",), ignore=NO_SUCH_JOB),
    Row(on="worker-lost", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_without_media",)),
    Row(on="worker-lost", at=(R,), when=("stopping",), to=T, do=("count_media", "end_capture", "queue_transcode")),
    Row(on="worker-lost", at=CAPTURING, when=("speaker_absent",), unless=("last_pull",), do=("count_media", "end_capture")),
    Row(on="worker-lost", at=CAPTURING, when=("lost_again",), do=("count_media", "retry_capture")),
    Row(on="worker-lost", at=CAPTURING, do=("count_media", "count_failure", "queue_capture")),
    Row(on="worker-lost", at=(T,), when=("lost_repeatedly",), to=states.FAILED, do=("fail_lost",)),
    Row(on="worker-lost", at=(T,), do=("count_failure", "requeue_job")),
    Row(on="worker-lost", at=(U,), when=("retryable",), do=("requeue_job",)),
    Row(on="worker-lost", at=(U,), to=states.FAILED, do=("fail",)),
    # A transcode ended.
    _ignore("transcode-exit", ALL, STALE, ("stale",)),
    Row(on="transcode-exit", at=(T,), unless=("job_active",), ignore=NO_SUCH_JOB),
    Row(on="transcode-exit", at=(T,), when=("output_verified",), to=U, do=("keep_output", "queue_upload")),
    Row(on="transcode-exit", at=(T,), when=("node_away",), do=("wait_for_node",)),
    Row(on="transcode-exit", at=(T,), when=("spool_awaited",), do=("wait_for_spool",)),
    Row(on="transcode-exit", at=(T,), when=("node_stopping",), do=("requeue_job",)),
    Row(on="transcode-exit", at=(T,), when=("retryable",), do=("retry_transcode",)),
    Row(on="transcode-exit", at=(T,), to=states.FAILED, do=("fail",)),
    _ignore("transcode-exit", (*CAPTURING, U, *states.FINAL), NO_SUCH_JOB),
    # An upload ended.
    _ignore("upload-finished", ALL, STALE, ("stale",)),
    Row(on="upload-finished", at=(U,), unless=("job_active",), ignore=NO_SUCH_JOB),
    Row(on="upload-finished", at=(U,), to=states.DONE, do=("finish",)),
    _ignore("upload-finished", (*CAPTURING, T, *states.FINAL), NO_SUCH_JOB),
    _ignore("upload-failed", ALL, STALE, ("stale",)),
    Row(on="upload-failed", at=(U,), unless=("job_active",), ignore=NO_SUCH_JOB),
    Row(on="upload-failed", at=(U,), when=("output_unusable",), to=T, do=("spare_delivered", "remake_output")),
    Row(on="upload-failed", at=(U,), when=("retryable",), do=("retry_upload",)),
    Row(on="upload-failed", at=(U,), to=states.FAILED, do=("fail",)),
    _ignore("upload-failed", (*CAPTURING, T, *states.FINAL), NO_SUCH_JOB),
    # Deadlines.
    Row(on="retry-due", at=(*CAPTURING, *WORKING), when=("job_waiting",), do=("queue_waiting_job",)),
    _ignore("retry-due", ALL, "no job waits"),
    _ignore("linger-over", CAPTURING, STOPPING, ("stopping",)),
    Row(on="linger-over", at=CAPTURING, unless=("speaker_absent",), ignore="the speaker came back"),
    Row(on="linger-over", at=CAPTURING, when=("capture_active",), do=("arm_linger",)),
    Row(on="linger-over", at=CAPTURING, do=("pull_last_time",)),
    _ignore("linger-over", LATER, OVER),
    _ignore("idle-over", CAPTURING, STOPPING, ("stopping", "capture_leased")),
    Row(on="idle-over", at=CAPTURING, when=("media_recent",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=CAPTURING, when=("speaker_present",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=(J,), when=("never_seen",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=CAPTURING, when=("capture_leased",), do=("request_stop",)),
    Row(on="idle-over", at=(J,), to=states.FAILED, do=("end_capture", "fail_without_media")),
    Row(on="idle-over", at=(R,), to=T, do=("end_capture", "queue_transcode")),
    _ignore("idle-over", LATER, OVER),
    # The files are on a node that is away. After NODE_RETURN the transcode continues without them; an upload waits as for COS.
    Row(on="node-return-over", at=WORKING, unless=("target_away",), do=("arm_node_return",)),
    Row(on="node-return-over", at=(T,), do=("transcode_anywhere",)),
    Row(on="node-return-over", at=(U,), when=("retryable",), do=("arm_node_return",)),
    Row(on="node-return-over", at=(U,), to=states.FAILED, do=("fail_node_away",)),
    _ignore("node-return-over", (*CAPTURING, *states.FINAL), "it waits for no node"),
    # Replay: resume at the latest stage whose files exist, or at the earlier one that is named. A stuck one: the command again. A
    # replay never captures again: handlers/replays.py opens another recording for that, while the session is Open.
    Row(on="replay", at=(J,), when=("stopping",), to=states.FAILED, do=("fail_without_media",)),
    Row(on="replay", at=(R,), when=("stopping",), to=T, do=("end_capture", "queue_transcode")),
    Row(on="replay", at=(*CAPTURING, T), do=("requeue_job",)),
    Row(on="replay", at=(U,), when=("resume_at_transcode",), unless=("resume_at_upload",), to=T, do=REMAKE),
    Row(on="replay", at=(U,), do=("requeue_job",)),
    Row(on="replay", at=(states.DONE,), unless=("stage_named",), ignore="it is Done already; name an earlier stage with From"),
    Row(on="replay", at=states.FINAL, when=("resume_at_upload",), to=U, do=("begin_replay", "queue_upload")),
    Row(on="replay", at=states.FINAL, when=("resume_at_transcode",), to=T, do=("begin_replay", *REMAKE)),
    _ignore("replay", states.FINAL, "its files are gone or never existed, so there is nothing to replay"),
)

MACHINE = decision_table.build(ROWS, states.RECORDING_STATES, EVENTS, RecordingRules)


def decide(recording: model.Recording, event: str, facts: recording_facts.Facts) -> RecordingDecision:
    """Apply `event` to `recording`: pure and total. Raises only KeyError, for an event that is not in EVENTS."""
    rules = RecordingRules(recording, facts)
    moves: list[tuple[str, str]] = []
    if recording.state == J and event in MAY_END_JOINING and _media_found(rules, event):
        _fire(rules, "media-found", moves)
    row = _fire(rules, event, moves)
    if row.ignore:
        return RecordingDecision(recording=recording, ignored=row.ignore)
    return RecordingDecision(recording=rules.recording, effects=tuple(rules.effects), moves=tuple(moves))


def _media_found(rules: RecordingRules, event: str) -> bool:
    """Whether media is on disk, from this run or from an earlier one of any epoch. A stale outcome reveals none."""
    if event in ENDS_A_RUN:
        return not rules.stale and rules.capture_active and (rules.facts.has_segments or rules.brought_media)
    return rules.facts.has_segments and (event != "replay" or rules.stopping)


def _fire(rules: RecordingRules, event: str, moves: list[tuple[str, str]]) -> Row:
    before = rules.state
    row = MACHINE.fire(rules, event)
    if rules.state != before:
        moves.append((before, rules.state))
        model.put(rules.recording, state=rules.state)
    return row
