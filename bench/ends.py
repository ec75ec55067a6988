"""Recordings that end in the same second: the time from their end to their results, on one node that follows them.

    .venv/bin/python -m bench.ends --recordings 200 --minutes 10
    .venv/bin/python -m bench.ends --recordings 220 --minutes 5 --big 200      # one session with 200 speakers, 20 with one

The node is one of the embedded engine in this process: decisions, worker, followers, uploads. COS is another process.
Captures are stand-ins: all recordings share one stream of 1.5 Mbit/s, which is written once and faster than real time, and each
makes and sends its own file of it. Its last seconds come when the followers and their uploads have nothing left to do, as in
real time. `pss_mib` and `cpu_ms` are the memory of a follower and its ffmpeg, and their CPU per second of media until then. The
last columns are the CPU of one end.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assembly import identity, logs
from assembly import node as nodes
from assembly import work as node_work
from bench import arrivals, finish, lives, noise, processes, source
from config import settings
from events import codec
from machine import capture_progress, due_work
from machine.reasons import Reason
from worker import work_ports

RESULTS = Path(__file__).parent / "results" / "ends.json"
NAMES = ("p50_s", "p99_s", "most_s", "pss_mib", "cpu_ms", "node_ms", "followers_ms", "cos_ms")
_LOOK_S, _IDLE_CPU, _STARTED_S, _CAUGHT_UP_S, _ENDED_S = 6.0, 0.1, 300.0, 3_600.0, 900.0


class Stream:
    """The segment that all recordings share."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.path = folder / "shared.flv"
        self.ends_ms = round(minutes * 60_000)
        self.began_ms = lives.now_ms() - self.ends_ms
        self._written = finish.write(self.path, source.encoded(folder.parent), self.ends_ms, self.began_ms)

    def write(self, until_ms: int) -> None:
        """Write it up to about this time."""
        for at_ms in self._written:
            if at_ms >= until_ms:
                return

    @property
    def progress(self) -> capture_progress.CaptureProgress:
        """What its capture has noted."""
        size_bytes = self.path.stat().st_size
        return capture_progress.CaptureProgress(
            media_ms=self.ends_ms, size_bytes=size_bytes, first_packet_ms=self.began_ms, last_packet_ms=lives.now_ms()
        )


class StandIn:
    """A capture whose segment is a link to the shared one."""

    def __init__(self, stream: Stream, segment: Path, on_media: work_ports.OnMedia) -> None:
        self._stream = stream
        self._segment = segment
        self._on_media = on_media
        self._ended = asyncio.Event()

    @property
    def progress(self) -> capture_progress.CaptureProgress:
        """What it has noted."""
        return self._stream.progress

    async def start(self) -> None:
        """Begin the segment."""
        for name in ("", ".arrivals"):
            os.link(f"{self._stream.path}{name}", f"{self._segment}{name}")
        self._on_media(self.progress)

    def stop(self) -> None:
        """End."""
        self._ended.set()

    kill = stop

    async def wait(self) -> capture_progress.CaptureExit:
        """Wait for the end."""
        await self._ended.wait()
        return capture_progress.CaptureExit(reason=Reason.STOPPED, detail="", progress=self.progress)


def fed_by(stream: Stream, made: list[node_work.NodeWork]) -> type[node_work.NodeWork]:
    """A node's work whose captures are stand-ins; `made` receives it."""

    class FedWork(node_work.NodeWork):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.followers.after_s = 0
            made.append(self)

        def capture(self, job: due_work.Assignment, epoch: int, on_media: work_ports.OnMedia) -> work_ports.Capture:
            super().capture(job, epoch, on_media)
            return StandIn(stream, self._segment_path(job, epoch, make=True), on_media)

    return FedWork


