"""The recording's machine against an oracle written by hand: every key × every event × the relevant facts.

The oracle imports nothing of machine.recording's table; it states the design independently.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import effects, internal_events, model, recording

NOW_MS = 1_800_000_000_000
EPOCH = 7
POLICY = model.Policy()

STATES = ("Joining", "Recording", "Transcoding", "Uploading", "Done", "Failed")
CAPTURES = ("none", "waiting", "queued", "leased")
EVENTS = (
    "user-publishing",
    "user-left",
    "stop",
    "capture-started",
    "capture-exit",
    "transcode-exit",
    "upload-finished",
    "upload-failed",
    "worker-lost",
    "retry-due",
    "linger-over",
    "idle-over",
    "replay",
    "media-found",
    "node-return-over",
)
CAPTURING = ("Joining", "Recording")
FINAL = ("Done", "Failed")
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": [{"AtMs": 1, "DurationMs": 2}]}
EDGES = {
    ("Joining", "Recording"),
    ("Recording", "Transcoding"),
    ("Transcoding", "Uploading"),
    ("Uploading", "Done"),
    *((state, "Failed") for state in ("Joining", "Recording", "Transcoding", "Uploading")),
}
REPLAY_EDGES = {(end, state) for end in FINAL for state in ("Joining", "Transcoding", "Uploading")} | {
    ("Uploading", "Transcoding")
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One key, one event, and the relevant facts."""

    state: str
    stop: bool
    capture: str
    event: str
    job: str = ""  # of a transcode or an upload: "", waiting, queued or leased
    present: bool | None = None
    never_seen: bool = False
    last_pull: bool = False
    publish_pending: bool = False
    failures: int = 0
    media_ms: int = 0
    reason: str = "eof"
    retry: bool = True
    stale: bool = False
    media_lately: bool = False
    upload_over: bool = False
    segments: bool = False
    output: bool = False
    from_: str = ""
    home: str = ""
    target_away: bool = False

    @property
    def short(self) -> str:
        """The differences from the default, for messages."""
        said = [
            f.name for f in dataclasses.fields(self) if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        ]
        return " ".join(f"{name}={getattr(self, name)}" for name in said)

    @property
    def row(self) -> model.Recording:
        """The recording of this key."""
        job = None
        if self.capture != "none":
            job = model.Job(kind="capture", state=self.capture, node="n" if self.capture == "leased" else "")
        elif self.job:
            job = model.Job(kind={"Transcoding": "transcode"}.get(self.state, "upload"), state=self.job)
        return model.Recording(
            task_id="T",
            speaker="al",
            n=1,
            state=self.state,
            stop_requested=self.stop,
            epoch=EPOCH,
            failures=self.failures,
            present=self.present,
            never_seen=self.never_seen,
            last_pull=self.last_pull,
            publish_pending=self.publish_pending,
            idle_from_ms=NOW_MS - (1_000 if self.media_lately else POLICY.idle_timeout_ms + 1),
            stage_started_ms=NOW_MS - (POLICY.upload_retry_for_ms + 1 if self.upload_over else 1_000),
            code="FailedRecording" if self.state == "Failed" else "",
            output=model.Output.from_json(OUTPUT) if self.output else None,
            job=job,
        )

    @property
    def outcome(self) -> internal_events.RecordingOutcome | None:
        """The payload of the event, if it has one."""
        epoch = EPOCH - 1 if self.stale else EPOCH
        match self.event:
            case "capture-started":
                return internal_events.CaptureStarted(epoch=epoch)
            case "capture-exit" | "transcode-exit":
                return internal_events.FfmpegExit(
                    epoch=epoch,
                    job=self.event.removesuffix("-exit"),
                    reason=self.reason,
                    retry=self.retry,
                    media_ms=self.media_ms,
                    size_bytes=9,
                    output=model.Output.from_json(OUTPUT) if self.reason == "ok" else None,
                )
            case "upload-finished":
                return internal_events.UploadFinished(epoch=epoch, size_bytes=9, crc64="1", url="https://x/y")
            case "upload-failed":
                return internal_events.UploadFailure(epoch=epoch, reason=self.reason, retry=self.retry)
            case "worker-lost":
                return internal_events.WorkerLost(owner="T/al/1", epoch=epoch, node="n", media_ms=self.media_ms, size_bytes=9)
        return None

    @property
    def facts(self) -> recording.RecordingFacts:
        """The event's data."""
        return recording.RecordingFacts(
            now_ms=NOW_MS,
            policy=POLICY,
            has_segments=self.segments,
            has_output=self.output,
            outcome=self.outcome,
            from_stage=self.from_,
            home=self.home,
            target_away=self.target_away,
        )


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


