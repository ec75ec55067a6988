"""The processes of followers: recordings share them, and what happens to one recording touches no other one."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from media import arrival_index, flv, follower_process, followers, following, resource_limits
from tests import flv_source, waiting
from tests.integration import test_following

LASTS_S = 230


@pytest.fixture
async def node() -> AsyncIterator[followers.Followers]:
    """The followers of a node with one CPU."""
    made = followers.Followers(flv_source.FFMPEG, after_s=0)
    yield made
    await made.stop()


def follow(node: followers.Followers, name: str, segment: Path) -> Path:
    """Follow a recording of this segment; returns its unfinished file."""
    part = segment.with_name(f"{name}.mp4.part")
    node.capturing(followers.Followed(recording=name, mode="02", part=part, earlier=list), segment)
    return part


def growing(folder: Path, name: str) -> test_following.Growing:
    """A segment that is long enough to be followed, and whole."""
    made = test_following.Growing(folder / f"{name}.flv", test_following.stream(LASTS_S))
    made.until(LASTS_S * 1_000 + 1_000)
    return made


def _left(folder: Path) -> list[str]:
    """Unfinished files."""
    return [path.name for path in folder.glob("*.part")]


async def test_what_one_recording_ends_with_touches_no_other(tmp_path: Path, node: followers.Followers) -> None:
    """Of four recordings in one process one has a damaged segment, one cannot be read, and one is dropped. The fourth gets its
    file, and nothing of the others is left."""
    good = growing(tmp_path, "good")
    damaged, unreadable = tmp_path / "damaged.flv", tmp_path / "unreadable.flv"
    damaged.write_bytes(flv.header(audio=True, video=True) + b"\xff" * 100 + flv.encode(flv.AUDIO, 0, b"\xaf\x01\x21") * 2)
    unreadable.mkdir()
    for path in (damaged, unreadable):
        arrival_index.path_of(path).write_bytes(arrival_index.header(0) + arrival_index.record(0, flv.AUDIO, 10))
    parts = [follow(node, path.stem, path) for path in (good.path, damaged, unreadable)]
    dropped = follow(node, "dropped", good.path)
    await waiting.until(lambda: node.count == 2, 30, "the end of two followers")
    await waiting.until(lambda: dropped.exists() and parts[0].exists(), 30, "the files of the others")
    await node.drop("dropped")
    assert not dropped.exists()
    (pid,) = node.pids()
    # Where memory runs out, the kernel ends this process before the service.
    score = await asyncio.to_thread(Path(f"/proc/{pid}/oom_score_adj").read_text)
    assert int(score) == follower_process.OOM_SCORE
    finished = await node.finish("good", [good.whole], tmp_path / "good.mp4")
    assert finished is not None
    assert finished.made.duration_ms == pytest.approx(LASTS_S * 1_000, abs=1_000)
    for name in ("damaged", "unreadable", "dropped", "unknown"):
        assert await node.finish(name, [], tmp_path / f"{name}.mp4") is None
    assert node.pids() == [pid]
    assert _left(tmp_path) == []


async def test_who_is_not_followed(tmp_path: Path) -> None:
    """Of two recordings only the first has room in the memory. One whose earlier segments are on another node is not followed,
    one whose earlier segment is here is."""
    segment, earlier = growing(tmp_path, "a"), growing(tmp_path, "b")
    node = followers.Followers(flv_source.FFMPEG, after_s=0, memory_bytes=followers.FOLLOWED_BYTES * 2 - 1)
    try:
        for name, known in (("moved", [segment.path]), ("here", [earlier.path, segment.path])):
            part, listed = tmp_path / f"{name}.mp4.part", functools.partial(list, known)
            node.capturing(followers.Followed(recording=name, mode="02", part=part, earlier=listed, begun=True), segment.path)
        await waiting.until(lambda: node.follows("here"), 30, "the second")
        late = follow(node, "late", segment.path)
        task = node._followers["late"]._task
        assert task is not None
        await asyncio.wait_for(task, waiting.limit_s(30))
        assert [name for name in node.recordings() if node.follows(name)] == ["here"]
        assert not late.exists()
    finally:
        await node.stop()


async def test_a_spool_that_is_nearly_full_is_left_to_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower gives up before captures find no space, and its file is gone."""
    segment, part = growing(tmp_path, "a"), tmp_path / "a.mp4.part"
    begin = follower_process.Begin(number=1, ffmpeg=flv_source.FFMPEG, mode="02", part=part)
    recording = following.Following(flv_source.FFMPEG, "02", part)
    recording.add(segment.path)
    try:
        assert await follower_process._look(recording, begin)
        await waiting.until(part.exists, 30, "the file")
        monkeypatch.setattr(follower_process, "LEAST_FREE_BYTES", 1 << 62)
        with pytest.raises(following.GaveUp, match="nearly full"):
            await follower_process._look(recording, begin)
    finally:
        await recording.stop()
    assert not part.exists()


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    """A limit of control groups of either version counts; none, or an unreadable one, leaves that of the machine."""
    machine = resource_limits.node_memory_bytes(tmp_path)
    assert machine > 1 << 28
    (tmp_path / "memory.max").write_text("max\n")
    assert resource_limits.node_memory_bytes(tmp_path) == machine
    (tmp_path / "memory.max").write_text(f"{1 << 27}\n")
    assert resource_limits.node_memory_bytes(tmp_path) == 1 << 27
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{1 << 26}\n")
    assert resource_limits.node_memory_bytes(tmp_path) == 1 << 26


