"""Followed recordings whose pictures have to be encoded: the follower makes the transcode's file to the byte, or gives up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from media import black, flv, following, growing_output, joiner, survey, transcode_plan
from tests import flv_source
from tests.integration.test_following import Growing, Sent, check_same, followed, parts, soon, stream

SOON = soon


def turned_on(sent: Sent, at_ms: float, off_ms: float = float("inf")) -> Sent:
    """The camera is on between these times only."""
    heads = [(tag, at_ms) for tag, _ in sent if tag.kind == flv.VIDEO and tag.is_sequence_header]
    others = [(tag, at) for tag, at in sent if tag.kind != flv.VIDEO or (tag.is_media and at_ms < at < off_ms)]
    return sorted((*others, *heads), key=lambda each: each[1])


STREAMS: dict[str, Callable[[], list[Sent]]] = {
    "a smaller size": lambda: [stream(12), stream(12, begin_ms=14_000, size="160x120")],
    "a larger size": lambda: [stream(12, size="160x120"), stream(12, begin_ms=14_000)],
    "upright": lambda: [stream(12), stream(12, begin_ms=14_000, size="240x320")],
    "a late camera": lambda: [turned_on(stream(30), 14_901)],
    "a camera that comes just before a frame": lambda: [turned_on(stream(30), 14_985)],
    "a late camera that pauses": lambda: [turned_on(stream(40), 14_901, 22_000)],
    "off when the second segment begins": lambda: [stream(12), turned_on(stream(20, begin_ms=14_000), 24_901)],
    "off, and back with another size": lambda: [
        stream(12), turned_on(stream(20, begin_ms=14_000, size="160x120"), 24_901)
    ],
    "off for good": lambda: [stream(12), [each for each in stream(20, begin_ms=14_000) if each[0].kind == flv.AUDIO]],
}  # fmt: skip


def growing(folder: Path, kind: str) -> list[Growing]:
    """The segments of a recording."""
    return [Growing(folder / f"{number:08d}.flv", sent) for number, sent in enumerate(STREAMS[kind](), 1)]


@pytest.mark.parametrize("kind", STREAMS)
async def test_pictures_that_are_encoded(tmp_path: Path, soon: None, kind: str) -> None:
    """A camera that comes late or goes, and another size: the file begins again with an encoder, once, and is the same."""
    segments = growing(tmp_path, kind)
    made, recording = await followed(segments, "02", tmp_path)
    assert recording.restarts == 1
    await check_same(made, segments, "02", tmp_path)


@pytest.mark.parametrize(("first", "then", "rises"), [(5, 25, True), (15, 24, True), (25, 5, False), (15, 14, False)])
async def test_a_camera_that_changes_its_frame_rate(tmp_path: Path, soon: None, first: int, then: int, rises: bool) -> None:
    """The file begins again for a higher rate, so that it has every picture, and is the same. A lower one changes nothing."""
    sent = [turned_on(stream(20, rate=first), 9_901), stream(20, begin_ms=20_000, rate=then)]
    segments = [Growing(tmp_path / f"{number:08d}.flv", each) for number, each in enumerate(sent, 1)]
    made, recording = await followed(segments, "02", tmp_path)
    assert (recording.restarts > 1) == rises  # once, because the camera comes late
    await check_same(made, segments, "02", tmp_path)


@pytest.mark.parametrize(("rate", "on_ms"), [(15, 9_901), (24, 10_331), (10, 12_077), (30, 7_013)])
async def test_the_first_pictures_of_a_late_camera(tmp_path: Path, soon: None, rate: int, on_ms: int) -> None:
    """Their places depend on the camera's own pictures: on none of the black ones before them, and not on when it came."""
    segments = [
        Growing(tmp_path / "00000001.flv", turned_on(stream(20, rate=rate), on_ms)),
        Growing(tmp_path / "00000002.flv", stream(10, begin_ms=20_000, rate=rate)),
    ]
    made, _ = await followed(segments, "02", tmp_path)
    await check_same(made, segments, "02", tmp_path)