class Room:
    """The node with its sessions, driven by messages."""

    def __init__(self, node: nodes.Node) -> None:
        self._node = node
        self.seen: collections.Counter[str] = collections.Counter()
        self.ended_s: dict[str, float] = {}
        node.bus.listeners.append(self._heard)

    def _heard(self, event: codec.Event) -> None:
        self.seen[event.type] += 1
        if event.type == "recording-done":
            self.ended_s[event.data["Speaker"]] = time.monotonic()

    async def say(self, type_: str, room: int, **data: Any) -> None:
        """Publish an event about a room."""
        event = codec.make(
            type_, id=identity.new_id(), time_ms=lives.now_ms(), data={"SdkAppId": lives.APP, "RoomId": room, **data}
        )
        await self._node.store.outbox.send("event", event)

    async def until(self, done: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait for a condition. Raises TimeoutError that names it."""
        until_s = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > until_s:
                raise TimeoutError(f"{what}: {dict(self.seen)}")
            await asyncio.sleep(0.1)


async def measure(given: argparse.Namespace, folder: Path, port: int) -> list[dict[str, Any]]:
    """One row for the sessions with one speaker, and one for the big session."""
    stream, made = Stream(folder, given.minutes), list[node_work.NodeWork]()
    stream.write(60_000)
    node_work.NodeWork = fed_by(stream, made)  # type: ignore[misc]
    environment = {
        **{"DATA_DIR": f"{folder}/data", "SPOOL_DIR": f"{folder}/spool", "HOME": str(folder), "PATH": os.environ["PATH"]},
        **{"PORT": "0", "FOLLOW": "true", "COS_ENDPOINT": f"http://127.0.0.1:{port}", "MIN_FREE": "1MiB"},
    }
    node = nodes.Node(settings.load(environment), environment)
    await node.start()
    try:
        speakers = [given.big, *[1] * (given.recordings - given.big)] if given.big else [1] * given.recordings
        room = Room(node)
        return await _end_together(room, made[0], stream, speakers)
    finally:
        await node.stop()


async def _end_together(room: Room, work: node_work.NodeWork, stream: Stream, speakers: list[int]) -> list[dict[str, Any]]:
    for number in range(len(speakers)):
        await room.say("start", number + 1, UserId="rec", UserSig="sig", CosConfig=lives.COS, Mode="02")
    await room.until(lambda: room.seen["session-accepted"] == len(speakers), _STARTED_S, "the sessions")
    for number, count in enumerate(speakers):
        for speaker in range(count):
            await room.say("user-publishing", number + 1, UserId=f"{number}-{speaker}", EventMs=lives.now_ms(), Kind="video")
    await room.until(lambda: work.followers.count == sum(speakers), _STARTED_S, "the followers")
    stream.write(stream.ends_ms - finish.LAST_MS)
    pids = work.followers.pids()
    await _caught_up(pids, work)
    running = processes.trees(pids)
    pss_mib = sum(map(processes.pss_mib, running)) / sum(speakers)
    cpu_ms = sum(map(processes.cpu_s, running)) * 1000 / sum(speakers) / (stream.ends_ms / 1000)
    stream.write(stream.ends_ms + 1)
    begun_s, before = time.monotonic(), _used_s(pids)
    for number in range(len(speakers)):
        await room.say("room-destroyed", number + 1, UserId="", EventMs=lives.now_ms())
    await room.until(lambda: len(room.ended_s) == sum(speakers), _ENDED_S, "the ends")
    used_ms = [(now - then) * 1000 / sum(speakers) for now, then in zip(_used_s(pids), before, strict=True)]
    rows = []
    for big in (False, True):
        numbers = {str(number) for number, count in enumerate(speakers) if (count > 1) == big}
        ended = [at_s - begun_s for speaker, at_s in room.ended_s.items() if speaker.partition("-")[0] in numbers]
        if ended:
            figures = (arrivals.percentile(ended, 50), arrivals.percentile(ended, 99), max(ended), pss_mib, cpu_ms, *used_ms)
            row = {
                "recordings": len(ended),
                "minutes": stream.ends_ms / 60_000,
                "of": "one session" if big else "sessions of one",
            }
            rows.append(row | {name: round(value, 2) for name, value in zip(NAMES, figures, strict=True)})
    return rows


def _used_s(pids: list[int]) -> tuple[float, float, float]:
    """The CPU of the node, of its followers with their ffmpegs, and of COS."""
    node, followers = processes.cpu_s(os.getpid()), sum(map(processes.tree_cpu_s, pids))
    return node, followers, processes.tree_cpu_s(os.getpid()) - node - followers


async def _caught_up(pids: list[int], work: node_work.NodeWork) -> None:
    """Wait until the followers work no more, and their uploads send nothing."""
    until_s, before = time.monotonic() + _CAUGHT_UP_S, (0.0, -1)
    while time.monotonic() < until_s:
        await asyncio.sleep(_LOOK_S)
        now = sum(processes.cpu_s(pid) for pid in pids), work.live_uploads.sent_parts()
        if now[0] - before[0] < _IDLE_CPU * _LOOK_S and now[1] == before[1]:
            return
        before = now


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recordings", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--big", type=int, default=0, help="how many of them are in one session; each other one has its own")
    parser.add_argument("--mb-per-s", type=float, default=1_000, help="what COS takes")
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--write", action="store_true", help="write bench/results/ends.json")
    given = parser.parse_args()
    logs.configure(level="error")
    given.folder.mkdir(parents=True, exist_ok=True)
    source.encoded(given.folder)
    quiet = noise.Noise()
    with finish.cos(given.mb_per_s) as port, tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as folder:
        rows = asyncio.run(measure(given, Path(folder), port))
    shown = [
        [f"{row['recordings']} × {row['minutes']:g} min, {row['of']}", *(f"{row[name]:g}" for name in NAMES)] for row in rows
    ]
    print(noise.table(["recordings that end together", *NAMES], shown))
    print(quiet)
    if given.write:
        RESULTS.write_text(json.dumps({"load": str(quiet), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
