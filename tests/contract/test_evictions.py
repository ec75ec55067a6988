"""Mutual eviction of pulls in one session: the store's count, and the point from which a recording reports it, on each engine."""

from __future__ import annotations

import pytest

from machine import internal_events, job_key, model, recording, states
from store import store as stores
from tests import engines, examples, transactions

TASK, OTHER = examples.TASK, examples.OTHER
ALICE, BOB = job_key.RecordingKey(TASK, "alice", 1), job_key.RecordingKey(TASK, "bob", 1)


@pytest.fixture
async def store(store: stores.Store) -> stores.Store:
    """A store with two speakers in one session, and one of them in another, too."""
    await examples.opened(store, *(examples.recording(speaker=name) for name in ("alice", "bob")))
    request = examples.request(user_id="another")
    await examples.opened(store, examples.recording(OTHER, "bob"), of=examples.session(OTHER, request=request))
    return store


async def pulled(
    store: stores.Store,
    clock: engines.Clock,
    owner: job_key.RecordingKey,
    epoch: int,
    *,
    lasts_ms: int | None,
    reason: str = "eof",
) -> None:
    """A run that begins now; `lasts_ms` None: it continues."""
    await store.segments.register(owner, epoch, "n")
    if lasts_ms is not None:
        async with transactions.opened(store) as tx:
            last_ms = clock() + lasts_ms
            tx.close_segment(owner, epoch, {"media_ms": lasts_ms, "last_packet_ms": last_ms, "reason": reason})


async def evictions(store: stores.Store, owner: job_key.RecordingKey) -> int:
    """How many runs of this recording ended with the stream just as another pull began."""
    ended = [s for s in await store.segments.of_recording(owner) if s.reason == "eof"]
    async with transactions.opened(store) as tx:
        return sum([await tx.read("evicted", owner, s.last_packet_ms) for s in ended])


async def test_pulls_that_take_turns_are_counted(store: stores.Store, clock: engines.Clock) -> None:
    """Each run that ended while another speaker's pull connected and stayed counts once, for the speaker who lost it."""
    for epoch in (1, 2, 3):
        await pulled(store, clock, ALICE, epoch, lasts_ms=1_500)
        clock.advance(1_200)
        await pulled(store, clock, BOB, epoch, lasts_ms=1_500)
        clock.advance(1_200)
    assert await evictions(store, ALICE) == 3
    assert await evictions(store, BOB) == 2
    await pulled(store, clock, ALICE, 4, lasts_ms=None)
    assert await evictions(store, BOB) == 3


@pytest.mark.parametrize("reason", ["stopped", "stalled", "new-track"])
async def test_other_ends_are_no_evictions(store: stores.Store, clock: engines.Clock, reason: str) -> None:
    """A run that the recorder ended, or that fell silent, was not evicted, whatever other pull began."""
    await pulled(store, clock, ALICE, 1, lasts_ms=1_500, reason=reason)
    clock.advance(1_200)
    await pulled(store, clock, BOB, 1, lasts_ms=None)
    assert await evictions(store, ALICE) == 0


async def test_a_server_that_ends_everything_evicts_nobody(store: stores.Store, clock: engines.Clock) -> None:
    """Two pulls that end at the same moment have another cause; so has one that ends long after the other's beginning."""
    await pulled(store, clock, ALICE, 1, lasts_ms=9_000)
    clock.advance(8_000)
    await pulled(store, clock, BOB, 1, lasts_ms=1_000)
    assert await evictions(store, ALICE) == 0
    clock.advance(2_000)
    await pulled(store, clock, ALICE, 2, lasts_ms=5_000)
    await pulled(store, clock, BOB, 2, lasts_ms=None)
    assert await evictions(store, ALICE) == 0


async def test_another_session_evicts_nobody(store: stores.Store, clock: engines.Clock) -> None:
    """Pulls of another session belong to another user."""
    await pulled(store, clock, ALICE, 1, lasts_ms=1_000)
    await pulled(store, clock, job_key.RecordingKey(OTHER, "bob", 1), 1, lasts_ms=None)
    assert await evictions(store, ALICE) == 0


def decided(
    state: str, kind: str, event: str, evictions: int, outcome: internal_events.RecordingOutcome, detail: str = ""
) -> model.Recording:
    """The recording after an outcome of epoch 4."""
    job = model.Job(kind=kind, state=states.LEASED)
    value = model.Recording(task_id=TASK, speaker="alice", n=1, state=state, epoch=4, job=job, detail=detail, evicted=evictions)
    facts = recording.RecordingFacts(now_ms=1, outcome=outcome)
    return recording.decide(value, event, facts).recording


def test_chance_is_not_named() -> None:
    """Two evictions may be chance; from the third on Detail names mutual eviction, until the file is Done."""
    ended = internal_events.FfmpegExit(epoch=4, job=states.CAPTURE, reason="eof", detail="The stream ended.", media_ms=900)
    assert decided(states.RECORDING, states.CAPTURE, "capture-exit", 2, ended).detail == "The stream ended."
    named = decided(states.RECORDING, states.CAPTURE, "capture-exit", 3, ended)
    assert "PULL_USER=per-speaker" in named.detail
    assert decided(states.RECORDING, states.CAPTURE, "capture-exit", 2, ended, named.detail).detail == named.detail
    stored = internal_events.UploadFinished(epoch=4, size_bytes=9, crc64="1", url="https://x/y")
    done = [
        decided(states.UPLOADING, states.UPLOAD, "upload-finished", n, stored, d)
        for n, d in ((0, "x"), (3, ""), (2, named.detail))
    ]
    assert [(value.state, value.detail) for value in done] == [(states.DONE, d) for d in ("", named.detail, named.detail)]


def test_it_hides_no_other_failure() -> None:
    """A retried transcode reports its own reason, whatever happened to the pulls."""
    failed = internal_events.FfmpegExit(epoch=4, job="transcode", reason="ffmpeg-failed", detail="ffmpeg ended with code 1")
    assert decided(states.TRANSCODING, states.TRANSCODE, "transcode-exit", 5, failed).detail == "ffmpeg ended with code 1"