async def test_an_end_begins_no_long_encoding(tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that comes just before the end: the whole file would have to be encoded while others wait."""
    monkeypatch.setattr(following, "_MOST_LEFT_MS", 10_000)
    monkeypatch.setattr(following, "PLACE_EVERY_MS", 8_000)
    segment = Growing(tmp_path / "00000001.flv", turned_on(stream(26), 24_901))
    with pytest.raises(following.GaveUp, match="plan changed at its end"):
        await followed([segment], "02", tmp_path)
    assert parts(tmp_path) == []


async def test_pictures_alone_end_with_their_last_frame(tmp_path: Path, soon: None) -> None:
    """The file lasts for whole frames: the black picture that tells its end is not in it."""
    both = [*flv_source.content(duration_s=12), *flv_source.content("160x120", duration_s=12)]
    begins_ms = [0] * (len(both) // 2) + [12_000] * (len(both) // 2)
    tags = [replace(tag, timestamp_ms=tag.timestamp_ms + begin_ms) for tag, begin_ms in zip(both, begins_ms, strict=True)]
    segments = [Growing(tmp_path / "00000001.flv", [(tag, float(tag.timestamp_ms)) for tag in tags])]
    made, _ = await followed(segments, "01", tmp_path)
    assert made.duration_ms == 24_000
    await check_same(made, segments, "01", tmp_path)


@pytest.mark.parametrize("rate", [5, 15, 24, 30, 60])
def test_no_frame_shows_what_is_behind_the_last_one(rate: int) -> None:
    """Whatever a recording lasts, its frames are before the end, and none is where the picture behind it is."""
    frames_ms = {round(number * 1000 / rate) for number in range(20 * rate)}
    for duration_ms in range(900, 10_000):
        after_ms = black.after_ms(duration_ms, rate)
        assert after_ms not in frames_ms
        assert not frames_ms & set(range(after_ms, duration_ms))


async def test_an_encoder_is_fed_in_turns(tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look ends after FED_S, so that an end is heard meanwhile. The next one goes on where it stopped."""
    monkeypatch.setattr(growing_output, "FED_S", 0.0)
    monkeypatch.setattr(growing_output, "_ENCODED_BYTES", 4_096)
    turns = 0

    async def counted(self: growing_output.GrowingOutput) -> None:
        nonlocal turns
        turns += 1
        await go_on(self)

    go_on = growing_output.GrowingOutput.go_on
    monkeypatch.setattr(growing_output.GrowingOutput, "go_on", counted)
    segments = growing(tmp_path, "a late camera")
    made, _ = await followed(segments, "02", tmp_path)
    assert turns > 10
    await check_same(made, segments, "02", tmp_path)


async def test_without_a_free_encoder_the_transcode_makes_the_file(tmp_path: Path, soon: None) -> None:
    """While others have the encoders a recording is not encoded; its own is free again after its end."""
    encoders = asyncio.Semaphore(1)
    segments = growing(tmp_path, "a late camera")
    async with encoders:
        with pytest.raises(following.GaveUp, match="no encoder is free"):
            await followed(segments, "02", tmp_path, encoders)
    assert parts(tmp_path) == []
    made, _ = await followed(segments, "02", tmp_path, encoders)
    assert not encoders.locked()
    await check_same(made, segments, "02", tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "why"), [("_MOST_LEFT_MS", 1_000, "far behind"), ("_ENCODED_S", 0.0, "takes too long")]
)
async def test_an_end_waits_for_no_slow_encoder(
    tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch, name: str, value: float, why: str
) -> None:
    """An encoder that has minutes left, or takes longer than an end may, costs its own recording its follower only."""
    monkeypatch.setattr(following, name, value)
    with pytest.raises(following.GaveUp, match=why):
        await followed(growing(tmp_path, "a larger size"), "02", tmp_path)
    assert parts(tmp_path) == []


async def test_a_starved_encoder_holds_up_nobody(tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that stands still is given up within a look, so that its process hears the ends of other recordings."""
    monkeypatch.setattr(growing_output, "STARVED_S", 0.2)
    monkeypatch.setattr(growing_output, "_ENCODED_BYTES", 1_024)
    argv = transcode_plan.transcode_args

    def standing_still(*given: Any, **options: Any) -> list[str]:
        made = argv(*given, **options)
        return [sys.executable, "-c", "import signal; signal.pause()"] if "libx264" in made else made

    monkeypatch.setattr(transcode_plan, "transcode_args", standing_still)
    with pytest.raises(following.GaveUp, match="takes too long"):
        await followed(growing(tmp_path, "a larger size"), "02", tmp_path)
    assert parts(tmp_path) == []


async def test_filling_leaves_pictures_their_configuration(tmp_path: Path) -> None:
    """The picture after a camera's absence is of another size than those that fill it: its configuration comes before it."""
    segments = growing(tmp_path, "off, and back with another size")
    for each in segments:
        each.until(each.ends_ms)
    files = [each.whole for each in segments]
    found = survey.survey(files, "02")
    fillings = [*found.fillings(flv.VIDEO)]
    joined = joiner.Joiner(files, found.kinds, fillings=fillings, placed=found.placed, silences=found.silences)
    large, small = (
        {tag.payload for tag, _ in sent if tag.kind == flv.VIDEO} for sent in (stream(12), stream(12, size="160x120"))
    )
    of, in_force = list[bool](), large
    for tag in flv.tags(b"".join(joined.chunks())):
        if tag.kind == flv.VIDEO and tag.is_sequence_header:
            in_force = small if tag.payload in small else large
        elif tag.kind == flv.VIDEO:
            assert tag.payload in in_force, tag.timestamp_ms
            of.append(in_force is small)
    assert of == sorted(of)
    assert any(of)
