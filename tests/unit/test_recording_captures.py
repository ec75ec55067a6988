"""The sequence of a recording's captures: backoff, publishing, leaving, absent nodes; one story per test."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from machine import effects, internal_events, model, recording

NOW_MS = 1_800_000_000_000
EPOCH = 7


def _fresh(**changes: Any) -> model.Recording:
    return dataclasses.replace(model.Recording(task_id="T", speaker="al", n=1, epoch=EPOCH), **changes)


def _facts(outcome: internal_events.RecordingOutcome | None = None) -> recording.RecordingFacts:
    return recording.RecordingFacts(now_ms=NOW_MS, outcome=outcome)


def _exit(reason: str, media_ms: int = 0, *, epoch: int = EPOCH, job: str = "capture") -> recording.RecordingFacts:
    return _facts(internal_events.FfmpegExit(epoch=epoch, job=job, reason=reason, media_ms=media_ms))


def _lost(media_ms: int) -> recording.RecordingFacts:
    return _facts(internal_events.WorkerLost(owner="T/al/1", epoch=EPOCH, node="n1", media_ms=media_ms))


@pytest.mark.parametrize("comes", [True, False], ids=["with callbacks", "without callbacks"])
def test_pauses_between_segments_grow(comes: bool) -> None:
    """The capture restarts after 1 s, then longer, up to 10 s; up to 30 s without callbacks."""
    value, pauses = _fresh(state="Recording"), []
    for _ in range(8):
        value = dataclasses.replace(value, job=model.Job(kind="capture", state="leased"))
        facts = dataclasses.replace(_exit("eof", epoch=value.epoch), callbacks_come=comes)
        got = recording.decide(value, "capture-exit", facts)
        pauses += [e.at_ms - NOW_MS for e in got.effects if isinstance(e, effects.Arm) and e.kind == "retry"]
        value = got.recording
    assert pauses[0] == 1_000
    assert pauses == sorted(pauses)
    assert pauses[-1] == (10_000 if comes else 30_000)


def test_a_track_that_is_switched_on_during_a_pull_is_pulled_at_once_should_it_fail() -> None:
    """A pull may be refused just before the speaker publishes, and its end arrive just after: the next pull then starts without
    backoff; if it brings nothing either, the backoff begins with the shortest."""
    value = _fresh(state="Recording", failures=9, job=model.Job(kind="capture", state="leased"))
    value = recording.decide(value, "user-publishing", _facts()).recording
    assert value.capture == "leased"
    value = recording.decide(value, "capture-exit", _exit("refused")).recording
    assert value.capture == "queued"
    got = recording.decide(value, "capture-exit", _exit("refused", epoch=value.epoch))
    assert effects.Arm("retry", NOW_MS + 1_000) in got.effects


def test_media_or_leaving_answers_a_track_that_was_switched_on() -> None:
    """After a run with media, the end is followed by a normal backoff; after user-left no pull starts at all."""
    value = _fresh(state="Recording", job=model.Job(kind="capture", state="leased"))
    publish_pending = recording.decide(value, "user-publishing", _facts()).recording
    began = internal_events.CaptureStarted(epoch=EPOCH)
    started = recording.decide(publish_pending, "capture-started", _facts(began)).recording
    assert recording.decide(started, "capture-exit", _exit("eof", 9)).recording.capture == "waiting"
    left = recording.decide(publish_pending, "user-left", _facts()).recording
    assert (left.publish_pending, recording.decide(left, "capture-exit", _exit("refused")).recording.capture) == (
        False,
        "none",
    )


def test_media_ends_the_series_of_failures() -> None:
    """After a run with media, the next segment starts after the shortest backoff again."""
    value = _fresh(state="Recording", failures=9, job=model.Job(kind="capture", state="leased"))
    got = recording.decide(value, "capture-exit", _exit("eof", 3_000))
    assert effects.Arm("retry", NOW_MS + 1_000) in got.effects


@pytest.mark.parametrize("media_ms", [0, 4_000], ids=["without media", "with some media"])
def test_a_capture_that_loses_worker_after_worker_backs_off(media_ms: int) -> None:
    """The first loss costs nothing: the next segment starts at once. Losses in a row wait longer each time, because something in
    the stream may end the workers. A run of some length is a first loss again."""
    value, pauses = _fresh(state="Recording"), []

    def lose(media_ms: int) -> None:
        nonlocal value
        leased = dataclasses.replace(value, job=model.Job(kind="capture", state="leased"))
        outcome = internal_events.WorkerLost(owner="T/al/1", epoch=value.epoch, node="n1", media_ms=media_ms)
        got = recording.decide(leased, "worker-lost", _facts(outcome))
        pauses.append(sum(e.at_ms - NOW_MS for e in got.effects if isinstance(e, effects.Arm) and e.kind == "retry"))
        value = got.recording

    for _ in range(6):
        lose(media_ms)
    assert pauses == [0, 2_000, 4_000, 8_000, 10_000, 10_000]
    lose(60_000)
    lose(media_ms)
    assert pauses[6:] == [0, 2_000]
    assert value.media_ms == 7 * media_ms + 60_000


def test_after_user_left_nothing_is_pulled_until_linger_ends() -> None:
    """From user-left on, exits and lost workers start no capture; user-publishing pulls immediately, the end of LINGER one last
    time."""
    leased = _fresh(state="Recording", present=True, job=model.Job(kind="capture", state="leased"))
    left = recording.decide(leased, "user-left", _facts()).recording
    for event, facts in (("capture-exit", _exit("eof", 9)), ("worker-lost", _lost(9))):
        ended = recording.decide(left, event, facts).recording
        assert ended.capture == "none"
        assert recording.decide(ended, "retry-due", _facts()).ignored
        assert recording.decide(ended, "user-publishing", _facts()).recording.capture == "queued"
        last = recording.decide(ended, "linger-over", _facts()).recording
        assert last.capture == "queued"
        over = recording.decide(last, "capture-exit", _exit("refused", epoch=last.epoch))
        assert over.moves == (("Recording", "Transcoding"),)


def test_a_second_user_left_during_the_last_pull_begins_linger_anew() -> None:
    """A speaker whose media arrives in the last pull and who leaves again is not pulled until the new LINGER is over."""
    value = _fresh(state="Recording", present=False, last_pull=True, job=model.Job(kind="capture", state="leased"))
    left = recording.decide(value, "user-left", _facts()).recording
    for media_ms in (0, 4_000):
        ended = recording.decide(left, "capture-exit", _exit("eof", media_ms))
        assert ended.recording.state == "Recording"
        assert ended.recording.capture == "none"


def test_waiting_for_a_node_is_no_try_in_vain() -> None:
    """A transcode whose segments are on an absent node checks repeatedly, and its retries stay unspent."""
    value = _fresh(state="Transcoding", failures=1, job=model.Job(kind="transcode", state="leased"))
    for _ in range(20):
        away = _exit("node-away", epoch=value.epoch, job="transcode")
        waiting = recording.decide(value, "transcode-exit", away).recording
        assert (waiting.state, waiting.failures) == ("Transcoding", 1)
        value = recording.decide(waiting, "retry-due", _facts()).recording
