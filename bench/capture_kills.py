"""What a kill -9 of a node costs of its live captures, and how soon a speaker's first byte is on disk.

    .venv/bin/python -m bench.capture_kills

Rules: the node is the real service, the simulator plays Tencent. A capture's loss is the time from the last packet in its segment
to the last packet that the simulator had sent when the node was killed. The first byte is timed from the moment at which the
speaker publishes: TRTC's callback, the decision, the pull and the first write come in between. Speakers publish at
random moments, one after the other, and the moment of a kill is random.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from bench import arrivals, noise
from media import flv
from simulator import rooms, server, speakers
from simulator.cos import signature
from tests.e2e.conftest import APP, BUCKET, SECRET_ID, SECRET_KEY, World

WAYS = ("native", "ffmpeg")
RESULTS = Path(__file__).parent / "results" / "capture_kills.json"
NAMES = ("p50", "p90", "p99", "most")
POLL_S = 0.002
APART_S = (0.3, 0.7)
LIVE_S = (1.5, 2.5)
LIMIT_S = 30.0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--speakers", type=int, default=10, help="captures of the node that is killed")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--write", action="store_true", help="write bench/results/capture_kills.json")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    quiet = noise.Noise()
    lost: dict[str, list[float]] = {way: [] for way in given.ways}
    first: dict[str, list[float]] = {way: [] for way in given.ways}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as folder:
        asyncio.run(measure(Path(folder), given.folder.absolute() / "content", given, lost, first))
    kinds = {"lost to a kill": lost, "publish to first byte": first}
    rows = {f"{what}, {way}": figures(values[way]) for what, values in kinds.items() for way in given.ways}
    lines = [[name, *(f"{row[each]:g}" for each in ("count", *NAMES))] for name, row in rows.items()]
    print(noise.table(["ms", "captures", *NAMES], lines))
    print(quiet)
    if given.write:
        RESULTS.write_text(json.dumps({"kills": given.kills, "load": str(quiet), "rows": rows}, indent=1) + "\n", "utf-8")


def figures(values: Sequence[float]) -> dict[str, float]:
    """Count and percentiles of some milliseconds."""
    percentiles = {f"p{each}": arrivals.percentile(values, each) for each in (50, 90, 99)}
    return {"count": len(values), **{name: round(value, 1) for name, value in (percentiles | {"most": max(values)}).items()}}


async def measure(
    folder: Path, content: Path, given: argparse.Namespace, lost: dict[str, list[float]], first: dict[str, list[float]]
) -> None:
    """Kill a node of each kind in turn, and note the figures of its captures."""
    account = signature.Account(secret_id=SECRET_ID, secret_key=SECRET_KEY)
    simulator = server.Simulator(folder=folder / "tencent", content_folder=content, accounts=[account], buckets=[BUCKET])
    await simulator.start()
    try:
        await simulator.content.picture("320x240", 0)
        await simulator.content.sound()
        for number in range(given.kills):
            for way in given.ways:
                place = folder / f"{way}-{number}"
                one = Round(World(place, simulator, "embedded"), simulator.create_room(APP, f"{way} {number}"))
                await one.run(way, given.speakers)
                lost[way] += one.lost_ms
                first[way] += one.first_ms
                shutil.rmtree(place)
    finally:
        await simulator.stop()


class Round:
    """One node that captures one room, until its kill."""

    def __init__(self, world: World, room: rooms.Room) -> None:
        self._world = world
        self._room = room
        self._folder = world.folder / "service" / "spool"
        self.lost_ms: list[float] = []
        self.first_ms: list[float] = []

    async def run(self, way: str, count: int) -> None:
        """Start the node, let the speakers publish, kill the node, and read its segments."""
        service = await self._world.serve(CAPTURE=way)
        try:
            started = await service.post("/sessions", self._world.request(self._room.room, Mode="02"))
            self._folder /= started["TaskId"]
            made = [await self._publish(f"speaker-{number}") for number in range(count)]
            await asyncio.sleep(random.uniform(*LIVE_S))  # noqa: S311 - a moment, no secret
            sent_ms = [speaker.stream.last_ms for speaker in made]
        finally:
            await service.kill()
            assert self._world.backend is not None
            await self._world.backend.remove(service.log)
        for speaker, last_ms in zip(made, sent_ms, strict=True):
            self.lost_ms.append(max(0, last_ms - _last_ms(self._segments(speaker.user_id))))
        await self._room.dismiss()

    async def _publish(self, user_id: str) -> speakers.Speaker:
        await asyncio.sleep(random.uniform(*APART_S))  # noqa: S311 - a moment, no secret
        speaker = await self._room.join(user_id, number=0, audio=False, video=False)
        begun_s = time.perf_counter()
        speaker.publish(audio=True, video=True)
        while not any(path.stat().st_size for path in self._segments(user_id)):
            if time.perf_counter() > begun_s + LIMIT_S:
                raise RuntimeError(f"waited {LIMIT_S:g} s for the first byte of {user_id}")
            await asyncio.sleep(POLL_S)
        self.first_ms.append((time.perf_counter() - begun_s) * 1000)
        return speaker

    def _segments(self, user_id: str) -> list[Path]:
        return list((self._folder / f"{user_id}_1").glob("*.flv"))


def _last_ms(segments: Sequence[Path]) -> int:
    """The time of the last packet in the newest segment."""
    reader, last_ms = flv.TagReader(max(segments)), 0
    while tags := reader.read():
        last_ms = max([last_ms, *(tag.timestamp_ms for tag in tags if tag.is_media)])
    reader.close()
    return last_ms


if __name__ == "__main__":
    main()
