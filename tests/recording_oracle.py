"""The oracle of the recording's state machine: the design's answer to every case, written by hand.

Rule: the oracle does not import the machine's table, rules or guards; it states the design independently.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tests import recording_cases as cases

EDGES = {
    ("Joining", "Recording"),
    ("Recording", "Transcoding"),
    ("Transcoding", "Uploading"),
    ("Uploading", "Done"),
    ("Uploading", "Transcoding"),
    *((state, "Failed") for state in ("Joining", "Recording", "Transcoding", "Uploading")),
}
REPLAY_EDGES = {(end, state) for end in cases.FINAL for state in ("Transcoding", "Uploading")}


@dataclass(frozen=True)
class Expected:
    """The expected decision: `moves` in order; `capture` or `job` afterwards ("": not checked); the one `command` sent; whether
    the epoch is `raised`; whether a stop is requested afterwards; the `armed` deadlines (None and "": not checked)."""

    kind: str  # move, stay or ignore
    moves: tuple[tuple[str, str], ...] = ()
    capture: str = ""
    job: str = ""
    command: str = ""
    raised: bool | None = None
    stop: bool | None = None
    armed: str = ""


IGNORE = Expected("ignore", raised=False)


def answer(c: cases.Case) -> Expected:
    """The design's answer for this case."""
    of_a_job = c.event in ("capture-started", "capture-exit", "transcode-exit", "upload-finished", "upload-failed", "worker-lost")
    if of_a_job and c.stale:
        return IGNORE  # outcomes of an older epoch are stale and refused
    answers = {
        "user-publishing": _user_publishing,
        "user-left": _user_left,
        "stop": _stop,
        "capture-started": _capture_started,
        "capture-exit": _capture_exit,
        "transcode-exit": _transcode_exit,
        "upload-finished": _upload_finished,
        "upload-failed": _upload_failed,
        "worker-lost": _worker_lost,
        "retry-due": _retry_due,
        "linger-over": _linger_over,
        "idle-over": _idle_over,
        "replay": _replay,
        "media-found": _media_found,
        "node-return-over": _node_return_over,
    }
    return answers[c.event](c)


