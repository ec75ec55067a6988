"""Coverage: the published time that a file lacks, told as gaps, `Missing`, `Partial` and the cause."""

from __future__ import annotations

import itertools
import random

import pytest

from events import codec
from machine import coverage, model, published, results, segments

BEGAN_MS = 1_790_000_000_000
CALLED = published.UNKNOWN.switched_on(BEGAN_MS, BEGAN_MS - 60_000)


def _recording(told: published.Published, *live: tuple[float, float], **more: object) -> model.Recording:
    """A recording that was published as told, with media at these times (s)."""
    spans = tuple((BEGAN_MS + round(a * 1000), BEGAN_MS + round(b * 1000)) for a, b in live)
    positions = [sum(b - a for a, b in spans[: index + 1]) for index in range(len(spans))]
    gaps = tuple((at, b[0] - a[1]) for at, a, b in zip(positions, spans, spans[1:], strict=False))
    output = model.Output(duration_ms=positions[-1] if positions else 0, size_bytes=1, live=spans, gaps=gaps, **more)  # type: ignore[arg-type]
    return model.Recording(task_id="T" * 26, speaker="al", n=1, published=told, output=output, url="https://x/y", code="Success")


@pytest.mark.parametrize(
    ("live", "seconds", "gaps", "missing_s", "partial"),
    [
        ([(0, 93)], 93, [], 0, False),
        ([(0.4, 92.7)], 93, [], 0, False),
        ([(0, 13)], 93, [(13_000, 80_000)], 80, True),
        ([(37, 93)], 93, [(0, 37_000)], 37, True),
        ([(1.5, 93)], 93, [(0, 1_500)], 1.5, False),
        ([(0, 40), (41.2, 60), (61.2, 93)], 93, [(40_000, 1_200), (58_800, 1_200)], 2.4, True),
        ([(0, 400), (407, 600)], 600, [(400_000, 7_000)], 7, False),
        ([(2, 50), (55, 90)], 100, [(0, 2_000), (48_000, 5_000), (83_000, 10_000)], 17, True),
    ],
)
def test_what_is_missing_is_told(
    live: list[tuple[float, float]], seconds: int, gaps: list[tuple[int, int]], missing_s: float, partial: bool
) -> None:
    """At the beginning, inside and at the end; more than 2 s and 2 % of the published time is `Partial`."""
    found = coverage.of(_recording(CALLED.left(BEGAN_MS + seconds * 1000), *live))
    assert (list(found.gaps), found.missing_ms / 1000, found.partial) == (gaps, missing_s, partial)


def test_an_absence_is_a_gap_and_nothing_is_missing() -> None:
    """Between a leaving and a return, or with all tracks off, the speaker published nothing."""
    told = CALLED.left(BEGAN_MS + 30_000).switched_on(BEGAN_MS + 50_000, BEGAN_MS).switched_off(BEGAN_MS + 70_000)
    told = told.switched_on(BEGAN_MS + 80_000, BEGAN_MS).stopped(BEGAN_MS + 100_000)
    found = coverage.of(_recording(told, (0, 30), (50, 70), (80, 100)))
    assert (found.gaps, found.missing_ms, found.partial, found.cause) == (((30_000, 20_000), (50_000, 10_000)), 0, False, "")


def test_the_time_before_the_session_is_nobody_s() -> None:
    """A speaker who published before the start is missed from the start on, and PublishedTime tells the callback's time."""
    told = published.UNKNOWN.switched_on(BEGAN_MS - 600_000, BEGAN_MS).stopped(BEGAN_MS + 60_000)
    value = _recording(told, (3, 60))
    assert coverage.of(value).gaps == ((0, 3_000),)
    assert results.file_entry(value)["PublishedTime"] == codec.iso(BEGAN_MS - 600_000)