async def test_a_process_that_dies_costs_its_recordings_their_followers(tmp_path: Path, node: followers.Followers) -> None:
    """No file comes of them, nothing is left of them, and a later recording is followed by a new process."""
    segment = growing(tmp_path, "a")
    parts = [follow(node, name, segment.path) for name in ("a", "b")]
    await waiting.until(lambda: all(part.exists() for part in parts), 30, "the files")
    (pid,) = node.pids()
    os.kill(pid, signal.SIGKILL)
    for name in ("a", "b"):
        assert await node.finish(name, [segment.whole], tmp_path / f"{name}.mp4") is None
    assert _left(tmp_path) == []
    await waiting.until(follow(node, "c", segment.path).exists, 30, "the file of the follower")
    assert node.pids() not in ([], [pid])
    assert await node.finish("c", [segment.whole], tmp_path / "c.mp4") is not None


async def test_a_cancelled_end_leaves_the_answers_of_others(
    tmp_path: Path, node: followers.Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process that did not answer in time is being killed, the job of one recording is cancelled. The other recordings
    still learn that there is no file."""
    segment = growing(tmp_path, "a")
    parts = [follow(node, name, segment.path) for name in ("a", "b")]
    await waiting.until(lambda: all(part.exists() for part in parts), 30, "the files")
    (pid,) = node.pids()
    os.kill(pid, signal.SIGSTOP)
    killed = asyncio.Event()
    with monkeypatch.context() as late:
        late.setattr(followers, "_FINISH_S", -10.0)
        late.setattr(followers._Process, "kill", lambda _: killed.set())
        ending = asyncio.create_task(node.finish("a", [segment.whole], tmp_path / "a.mp4"))
        await asyncio.wait_for(killed.wait(), 30)
        ending.cancel()
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(ending, return_exceptions=True)
    assert await asyncio.wait_for(node.finish("b", [segment.whole], tmp_path / "b.mp4"), 60) is None


async def test_a_rest_that_cannot_begin_removes_no_piece(tmp_path: Path, node: followers.Followers) -> None:
    """The first piece of a bounded recording has the name that the follower of the rest begins with."""
    piece = tmp_path / "00000001.p1.mp4"
    piece.write_bytes(b"media that is nowhere else")
    piece.with_name(f"{piece.name}.json").write_text("{")
    segment = test_following.Growing(tmp_path / "00000001.flv", test_following.stream(10))
    segment.until(5_000)
    with structlog.testing.capture_logs() as logged:
        followed = followers.Followed(recording="a", mode="02", part=piece, earlier=list, bound_bytes=1 << 20)
        node.capturing(followed, segment.path)
        await waiting.until(lambda: any(each["event"] == "follower.gave_up" for each in logged), 30, "the end of the follower")
    assert piece.read_bytes() == b"media that is nowhere else"


async def test_a_recording_whose_folder_is_still_to_come(tmp_path: Path) -> None:
    """A follower that looks before the capture has made the folder looks again later."""
    begin = follower_process.Begin(number=1, ffmpeg=flv_source.FFMPEG, mode="02", part=tmp_path / "later" / "a.mp4.part")
    recording = following.Following(flv_source.FFMPEG, "02", begin.part)
    assert not await follower_process._look(recording, begin)
    await recording.stop()