def oracle(c: Case) -> Expected:
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


def _user_publishing(c: Case) -> Expected:
    if c.state not in CAPTURING or c.stop:
        return IGNORE  # that appearance is over: the next recording takes it up
    if c.capture in ("queued", "leased"):
        return Expected("stay", capture=c.capture, raised=False)
    return Expected("stay", capture="queued", command="start-capture", raised=True)  # pulls at once


def _user_left(c: Case) -> Expected:
    if c.state not in CAPTURING or c.stop:
        return IGNORE
    if c.capture == "leased":
        return Expected("stay", capture="leased", raised=False, armed="linger")
    return Expected("stay", capture="none", raised=True, armed="linger")  # no pull is made


def _stopped(c: Case, state: str, before: tuple[tuple[str, str], ...] = ()) -> Expected:
    """Stopped and no capture left running."""
    if state == "Joining":
        return Expected("move", (*before, ("Joining", "Failed")), capture="none", stop=True)
    move = ("Recording", "Transcoding")
    return Expected("move", (*before, move), capture="none", job="queued", command="start-transcode", raised=True, stop=True)


def _found(c: Case, *, here: bool = False) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Media on disk, of this run (`media_ms`) or of a superseded one (`segments`), first makes the move of capture-started."""
    if c.state == "Joining" and (c.segments or here):
        return "Recording", (("Joining", "Recording"),)
    return c.state, ()


def _stop(c: Case) -> Expected:
    if c.state not in CAPTURING:
        return IGNORE
    state, before = _found(c)
    if c.capture != "leased":
        return dataclasses.replace(_stopped(c, state, before), raised=True)  # raises the epoch and moves at once
    if c.stop:
        return IGNORE  # already requested
    kind = "move" if before else "stay"  # asks the worker and waits
    return Expected(kind, before, capture="leased", command="stop-capture", raised=False, stop=True)


def _media_found(c: Case) -> Expected:
    if c.state != "Joining":
        return IGNORE
    return Expected("move", (("Joining", "Recording"),), capture=c.capture, raised=False)


def _capture_started(c: Case) -> Expected:
    if c.capture not in ("queued", "leased"):
        return IGNORE
    if c.state == "Joining":
        return Expected("move", (("Joining", "Recording"),), capture=c.capture, raised=False)
    return Expected("stay", capture=c.capture, raised=False) if c.state == "Recording" else IGNORE


def _capture_exit(c: Case) -> Expected:
    if c.state not in CAPTURING or c.capture not in ("queued", "leased"):
        return IGNORE
    state, before = _found(c, here=c.media_ms > 0)
    if c.reason in ("disk-full", "spool-lost"):
        return Expected("move", (*before, (state, "Failed")), capture="none")
    if c.stop:
        return _stopped(c, state, before)
    if state == "Joining" and c.reason == "refused-for-good":
        return Expected("move", (("Joining", "Failed"),), capture="none")
    if c.last_pull and c.media_ms == 0:
        return _stopped(c, state, before)  # left, and did not come back within LINGER
    stays = "move" if before else "stay"
    if c.present is False and not c.last_pull:
        return Expected(stays, before, capture="none")  # no pull until user-publishing or the end of LINGER
    if c.reason in ("new-track", "node-stopping"):  # the stream is live: the next segment starts now
        return Expected(stays, before, capture="queued", command="start-capture", raised=True)
    if c.publish_pending:  # a track was switched on when this run may have been refused already
        return Expected(stays, before, capture="queued", command="start-capture", raised=True)
    return Expected(stays, before, capture="waiting", raised=True, armed="retry")


def _worker_lost(c: Case) -> Expected:
    if c.state in ("Transcoding", "Uploading"):
        if c.job not in ("queued", "leased"):
            return IGNORE
        if c.state == "Transcoding" and c.failures >= POLICY.lost_limit:
            return Expected("move", (("Transcoding", "Failed"),))  # retries spent
        if c.state == "Uploading" and c.upload_over:
            return Expected("move", (("Uploading", "Failed"),))
        return Expected("stay", job="queued", command=_command(c.state), raised=True)
    if c.state in FINAL or c.capture not in ("queued", "leased"):
        return IGNORE
    state, before = _found(c, here=c.media_ms > 0)
    if c.stop:
        return _stopped(c, state, before)
    stays = "move" if before else "stay"
    if c.present is False and not c.last_pull:
        return Expected(stays, before, capture="none")
    return Expected(stays, before, capture="queued", command="start-capture", raised=True)


def _transcode_exit(c: Case) -> Expected:
    if c.state != "Transcoding" or c.job not in ("queued", "leased"):
        return IGNORE
    if c.reason == "ok":
        return Expected("move", (("Transcoding", "Uploading"),), job="queued", command="start-upload", raised=True)
    if c.reason == "node-stopping":  # restarts alone never fail a recording
        return Expected("stay", job="queued", command="start-transcode", raised=True)
    if c.reason == "node-away" or (c.retry and c.failures < len(POLICY.transcode_backoff_ms)):
        return Expected("stay", job="waiting", raised=True, armed="retry")
    return Expected("move", (("Transcoding", "Failed"),))


def _upload_finished(c: Case) -> Expected:
    if c.state != "Uploading" or c.job not in ("queued", "leased"):
        return IGNORE
    return Expected("move", (("Uploading", "Done"),))


def _upload_failed(c: Case) -> Expected:
    if c.state != "Uploading" or c.job not in ("queued", "leased"):
        return IGNORE
    if c.retry and not c.upload_over:
        return Expected("stay", job="waiting", raised=True, armed="retry")
    return Expected("move", (("Uploading", "Failed"),))


def _retry_due(c: Case) -> Expected:
    if c.state in CAPTURING and c.capture == "waiting":
        return Expected("stay", capture="queued", command="start-capture")
    if c.state in ("Transcoding", "Uploading") and c.job == "waiting":
        return Expected("stay", job="queued", command=_command(c.state))
    return IGNORE


def _linger_over(c: Case) -> Expected:
    if c.state not in CAPTURING or c.stop or c.present is not False:
        return IGNORE
    if c.capture in ("queued", "leased"):
        return Expected("stay", capture=c.capture, raised=False, armed="linger")  # media still arrives: check again later
    return Expected("stay", capture="queued", command="start-capture", raised=True)  # one last time


def _idle_over(c: Case) -> Expected:
    if c.state not in CAPTURING:
        return IGNORE
    if not c.stop and (c.media_lately or c.present is True or (c.never_seen and _found(c)[0] == "Joining")):
        _, before = _found(c)
        return Expected("move" if before else "stay", before, capture=c.capture, raised=False, armed="idle")
    if not c.stop and c.state == "Joining" and c.segments:
        before = (("Joining", "Recording"),)  # media was just found: idle time counts from here
        return Expected("move", before, capture=c.capture, raised=False, armed="idle")
    return _stop(c)


def _replay(c: Case) -> Expected:
    if c.state in CAPTURING:
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
        target, command = "Joining", "start-capture"
    return Expected("move", ((c.state, target),), job="queued", command=command, raised=True, stop=target != "Joining")


def _node_return_over(c: Case) -> Expected:
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


def cases() -> Iterator[Case]:
    """Every key × every event × the values of the relevant facts."""
    for state, stop, capture, event in itertools.product(STATES, (False, True), CAPTURES, EVENTS):
        jobs = ("", "waiting", "queued", "leased") if state in ("Transcoding", "Uploading") and capture == "none" else ("",)
        for job in jobs:
            for extra in _facts_that_matter(state, event):
                yield Case(state=state, stop=stop, capture=capture, event=event, job=job, **extra)


def _facts_that_matter(state: str, event: str) -> Iterator[dict[str, Any]]:
    reasons = (
        "eof",
        "stopped",
        "stalled",
        "refused",
        "refused-for-good",
        "disk-full",
        "spool-lost",
        "new-track",
        "no-media",
        "error",
    )
    values: dict[str, tuple[Any, ...]] = {
        "capture-started": {"stale": (False, True)},
        "capture-exit": {
            "stale": (False, True),
            "media_ms": (0, 5_000),
            "reason": reasons,
            "present": (None, True, False),
            "last_pull": (False, True),
            "publish_pending": (False, True),
            "segments": (False, True),
        },
        "worker-lost": {
            "stale": (False, True),
            "media_ms": (0, 5_000),
            "present": (None, True, False),
            "last_pull": (False, True),
            "failures": (0, 4, 5, 9),
            "upload_over": (False, True) if state == "Uploading" else (False,),
            "segments": (False, True),
        },
        "transcode-exit": {
            "stale": (False, True),
            "reason": ("ok", "ffmpeg-failed", "node-away", "node-stopping"),
            "retry": (False, True),
            "failures": (0, 1, 2),
        },
        "upload-finished": {"stale": (False, True)},
        "upload-failed": {"stale": (False, True), "retry": (False, True), "upload_over": (False, True), "failures": (0, 50)},
        "linger-over": {"present": (None, True, False)},
        "stop": {"segments": (False, True), "home": ("", "n9")},
        "idle-over": {
            "present": (None, True, False),
            "never_seen": (False, True),
            "media_lately": (False, True),
            "segments": (False, True),
        },
        "user-publishing": {"present": (None, True, False), "last_pull": (False, True), "never_seen": (False, True)},
        "user-left": {"present": (None, True, False), "last_pull": (False, True)},
        "node-return-over": {"target_away": (False, True), "upload_over": (False, True)},
        "replay": {
            "home": ("", "n9"),
            "from_": ("", "joining", "transcoding", "uploading"),
            "segments": (False, True),
            "output": (False, True),
        },
    }.get(event, {})
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _differences(case: Case) -> list[str]:
    before, facts = case.row, case.facts
    got = recording.decide(before, case.event, facts)
    want = oracle(case)
    after = got.recording
    kind = "ignore" if got.ignored else "move" if got.moves else "stay"
    commands = [e.type for e in got.effects if isinstance(e, effects.Command)]
    armed = [e.kind for e in got.effects if isinstance(e, effects.Arm)]
    found = []
    if kind != want.kind or got.moves != want.moves:
        found.append(f"{kind} {got.moves}, not {want.kind} {want.moves}")
    if kind == "ignore" and (after != before or got.effects):
        found.append("ignored, but not without traces")
    if want.capture and after.capture != want.capture:
        found.append(f"capture is {after.capture}, not {want.capture}")
    if want.job and (after.job is None or after.job.state != want.job):
        found.append(f"job is {after.job}, not {want.job}")
    if want.kind != "ignore" and commands != ([want.command] if want.command else []):
        found.append(f"commands are {commands}, not {want.command!r}")
    if want.raised is not None and (after.epoch > before.epoch) != want.raised:
        found.append(f"epoch went from {before.epoch} to {after.epoch}")
    if want.stop is not None and after.stop_requested != want.stop:
        found.append(f"stop requested is {after.stop_requested}")
    if after.job != before.job and after.job is not None and after.job.kind == "transcode":
        place = "" if case.event == "node-return-over" else case.home
        if after.job.node != place or ("node-return" in armed) != bool(place):
            found.append(f"the transcode is for {after.job.node!r}, not {place!r}; armed {armed}")
    if want.armed and want.armed not in armed:
        found.append(f"armed {armed}, not {want.armed}")
    return [f"{case.short}: {text}" for text in found]


def _reachable(case: Case) -> bool:
    """A capture is leased in Joining and Recording only: elsewhere the key exists, and must do no harm."""
    return case.capture == "none" or case.state in CAPTURING


@pytest.mark.parametrize("event", EVENTS)
def test_the_table_does_what_the_design_says(event: str) -> None:
    """Every key × this event × the relevant facts moves, stays or is ignored as designed."""
    wrong = [d for case in cases() if case.event == event and _reachable(case) for d in _differences(case)]
    assert not wrong, f"{len(wrong)} differences, the first:\n" + "\n".join(wrong[:10])


def test_the_oracle_knows_every_event_and_state() -> None:
    """No state and no event of the machine is left out of the oracle."""
    assert set(recording.EVENTS) == set(EVENTS)
    assert set(recording.MACHINE.states) == set(STATES)


def test_a_key_that_cannot_be_is_harmless() -> None:
    """A capture in a later state raises nothing, and moves nothing backwards."""
    for case in cases():
        if not _reachable(case):
            got = recording.decide(case.row, case.event, case.facts)
            assert set(got.moves) <= EDGES | REPLAY_EDGES


# --- for any facts ----------------------------------------------------------------------------------------------------
TIMES = st.integers(0, 2**53 - 1)
MAYBE_TIME = st.none() | TIMES
TEXT = st.text(max_size=20)
JOBS = st.none() | st.builds(
    model.Job,
    kind=st.sampled_from(("capture", "transcode", "upload")),
    state=st.sampled_from(("waiting", "queued", "leased")),
    node=TEXT,
)
OUTPUTS = st.builds(
    model.Output,
    duration_ms=TIMES,
    size_bytes=TIMES,
    crc64=TEXT,
    start_ms=MAYBE_TIME,
    end_ms=MAYBE_TIME,
    gaps=st.lists(st.tuples(TIMES, TIMES), max_size=2).map(tuple),
)
RECORDINGS = st.builds(
    model.Recording,
    task_id=st.just("T"),
    speaker=TEXT,
    n=st.integers(1, 9),
    mode=st.sampled_from(("00", "01", "02")),
    state=st.sampled_from(STATES),
    version=st.integers(1, 99),
    stop_requested=st.booleans(),
    epoch=st.integers(1, 9),
    replays=st.integers(0, 8),
    failures=st.integers(0, 99),
    present=st.none() | st.booleans(),
    never_seen=st.booleans(),
    last_pull=st.booleans(),
    publish_pending=st.booleans(),
    idle_from_ms=TIMES,
    stage_started_ms=TIMES,
    opened_ms=TIMES,
    ended_ms=MAYBE_TIME,
    first_packet_ms=MAYBE_TIME,
    last_packet_ms=MAYBE_TIME,
    media_ms=TIMES,
    detail=TEXT,
    output=st.none() | OUTPUTS,
    url=TEXT,
    job=JOBS,
    files_removed=st.booleans(),
)
REASONS = TEXT | st.sampled_from(
    ("eof", "ok", "disk-full", "spool-lost", "refused-for-good", "new-track", "file-missing", "node-away")
)
EPOCHS = st.integers(1, 9)
EXITS = st.builds(
    internal_events.FfmpegExit,
    epoch=EPOCHS,
    job=st.sampled_from(("capture", "transcode")),
    reason=REASONS,
    detail=TEXT,
    retry=st.booleans(),
    media_ms=TIMES,
    first_packet_ms=MAYBE_TIME,
    last_packet_ms=MAYBE_TIME,
    output=st.none() | OUTPUTS,
    node=TEXT,
)
OUTCOMES = {
    "capture-started": st.builds(internal_events.CaptureStarted, epoch=EPOCHS, first_packet_ms=MAYBE_TIME),
    "capture-exit": EXITS,
    "transcode-exit": EXITS,
    "upload-finished": st.builds(internal_events.UploadFinished, epoch=EPOCHS, size_bytes=TIMES, crc64=TEXT, url=TEXT),
    "upload-failed": st.builds(internal_events.UploadFailure, epoch=EPOCHS, reason=REASONS, retry=st.booleans(), detail=TEXT),
    "worker-lost": st.builds(
        internal_events.WorkerLost,
        owner=TEXT,
        epoch=EPOCHS,
        node=TEXT,
        media_ms=MAYBE_TIME,
        size_bytes=MAYBE_TIME,
        last_packet_ms=MAYBE_TIME,
    ),
}
ANY_OUTCOME = st.none() | st.one_of(*OUTCOMES.values())


@st.composite
def _happenings(draw: st.DrawFn) -> tuple[str, recording.RecordingFacts]:
    """An event, and facts with its own payload: most often that, but any other must do no harm."""
    event = draw(st.sampled_from(EVENTS))
    own = OUTCOMES.get(event, st.none())
    facts = st.builds(
        recording.RecordingFacts,
        now_ms=TIMES,
        callbacks_come=st.booleans(),
        has_segments=st.booleans(),
        has_output=st.booleans(),
        home=st.sampled_from(("", "n1", "n2")),
        target_away=st.booleans(),
        evictions=st.integers(0, 9),
        outcome=st.one_of(own, own, own, ANY_OUTCOME),
        from_stage=st.sampled_from(("", "joining", "transcoding", "uploading")),
    )
    return event, draw(facts)


@given(RECORDINGS, _happenings())
def test_a_decision_is_pure_and_never_raises(value: model.Recording, happening: tuple[str, recording.RecordingFacts]) -> None:
    """Whatever the facts, a decision comes out; the same one twice; and neither recording nor facts were touched."""
    event, facts = happening
    value_before, facts_before = repr(value), repr(facts)
    first = recording.decide(value, event, facts)
    assert recording.decide(value, event, facts) == first
    assert repr(value) == value_before
    assert repr(facts) == facts_before


@given(RECORDINGS, _happenings())
def test_what_every_decision_keeps(value: model.Recording, happening: tuple[str, recording.RecordingFacts]) -> None:
    """Epochs only grow; moves follow the chart; an ignored event leaves nothing; a new attempt gets a new epoch."""
    event, facts = happening
    got = recording.decide(value, event, facts)
    after = got.recording
    assert after.epoch >= value.epoch
    assert after.version == value.version
    assert after.key == value.key
    assert set(got.moves) <= (EDGES | REPLAY_EDGES if event == "replay" else EDGES)
    assert after.state == (got.moves[-1][1] if got.moves else value.state)
    for (_, reached), (left, _) in itertools.pairwise(got.moves):
        assert reached == left
    if got.ignored:
        assert (after, got.effects, got.moves) == (value, (), ())
    started = [e.type for e in got.effects if isinstance(e, effects.Command) and e.type.startswith("start-")]
    if started and event != "retry-due":
        assert after.epoch > value.epoch, "a new attempt needs a new epoch"
    if after.final and not value.final:
        assert after.job is None
        assert after.code in {"Success", "FailedRecording", "FailedTranscode", "FailedCosWrite"}
        assert effects.Report() in got.effects


@given(RECORDINGS, _happenings())
def test_a_stale_epoch_moves_nothing(value: model.Recording, happening: tuple[str, recording.RecordingFacts]) -> None:
    """A worker's event under another epoch than the present one is ignored, with a reason."""
    event, facts = happening
    if event in ("capture-started", "capture-exit", "transcode-exit", "upload-finished", "upload-failed", "worker-lost"):
        older = facts.outcome and dataclasses.replace(facts.outcome, epoch=value.epoch - 1)
        stale = dataclasses.replace(facts, outcome=older)
        got = recording.decide(value, event, stale)
        assert got.ignored
        assert got.recording == value


@given(RECORDINGS, _happenings())
def test_a_failure_has_the_code_of_its_state_and_keeps_the_files(
    value: model.Recording, happening: tuple[str, recording.RecordingFacts]
) -> None:
    """A failure has the code of the state that it left, a Detail, and a deadline for its files."""
    event, facts = happening
    got = recording.decide(value, event, facts)
    if got.moves and got.moves[-1][1] == "Failed":
        codes = {"Joining": "FailedRecording", "Recording": "FailedRecording", "Transcoding": "FailedTranscode"}
        assert got.recording.code == codes.get(got.moves[-1][0], "FailedCosWrite")
        assert got.recording.detail
        assert effects.Arm("keep", facts.now_ms + facts.policy.keep_failed_ms) in got.effects