@pytest.mark.parametrize(
    ("entered_s", "live", "missing_s", "partial"),
    [
        ([30], [(30.4, 60)], 0, False),  # believed there since an earlier lesson, whose end was never reported
        ([30], [(28.9, 60)], 0, False),  # TRTC's clock is ahead of the recorder's
        ([30], [(37, 60)], 7, True),
        ([40], [(0, 15), (40.2, 60)], 0, False),  # a leaving was never reported
        ([20, 40], [(0, 15), (30, 35), (41, 60)], 11, True),
        ([70], [(0, 15)], 0, False),  # back only after the recording was stopped
        ([10], [(0, 60)], 0, False),  # only the connection was renewed
        ([], [(30, 60)], 30, True),
    ],
)
def test_an_entry_ends_what_was_believed_before(
    entered_s: list[int], live: list[tuple[float, float]], missing_s: float, partial: bool
) -> None:
    """Who enters was away just before: since the last media, nothing that a stale callback told of is missing."""
    told = CALLED
    for second in entered_s:
        told = told.entered(BEGAN_MS + second * 1000).switched_on(BEGAN_MS + second * 1000 + 50, BEGAN_MS)
    found = coverage.of(_recording(told.stopped(BEGAN_MS + 60_000), *live))
    assert (found.missing_ms / 1000, found.partial) == (missing_s, partial)


def test_without_callbacks_the_pulls_tell() -> None:
    """A gap after a fault is missing; after the end of the stream nobody knows."""
    told = published.UNKNOWN
    for (from_s, to_s), by_fault in (((0, 20), True), ((25, 40), False), ((60, 80), False)):
        told = told.pulled(BEGAN_MS + from_s * 1000, BEGAN_MS + to_s * 1000, by_fault=by_fault)
    found = coverage.of(_recording(told.stopped(BEGAN_MS + 90_000), (0, 20), (25, 40), (60, 80)))
    assert (found.missing_ms, found.partial) == (5_000, True)
    assert results.file_entry(_recording(told))["PublishedTime"] == ""


@pytest.mark.parametrize(
    ("reason", "words"),
    [("refused", "refused"), ("no-media", "no media"), ("worker-lost", "worker"), ("disk-full", "disk"), ("newer", "captured")],
)
def test_the_cause_names_time_and_reason(reason: str, words: str) -> None:
    """`Detail` says in one sentence what happened in the longest missing time, and when."""
    pause = segments.Pause(BEGAN_MS + 13_000, BEGAN_MS + 93_000, reason)
    found = coverage.of(_recording(CALLED.left(BEGAN_MS + 93_000), (0, 13), pulls=(pause,)))
    assert words in found.cause
    assert codec.iso(BEGAN_MS + 13_000) in found.cause
    assert codec.iso(BEGAN_MS + 93_000) in found.cause


@pytest.mark.parametrize("seed", range(60))
def test_published_time_is_media_or_told(seed: int) -> None:
    """For any course of callbacks and pulls: published time − media − missing is 0, but for what counts as jitter."""
    chance = random.Random(seed)
    told, at_ms = published.UNKNOWN, BEGAN_MS
    for _ in range(chance.randint(1, 8)):
        at_ms += chance.randint(1, 60_000)
        told = told.switched_on(at_ms, BEGAN_MS + 20_000)
        at_ms += chance.randint(1, 60_000)
        told = chance.choice([told.switched_off, told.left, told.entered, lambda _, told=told: told])(at_ms)
    told = told.stopped(at_ms + 30_000)
    live, moment_s = [], chance.uniform(0, 30)
    for _ in range(chance.randint(1, 10)):
        until_s = moment_s + chance.uniform(0.1, 60)
        live.append((moment_s, until_s))
        moment_s = until_s + chance.choice([0.3, 3, 30]) * chance.random()
    value = _recording(told, *live)
    assert value.output is not None
    found, known = coverage.of(value), told.known(value.output.live)
    media_ms = sum(max(0, min(b, d) - max(a, c)) for a, b in known for c, d in value.output.live)
    rest_ms = published.total_ms(known) - media_ms - found.missing_ms
    assert 0 <= rest_ms <= 500 * (len(known) + len(live))
    assert coverage.of(value) == found


