"""Properties of the recording's state machine for any recording, event and facts."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from machine import effects, internal_events, model, recording
from tests import recording_cases as cases
from tests import recording_oracle as oracle

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
DELIVERED = st.builds(model.DeliveredFile, n=st.integers(1, 3), url=TEXT, code=TEXT, detail=TEXT, output=OUTPUTS)
RECORDINGS = st.builds(
    model.Recording,
    task_id=st.just("T"),
    speaker=TEXT,
    n=st.integers(1, 9),
    mode=st.sampled_from(("00", "01", "02")),
    state=st.sampled_from(cases.STATES),
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
    object_n=st.integers(0, 3),
    delivered=st.lists(DELIVERED, max_size=2).map(tuple),
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
    event = draw(st.sampled_from(cases.EVENTS))
    own = OUTCOMES.get(event, st.none())
    facts = st.builds(
        recording.RecordingFacts,
        now_ms=TIMES,
        callbacks_come=st.booleans(),
        has_segments=st.booleans(),
        has_output=st.booleans(),
        home=st.sampled_from(("", "n1", "n2")),
        target_away=st.booleans(),
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
    assert set(got.moves) <= (oracle.EDGES | oracle.REPLAY_EDGES if event == "replay" else oracle.EDGES)
    assert after.state == (got.moves[-1][1] if got.moves else value.state)
    for (_, reached), (left, _) in itertools.pairwise(got.moves):
        assert reached == left
    if got.ignored:
        assert (after, got.effects, got.moves) == (value, (), ())
    told = {file.url for file in value.delivered} | ({value.url} if value.state == "Done" and value.output else set())
    assert told <= {file.url for file in after.delivered} | {after.url}, "a delivered file is never withdrawn"
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
