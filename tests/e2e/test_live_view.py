"""Live view of a speaker while being recorded, in a browser and over HTTP, from its own spool and, on the
distributed engine, from another node's. What a view shows knows no engine: it is seen on the embedded one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from media import flv
from simulator import barcode, content
from tests import backends, console_browser, service_process, waiting
from tests.e2e import cluster
from tests.e2e.conftest import APP, SECRET_ID, SECRET_KEY, World

BEHIND_S = 5
SPEAKER = "alice/老师"
TOKEN = "a-token-that-is-long-enough"
# The picture that the player shows, as luma, and how far it has played.
SHOWN = """() => {
  const player = document.querySelector("#player video");
  if (!player || !player.videoWidth) return null;
  const canvas = Object.assign(document.createElement("canvas"), {width: player.videoWidth, height: player.videoHeight});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.drawImage(player, 0, 0);
  const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  let luma = "";
  for (let i = 0; i < data.length; i += 4) luma += String.fromCharCode(0.3 * data[i] + 0.59 * data[i + 1] + 0.11 * data[i + 2]);
  return {luma: btoa(luma), width: canvas.width, height: canvas.height, time: player.currentTime, duration: player.duration};
}"""
embedded = pytest.mark.parametrize("engine", [backends.EMBEDDED])


async def recorded(world: World, room: int, **published: bool) -> str:
    """A session whose speaker is being recorded; returns its TaskId."""
    started = await world.service.post("/sessions", world.request(room, Mode="02"))
    await world.simulator.create_room(APP, room).join(SPEAKER, **published)

    async def recording() -> bool:
        return await world.service.states(started["TaskId"]) == ["Recording"]

    await waiting.until(recording, 20, "the speaker to be recorded", every_s=0.2)
    return str(started["TaskId"])


def views_of(service: service_process.ServiceProcess) -> list[int]:
    """The process ids of the live views' ffmpegs that a service started."""
    found = []
    for child in service_process.children(service.pid):
        with contextlib.suppress(OSError):
            if b"frag_duration" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def segment_in(spool: Path) -> Path:
    """The only segment."""
    (segment,) = spool.rglob("*.flv")
    return segment


def niceness(process: int) -> int:
    """How far a process stands back."""
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[16])


async def newest_frame(world: World, spool: Path) -> int:
    """The number of the newest frame on disk."""
    reader = flv.TagReader(segment_in(spool))
    try:
        tags: list[flv.Tag] = []
        while found := reader.read(growing=True):
            tags += [tag for tag in found if tag.kind == flv.VIDEO and tag.is_media]
    finally:
        reader.close()
    room = world.simulator.create_room(APP, 4001)
    picture = await room.house.content.picture(content.SIZES[0], room.speakers[SPEAKER].number)
    return picture.frames.index(tags[-1].payload)


@embedded
async def test_a_speaker_is_seen_live_and_the_file_afterwards(world: World) -> None:
    """The page plays the speaker while the segment grows: the picture moves on and is at most 5 s older than the newest one on
    disk. When the recording has ended, the page says so and no ffmpeg is left; then it plays the finished file."""
    service = await world.serve(TENCENTCLOUD_SECRET_ID=SECRET_ID, TENCENTCLOUD_SECRET_KEY=SECRET_KEY)
    task_id = await recorded(world, 4001)
    async with console_browser.visiting(service.url, path=f"/console/sessions/{task_id}") as visitor:
        await visitor.page.click("a[data-watch]")

        async def shown() -> dict[str, Any] | None:
            found = await visitor.page.evaluate(SHOWN)
            return found if found and found["time"] > 0.3 else None

        first = await waiting.until(shown, 40, "the player to play", every_s=0.3)

        async def near() -> bool:
            found = await shown()
            if found is None or found["time"] <= first["time"] + 1:
                return False
            read = barcode.read(base64.b64decode(found["luma"]), found["width"], found["height"])
            newest = await newest_frame(world, service.folder / "spool")
            return read is not None and (newest - read.frame) % content.LOOP_FRAMES <= BEHIND_S * content.FRAMES_PER_SECOND

        await waiting.until(near, 40, "the picture to move on, near the newest one", every_s=0.3)
        assert len(views_of(service)) == 1
        await world.simulator.create_room(APP, 4001).dismiss()
        await service.finished(task_id)
        visitor.expected += ["409", "503"]
        await visitor.until(".player-says", "ended")
        await waiting.until(lambda: views_of(service) == [], 20, "the ffmpeg of the view to end")
        await visitor.open(f"/console/sessions/{task_id}")
        visitor.asked.clear()
        await visitor.page.click("a[data-play]")
        finished = await waiting.until(shown_file(visitor), 40, "the finished file to play", every_s=0.3)
        (file,) = (await service.session(task_id))["Results"][-1]["Files"]
        assert finished["duration"] == pytest.approx(file["Duration"], abs=0.5)
        bucket = urllib.parse.urlsplit(world.simulator.url).netloc
        assert {urllib.parse.urlsplit(address).netloc for address in visitor.strangers} == {bucket}
        visitor.asked.clear()