@pytest.mark.parametrize("seed", range(20))
def test_spans_survive_their_column(seed: int) -> None:
    """Also of a speaker who switches a track on and off for hours, in a bounded number of spans."""
    chance, told = random.Random(seed), published.UNKNOWN
    for step in range(chance.choice([3, 1_500])):
        told = told.switched_on(BEGAN_MS + step * 2_000, BEGAN_MS)
        told = told.entered(BEGAN_MS + step * 2_000 + 500).switched_off(BEGAN_MS + step * 2_000 + 1_000)
    assert 0 < len(told.spans) <= published.MOST_SPANS
    assert 0 < len(told.entries_ms) <= published.MOST_SPANS
    assert published.Published.from_json(told.to_json()) == told


def test_callbacks_in_another_order_tell_the_same() -> None:
    """Off and on, or leaving and coming back, with the later one first; a second track's callback before the first one's."""
    at = [BEGAN_MS + second * 1000 for second in range(10)]
    ordered = published.UNKNOWN.switched_on(at[1], at[0]).switched_off(at[3]).switched_on(at[5], at[0])
    other = published.UNKNOWN.switched_on(at[1], at[0]).switched_on(at[5], at[0]).absent(at[3], at[5])
    assert other.spans == ordered.spans == ((at[1], at[3]), (at[5], 0))
    assert published.UNKNOWN.switched_on(at[4], at[0]).switched_on(at[2], at[0]).spans == ((at[2], 0),)


def test_a_callback_from_before_the_session_erases_no_published_time() -> None:
    """A late report of leaving, older than the session: the speaker, who came back before the start, still publishes."""
    told = published.UNKNOWN.switched_on(BEGAN_MS - 1_000, BEGAN_MS).absent(BEGAN_MS - 2_000, BEGAN_MS - 1_000)
    assert told.stopped(BEGAN_MS + 60_000).known() == [(BEGAN_MS, BEGAN_MS + 60_000)]


def test_too_many_pauses_lose_the_shortest() -> None:
    """A speaker who pauses more often than is kept: the long pauses stay pauses."""
    told, at_ms = published.UNKNOWN, BEGAN_MS
    for step in range(2 * published.MOST_SPANS):
        told = told.switched_on(at_ms, BEGAN_MS).switched_off(at_ms + 1_000)
        at_ms += 1_000 + (40_000 if step % 3 == 0 else 10)
    pauses = [later[0] - earlier[1] for earlier, later in itertools.pairwise(told.spans)]
    assert pauses.count(40_000) == len([step for step in range(2 * published.MOST_SPANS - 1) if step % 3 == 0])


def test_pulls_without_media_are_one_pause() -> None:
    """Refusals in a row are one pause, before the first media and after the last; a fault between two pieces of media is another.
    Of many, the longest ones are kept."""
    made = [
        _segment(1, 0, None, "refused"),
        _segment(2, 5, None, "refused"),
        _segment(3, 37, 60, "eof"),
        _segment(4, 61, 70, "stalled"),
        _segment(5, 80, None, "refused"),
        _segment(6, 90, None, "refused"),
        _segment(7, 93, None, ""),
    ]
    found = [((p.from_ms - BEGAN_MS) / 1000, (p.to_ms - BEGAN_MS) / 1000, p.reason) for p in segments.pauses(made)]
    assert found == [(0, 37, "refused"), (60, 61, "eof"), (70, 80, "stalled"), (80, 93, "refused")]
    many = [_segment(n, 100 * n, 100 * n + n, "eof") for n in range(1, 2 * segments.MOST_PAUSES)]
    assert [p.from_ms for p in segments.pauses(many)] == [BEGAN_MS + 101_000 * n for n in range(1, segments.MOST_PAUSES + 1)]


def _segment(epoch: int, registered_s: int, last_s: int | None, reason: str) -> segments.Segment:
    """A pull that began at `registered_s` and brought media up to `last_s`."""
    at_ms = BEGAN_MS + registered_s * 1000
    media = {"first_packet_ms": at_ms, "last_packet_ms": BEGAN_MS + last_s * 1000} if last_s is not None else {}
    known = {"first_packet_ms": None, "last_packet_ms": None} | media
    media_ms = 0 if last_s is None else (last_s - registered_s) * 1000
    return segments.Segment(epoch=epoch, node="n", media_ms=media_ms, registered_ms=at_ms, reason=reason, **known)
