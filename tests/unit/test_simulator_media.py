"""The simulator's media without a network: bar code, FLV tags, and the live stream under a clock that the test moves."""

from __future__ import annotations

import array
import io
import itertools
import os
from pathlib import Path

import av
import pytest

from simulator import barcode, content, flv, live
from tests import waiting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("content")


@pytest.fixture
def loops(folder: Path) -> content.Content:
    return content.Content(folder)


async def stream_of(loops: content.Content, *, started_s: float = 0.0) -> live.Stream:
    stream = live.Stream(await loops.sound(), await loops.picture("320x240", 3), started_s=started_s)
    stream.set_audio(True)
    stream.set_video(True)
    return stream


async def collect(viewer: live.Viewer) -> bytes:
    return b"".join([data async for data in viewer.chunks()])


def painted(width: int, height: int, frame: int, speaker: int, size: int) -> bytearray:
    """A luma plane with a bar code drawn from the geometry in barcode.py's docstring, not by its code."""
    luma = bytearray([16]) * (width * height)
    bits = [1, 0] + [int(bit) for bit in f"{frame:010b}{speaker:04b}{size:02b}"]
    bits += [sum(bits[2:]) % 2, 1]
    for row in range(height - height // 15, height):
        for cell, bit in enumerate(bits):
            for x in range(width * cell // 20, width * (cell + 1) // 20):
                luma[row * width + x] = 235 if bit else 16
    return luma


@pytest.mark.parametrize(("width", "height"), [(320, 240), (240, 320), (640, 360)])
def test_bar_code_is_read_at_every_size(width: int, height: int) -> None:
    """Frame, second, speaker and size are decoded as drawn, and a broken bar code gives None."""
    luma = painted(width, height, frame=815, speaker=9, size=2)
    reading = barcode.read(bytes(luma), width, height)
    assert reading == barcode.Reading(frame=815, speaker=9, size=2)
    assert reading.second == 54
    assert barcode.read(bytes(width * height), width, height) is None
    flipped = painted(width, height, frame=815, speaker=9, size=2)
    cell = barcode.cell_box(7, barcode.Box(x=0, y=0, width=width, height=height))
    for row in range(cell.y, cell.y + cell.height):
        for x in range(cell.x, cell.x + cell.width):
            flipped[row * width + x] ^= 0xFF
    assert barcode.read(bytes(flipped), width, height) is None


def test_bar_code_is_read_in_a_padded_picture() -> None:
    """With `area` the bar code of a scaled picture inside a larger one is found."""
    luma, inner = bytearray(400 * 300), painted(320, 240, frame=1, speaker=0, size=0)
    for row in range(240):
        luma[(row + 30) * 400 + 40 : (row + 30) * 400 + 360] = inner[row * 320 : row * 320 + 320]
    area = barcode.Box(x=40, y=30, width=320, height=240)
    assert barcode.read(bytes(luma), 400, 300, area=area) == barcode.Reading(frame=1, speaker=0, size=0)
    assert not barcode.flashes(bytes(luma), 400, 300, area=area)


def test_tags_survive_writing_and_reading() -> None:
    """A tag's kind, timestamp – beyond 24 bits too – and payload are read as written; a torn last tag is left out."""
    written = [(flv.VIDEO, 0, b"a"), (flv.AUDIO, 2**24 + 5, b"b" * 70_000), (flv.SCRIPT, 2**32 - 1, b"")]
    data = flv.header(audio=True, video=True) + b"".join(flv.tag(*each) for each in written)
    assert list(flv.tags(data)) == written
    assert list(flv.tags(data[:-5])) == written[:2]
    with pytest.raises(ValueError, match="not an FLV"):
        list(flv.tags(b"RIFF"))


async def test_content_is_made_once(folder: Path, loops: content.Content) -> None:
    """A loop is 64 closed seconds and 8 s of sound, cached in the folder; a damaged file is replaced."""
    picture = await loops.picture("320x240", 3)
    assert len(picture.frames) == 960
    assert all((payload[0] >> 4 == 1) == (n % 15 == 0) for n, payload in enumerate(picture.frames))
    sound = await loops.sound()
    assert len(sound.frames) == 375
    path = folder / "sound-v1.adts"
    path.write_bytes(path.read_bytes()[:1000])
    assert (await content.Content(folder).sound()).frames == sound.frames
    with pytest.raises(ValueError, match="size"):
        await loops.picture("1x1", 0)
    assert not [name for name in os.listdir(folder) if name.endswith(".part")]


async def test_a_failing_encoder_is_named(tmp_path: Path) -> None:
    """An ffmpeg failure raises an error with its output, and leaves no valid file."""
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho no such encoder >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(content.ContentFailed, match="no such encoder"):
        await content.Content(tmp_path / "content", ffmpeg=str(broken)).sound()
    assert not list((tmp_path / "content").iterdir())


async def test_the_loops_have_no_seam(loops: content.Content, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 70 s – the picture's seam and eight of the sound's – flashes and beeps come every second, and silence is silent."""
    monkeypatch.setattr(live, "BUFFER_BYTES", 10_000_000)
    stream = await stream_of(loops, started_s=5.0)
    viewer = live.Viewer("test")
    stream.join(viewer)
    stream.advance(75.0)
    viewer.close(live.ENDED)
    data = await collect(viewer)
    frames: list[int] = []
    flashes: list[float] = []
    with av.open(io.BytesIO(data), format="flv") as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            luma = bytes(plane)
            reading = barcode.read(luma, frame.width, frame.height, stride=plane.line_size)
            assert reading is not None
            frames.append(reading.frame)
            if barcode.flashes(luma, frame.width, frame.height, stride=plane.line_size):
                flashes.append(float(frame.time))
    assert all(late == (soon + 1) % 960 for soon, late in itertools.pairwise(frames))
    assert frames[0] == 5 * 15
    assert [round(at_s) for at_s in flashes[::2]] == list(range(71))
    loud = [at_s for at_s, level in _levels(data) if level > 0.05]
    assert all(at_s % 1 < 0.15 or at_s % 1 > 0.95 for at_s in loud)
    assert {round(at_s) for at_s in loud} == set(range(71))


def _levels(data: bytes) -> list[tuple[float, float]]:
    """(time in s, loudest sample) for every 64 samples."""
    levels = []
    with av.open(io.BytesIO(data), format="flv") as container:
        for frame in container.decode(audio=0):
            samples = array.array("f", bytes(frame.planes[0])[: frame.samples * 4])
            for at in range(0, len(samples), 64):
                levels.append((float(frame.time) + at / frame.sample_rate, max(map(abs, samples[at : at + 64]))))
    return levels


async def test_timestamps_never_go_back(loops: content.Content) -> None:
    """Through mutes, a resize and a stall every viewer's timestamps only grow, and each start has its sequence header."""
    stream = await stream_of(loops)
    viewer = live.Viewer("test")
    stream.join(viewer)
    steps = [
        (0.4, lambda: stream.set_video(False)),
        (1.2, lambda: stream.set_video(True)),
        (2.5, lambda: stream.set_stalled(True)),
        (3.4, lambda: stream.set_stalled(False)),
        (4.5, lambda: stream.set_audio(False)),
        (4.8, lambda: stream.set_audio(True)),
        (6.0, stream.close),
    ]
    for at_s, act in steps:
        stream.advance(at_s)
        act()
    tags = list(flv.tags(await collect(viewer)))
    times = [at_ms for _, at_ms, _ in tags]
    assert times == sorted(times)
    starts = [(kind, at_ms) for kind, at_ms, payload in tags if kind != flv.SCRIPT and payload[1] == 0]
    assert starts == [(9, 0), (8, 0), (9, 2000), (8, 3413), (9, 4000), (8, 4821)]
    for (kind, at_ms, payload), (next_kind, _, following) in itertools.pairwise(tags):
        if kind == flv.VIDEO and payload[1] == 0:
            assert (next_kind, following[0] >> 4, at_ms % 1000) == (flv.VIDEO, flv.KEY_FRAME, 0)


async def test_a_viewer_never_gets_more_than_a_second_of_past(loops: content.Content) -> None:
    """Whoever joins gets sequence headers and at most the latest second, also while a track is muted."""
    stream = await stream_of(loops)
    for at_s in (0.9, 5.7, 9.99):
        stream.advance(at_s)
        viewer = live.Viewer("late")
        stream.join(viewer)
        viewer.close(live.ENDED)
        tags = list(flv.tags(await collect(viewer)))[1:]
        assert [(kind, payload[1]) for kind, _, payload in tags[:1]] == [(flv.VIDEO, 0)] or at_s < 1
        assert min(at_ms for _, at_ms, _ in tags) >= int(at_s) * 1000
    stream.set_video(False)
    stream.advance(11.5)
    viewer = live.Viewer("late")
    stream.join(viewer)
    viewer.close(live.ENDED)
    assert {kind for kind, _, _ in flv.tags(await collect(viewer))} == {flv.SCRIPT, flv.AUDIO}


async def test_a_slow_viewer_is_broken_off() -> None:
    """A viewer that does not read is aborted once the limit waits for it, and accepts nothing more."""
    aborted: list[bool] = []
    viewer = live.Viewer("slow", abort=lambda: aborted.append(True))
    for _ in range(10):
        viewer.offer(b"x" * (live.BUFFER_BYTES // 4))
    assert (viewer.reason, aborted) == (live.SLOW, [True])
    assert await collect(viewer) == b""


async def test_a_viewer_that_left_is_noticed(loops: content.Content) -> None:
    """A closed connection ends its viewer even while nothing is sent."""
    stream = await stream_of(loops)
    stream.set_stalled(True)
    viewer = live.Viewer("gone", is_gone=lambda: True)
    stream.join(viewer)
    stream.advance(1.0)
    assert viewer.reason == live.GONE


async def test_a_dying_ticker_breaks_its_viewers_off(loops: content.Content) -> None:
    """A fault in the ticker ends all streams abruptly, and `stop` raises it."""
    stream = await stream_of(loops)
    viewer = live.Viewer("test")
    stream.join(viewer)
    ticker = live.Live(lambda: float("nan"))
    ticker.add(stream)
    ticker.start()
    await waiting.until(lambda: viewer.closed)
    assert viewer.reason == live.RESET
    ticker.clock = lambda: 1.0
    with pytest.raises(ValueError, match="NaN"):
        await ticker.stop()
    await ticker.stop()