def shown_file(visitor: console_browser.Visitor) -> Any:
    """What the player shows of a file of another origin, whose pixels no script may read."""

    async def look() -> Any:
        played = "(player => player && player.currentTime > 0.3 ? {duration: player.duration} : null)"
        return await visitor.page.evaluate(f"{played}(document.querySelector('#player video'))")

    return look


@asynccontextmanager
async def asking(url: str, task_id: str, token: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a program that asks for the live view."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    query = {"speaker": SPEAKER, "n": "1"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=waiting.limit_s(40))) as http,
        http.get(f"{url}/sessions/{task_id}/live", params=query) as answer,
    ):
        yield answer


async def begin(answer: aiohttp.ClientResponse) -> bytes:
    """The head of the MP4 and its first fragments."""
    data = b""
    while data.count(b"moof") < 3:
        chunk = await answer.content.readany()
        assert chunk, f"the view ended after {len(data)} bytes"
        data += chunk
    return data


@embedded
async def test_views_are_bounded_and_end_with_their_viewers(world: World) -> None:
    """Above LIVE_VIEWS a view gets 503. When the viewer leaves, its ffmpeg ends and its place is free; when the service is
    killed, the ffmpeg dies with it. A speaker without a camera has sound alone."""
    service = await world.serve(LIVE_VIEWS="1")
    task_id = await recorded(world, 4002, video=False)
    async with asking(service.url, task_id) as answer:
        assert (answer.status, answer.content_type) == (200, "audio/mp4")
        head = await begin(answer)
        assert (b"soun" in head, b"vide" in head) == (True, False)
        async with asking(service.url, task_id) as another:
            assert (another.status, (await another.json())["Code"]) == (503, "ServiceUnavailable")
        assert len(views_of(service)) == 1
    await waiting.until(lambda: views_of(service) == [], 20, "the ffmpeg of the viewer to end")

    async def killed() -> bool:
        async with asking(service.url, task_id) as answer:
            if answer.status == 503:
                return False
            await begin(answer)
            (view,) = views_of(service)
            assert niceness(view) == 19
            await service.kill()
            await waiting.until(lambda: not Path(f"/proc/{view}").exists(), 20, "the ffmpeg to die with the service")
        return True

    await waiting.until(killed, 20, "the place of the viewer to be free", every_s=0.2)


@pytest.mark.parametrize("engine", [backends.DISTRIBUTED])
async def test_a_segment_of_another_node_is_seen(world: World) -> None:
    """The node with the role api has no segment: it reads the worker's as it grows, and its ffmpeg runs here."""
    nodes = cluster.Cluster(world, shared=False)
    try:
        await nodes.start(api="api,machine", worker="worker")
        task_id = await recorded(world, 4003)

        async def seen() -> bool:
            async with asking(world.service.url, task_id) as answer:
                if answer.status == 503:
                    return False  # a node tells its address with its second heartbeat
                head = await begin(answer)
                assert (b"soun" in head, b"vide" in head) == (True, True)
                assert (len(views_of(nodes.nodes["api"])), views_of(nodes.nodes["worker"])) == (1, [])
                await world.simulator.create_room(APP, 4003).dismiss()
                while await answer.content.readany():
                    pass
            return True

        await waiting.until(seen, 20, "the segment of the other node", every_s=0.5)
        async with asking(world.service.url, task_id) as answer:
            assert answer.status in (409, 503)
    finally:
        await asyncio.shield(nodes.stop())