def _user_publishing(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING or c.stop:
        return IGNORE  # that appearance is over: the next recording takes it up
    if c.capture in ("queued", "leased"):
        return Expected("stay", capture=c.capture, raised=False)
    return Expected("stay", capture="queued", command="start-capture", raised=True)  # pulls at once


def _user_left(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING or c.stop:
        return IGNORE
    if c.capture == "leased":
        return Expected("stay", capture="leased", raised=False, armed="linger")
    return Expected("stay", capture="none", raised=True, armed="linger")  # no pull is made


def _stopped(c: cases.Case, state: str, before: tuple[tuple[str, str], ...] = ()) -> Expected:
    """Stopped and no capture left running."""
    if state == "Joining":
        return Expected("move", (*before, ("Joining", "Failed")), capture="none", stop=True)
    move = ("Recording", "Transcoding")
    return Expected("move", (*before, move), capture="none", job="queued", command="start-transcode", raised=True, stop=True)


def _found(c: cases.Case, *, here: bool = False) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Media on disk, of this run (`media_ms`) or of a superseded one (`segments`), first makes the move of capture-started."""
    if c.state == "Joining" and (c.segments or here):
        return "Recording", (("Joining", "Recording"),)
    return c.state, ()


def _stop(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING:
        return IGNORE
    state, before = _found(c)
    if c.capture != "leased":
        return dataclasses.replace(_stopped(c, state, before), raised=True)  # raises the epoch and moves at once
    if c.stop:
        return IGNORE  # already requested
    kind = "move" if before else "stay"  # asks the worker and waits
    return Expected(kind, before, capture="leased", command="stop-capture", raised=False, stop=True)


def _media_found(c: cases.Case) -> Expected:
    if c.state != "Joining":
        return IGNORE
    return Expected("move", (("Joining", "Recording"),), capture=c.capture, raised=False)


def _capture_started(c: cases.Case) -> Expected:
    if c.capture not in ("queued", "leased"):
        return IGNORE
    if c.state == "Joining":
        return Expected("move", (("Joining", "Recording"),), capture=c.capture, raised=False)
    return Expected("stay", capture=c.capture, raised=False) if c.state == "Recording" else IGNORE


def _capture_exit(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING or c.capture not in ("queued", "leased"):
        return IGNORE
    state, before = _found(c, here=c.media_ms > 0)
    if c.stop:
        return _stopped(c, state, before)
    if state == "Joining" and c.reason == "refused-for-good":
        return Expected("move", (("Joining", "Failed"),), capture="none")
    node_fault = c.reason in ("disk-full", "spool-lost")  # another node takes the capture, or it retries until the session closes
    if c.last_pull and c.media_ms == 0 and not node_fault:
        return _stopped(c, state, before)  # left, and did not come back within LINGER
    stays = "move" if before else "stay"
    if c.present is False and not c.last_pull:
        return Expected(stays, before, capture="none")  # no pull until user-publishing or the end of LINGER
    if c.reason in ("new-track", "node-stopping"):  # the stream is live: the next segment starts now
        return Expected(stays, before, capture="queued", command="start-capture", raised=True)
    if c.publish_pending:  # a track was switched on when this run may have been refused already
        return Expected(stays, before, capture="queued", command="start-capture", raised=True)
    return Expected(stays, before, capture="waiting", raised=True, armed="retry")


def _worker_lost(c: cases.Case) -> Expected:
    if c.state in ("Transcoding", "Uploading"):
        if c.job not in ("queued", "leased"):
            return IGNORE
        if c.state == "Transcoding" and c.failures >= cases.POLICY.lost_limit:
            return Expected("move", (("Transcoding", "Failed"),))  # retries spent
        if c.state == "Uploading" and c.upload_over:
            return Expected("move", (("Uploading", "Failed"),))
        return Expected("stay", job="queued", command=_command(c.state), raised=True)
    if c.state in cases.FINAL or c.capture not in ("queued", "leased"):
        return IGNORE
    state, before = _found(c, here=c.media_ms > 0)
    if c.stop:
        return _stopped(c, state, before)
    stays = "move" if before else "stay"
    if c.present is False and not c.last_pull:
        return Expected(stays, before, capture="none")
    if c.failures and c.media_ms < cases.LASTED_MS:  # losses in a row: something kills workers, so the next one is spared a while
        return Expected(stays, before, capture="waiting", raised=True, armed="retry")
    return Expected(stays, before, capture="queued", command="start-capture", raised=True)


def _transcode_exit(c: cases.Case) -> Expected:
    if c.state != "Transcoding" or c.job not in ("queued", "leased"):
        return IGNORE
    if c.reason == "ok":
        return Expected("move", (("Transcoding", "Uploading"),), job="queued", command="start-upload", raised=True)
    if c.reason == "node-stopping":  # restarts alone never fail a recording
        return Expected("stay", job="queued", command="start-transcode", raised=True)
    if c.reason in ("disk-full", "spool-lost") and not c.upload_over:  # waits for space as uploads wait for COS
        return Expected("stay", job="waiting", raised=True, armed="retry")
    if c.reason == "node-away" or (c.retry and c.failures < len(cases.POLICY.transcode_backoff_ms)):
        return Expected("stay", job="waiting", raised=True, armed="retry")
    return Expected("move", (("Transcoding", "Failed"),))


def _upload_finished(c: cases.Case) -> Expected:
    if c.state != "Uploading" or c.job not in ("queued", "leased"):
        return IGNORE
    return Expected("move", (("Uploading", "Done"),))


def _upload_failed(c: cases.Case) -> Expected:
    if c.state != "Uploading" or c.job not in ("queued", "leased"):
        return IGNORE
    if c.reason in ("file-missing", "file-damaged") and not c.retry and c.segments and not (c.output and c.remade >= 3):
        # the file is not the verified one: made again from its segments, three times at most
        return Expected("move", (("Uploading", "Transcoding"),), job="queued", command="start-transcode", raised=True, stop=True)
    if c.retry and not c.upload_over:
        return Expected("stay", job="waiting", raised=True, armed="retry")
    return Expected("move", (("Uploading", "Failed"),))


def _retry_due(c: cases.Case) -> Expected:
    if c.state in cases.CAPTURING and c.capture == "waiting":
        return Expected("stay", capture="queued", command="start-capture")
    if c.state in ("Transcoding", "Uploading") and c.job == "waiting":
        return Expected("stay", job="queued", command=_command(c.state))
    return IGNORE


def _linger_over(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING or c.stop or c.present is not False:
        return IGNORE
    if c.capture in ("queued", "leased"):
        return Expected("stay", capture=c.capture, raised=False, armed="linger")  # media still arrives: check again later
    return Expected("stay", capture="queued", command="start-capture", raised=True)  # one last time


def _idle_over(c: cases.Case) -> Expected:
    if c.state not in cases.CAPTURING:
        return IGNORE
    if not c.stop and (c.media_lately or c.present is True or (c.never_seen and _found(c)[0] == "Joining")):
        _, before = _found(c)
        return Expected("move" if before else "stay", before, capture=c.capture, raised=False, armed="idle")
    if not c.stop and c.state == "Joining" and c.segments:
        before = (("Joining", "Recording"),)  # media was just found: idle time counts from here
        return Expected("move", before, capture=c.capture, raised=False, armed="idle")
    return _stop(c)


def _replay(c: cases.Case) -> Expected:
    if c.state in cases.CAPTURING:
        if c.stop:  # its outcome does not come
            return _stopped(c, *_found(c))
        return Expected("stay", capture="queued", command="start-capture", raised=True)
    if c.state == "Transcoding":
        return Expected("stay", job="queued", command="start-transcode", raised=True)
    if c.state == "Uploading":
        if c.from_ == "transcoding" and c.segments:
            return Expected("move", (("Uploading", "Transcoding"),), job="queued", command="start-transcode", raised=True)
        if not c.output and c.segments and c.from_ != "joining":
            return Expected("move", (("Uploading", "Transcoding"),), job="queued", command="start-transcode", raised=True)
        return Expected("stay", job="queued", command="start-upload", raised=True)
    if c.state == "Done" and not c.from_:
        return IGNORE
    if c.output and c.from_ in ("", "uploading"):
        target, command = "Uploading", "start-upload"
    elif c.segments and c.from_ in ("", "uploading", "transcoding"):
        target, command = "Transcoding", "start-transcode"
    else:
        return IGNORE  # a replay acts on files; another capture is another recording
    return Expected("move", ((c.state, target),), job="queued", command=command, raised=True, stop=True)


def _node_return_over(c: cases.Case) -> Expected:
    if c.state not in ("Transcoding", "Uploading"):
        return IGNORE
    if not c.target_away:
        return Expected("stay", job=c.job, raised=False, armed="node-return")
    if c.state == "Transcoding":  # finishes with the reachable segments, on any node
        return Expected("stay", job="queued", command="start-transcode", raised=True)
    if c.upload_over:
        return Expected("move", (("Uploading", "Failed"),))
    return Expected("stay", job=c.job, armed="node-return")


def _command(state: str) -> str:
    return {"Transcoding": "start-transcode", "Uploading": "start-upload"}[state]
