"""The recording's machine: one total table over (state, stop requested?, capture) × event, and the pure `decide` that reads it.

May import `machine` and `events`. Rule: `decide` does no I/O, reads no clock and raises nothing on a live system; what does not
fit the present state is ignored with a reason. The chart and table in docs/state-machine.md are made from ROWS.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine import decision_table, effects, model, recording_facts, recording_rules, states

Facts = recording_facts.Facts
Cursor = recording_rules.Cursor

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
class Decision:
    """The recording as it is to be, what is to be done, and what was thought: the moves made, or why nothing happens."""

    recording: model.Recording
    effects: tuple[effects.Effect, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    ignored: str = ""


def _ignore(on: str, at: tuple[str, ...], reason: str, when: tuple[str, ...] = ()) -> decision_table.Row:
    return decision_table.Row(on=on, at=at, when=when, ignore=reason)


STALE = "an older epoch speaks"
OVER = "the capture is over; a new recording takes up what comes"
STOPPING = "it is stopping already"
NO_SUCH_JOB = "no such job is held in this state"
Row = decision_table.Row

ROWS: tuple[decision_table.Row, ...] = (
    # The speaker is there. A pull is made at once unless one runs; that one may have been refused a moment too early.
    _ignore("user-publishing", CAPTURING, OVER, ("stopping",)),
    Row(on="user-publishing", at=CAPTURING, when=("running",), do=("mark_present", "note_call")),
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
    Row(on="capture-started", at=(J,), when=("running",), to=R, do=("note_media", "answer_call")),
    Row(on="capture-started", at=(R,), when=("running",), do=("note_media", "answer_call")),
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
    Row(on="capture-exit", at=CAPTURING, when=("publish_pending",), do=("count_media", "queue_capture")),
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
    Row(on="transcode-exit", at=(T,), when=("node_stops",), do=("queue_again",)),
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
    Row(on="idle-over", at=(J,), when=("never_seen",), unless=("stopping",), do=("arm_idle",)),
    Row(on="idle-over", at=CAPTURING, when=("leased",), do=("ask_stop",)),
    Row(on="idle-over", at=(J,), to=states.FAILED, do=("end_capture", "fail_empty")),
    Row(on="idle-over", at=(R,), to=T, do=("end_capture", "queue_transcode")),
    _ignore("idle-over", LATER, OVER),
    # The files lie on a node that is away: after NODE_RETURN the transcode goes on without it; an upload waits as for COS.
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

MACHINE = decision_table.build(ROWS, states.RECORDING_STATES, EVENTS, Cursor)


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


def _step(cursor: Cursor, event: str, moves: list[tuple[str, str]]) -> decision_table.Row:
    before = cursor.state
    row = decision_table.fire(MACHINE, cursor, event)
    if cursor.state != before:
        moves.append((before, cursor.state))
        cursor.recording = model.changed(cursor.recording, state=cursor.state)
    return row
