"""Recipes of untidy streams through the whole service in real time: start request, pull, transcode, object in the bucket, result.

Rules:
- Each recipe has a room and a speaker of its own in each of its modes; many are live at once. The simulator is TRTC and COS, and
  the service one process on the embedded engine. Recipes for RTMP (`r-…`) come from `rtmpd.py` of their folder.
- A stream that this process may have sent late, because its machine was busy, is recorded again.
- The room ends a moment after the broadcast. What was recorded is kept with its entry in the result and judged afterwards, so
  that decoding delays no stream.
- `bench/recipe_judge.py` has the rules for the file, with the gaps and anchors of the result. In addition the result has the
  duration of the file, it names no more as missing than was published, and Chromium plays the file (`bench/playback.py`).
- *told*: the result names a gap inside the file, a track that cannot be read, or that nothing readable came.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import av

from bench import playback, recipe_judge, recipe_server, recipe_source
from machine import alignment
from media import transcode
from simulator import callbacks, server
from simulator.cos import signature, uploads
from tests import quick_following, service_process, waiting
from tests.e2e import conftest, scenes

_REPORT = "service.json"
_TEMPLATE = (
    "{scheme}://127.0.0.1:{port}/pull/{{room}}"
    "?sdkappid={{sdkappid}}&userid={{userid}}&usersig={{usersig}}&remoteuserid={{speaker}}{{number_room}}"
)
_AFTER_S, _BEGINS_S, _FINISHED_S = 1.2, 30.0, 120.0
_NEAR_S, _EDGES_S = 0.2, 0.5
_LOOK_S, _LATE_S, _MOST_TIMES = 0.02, 0.25, 3
_CANNOT_READ = "cannot read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recipe in one mode; `folder` keeps its finished file and its report."""

    recipe: Any
    mode: str
    folder: Path

    @property
    def speaker(self) -> str:
        """The speaker, and the room."""
        return f"{self.recipe.name}_{self.mode}"


async def record(runs: Sequence[Run], out: Path, *, at_once: int, follow: bool) -> None:
    """Record them all, and print which events the service logged as errors."""
    for scheme in ("http", "rtmp"):
        if chosen := [run for run in runs if run.recipe.name.startswith("r-") == (scheme == "rtmp")]:
            await _record(chosen, scheme, out / f"world.{scheme}", at_once=at_once, follow=follow)


async def _record(runs: Sequence[Run], scheme: str, folder: Path, *, at_once: int, follow: bool) -> None:
    casts = {run.speaker: await asyncio.to_thread(run.recipe.make) for run in runs}
    streams = recipe_server.Server(casts) if scheme == "http" else importlib.import_module("rtmpd").RtmpServer(casts)
    await streams.start()
    turn, lateness = asyncio.Semaphore(at_once), _Lateness()
    watching = asyncio.create_task(lateness.watch())
    async with _world(folder, _TEMPLATE.format(scheme=scheme, port=streams.port), follow=follow) as world:

        async def one(run: Run) -> dict[str, Any]:
            async with turn:
                for _ in range(_MOST_TIMES):
                    begun_s = time.monotonic()
                    report = await _room(world, run, casts[run.speaker])
                    if not lateness.since(begun_s):
                        break
                    casts[run.speaker] = await asyncio.to_thread(run.recipe.make)
                return report

        reports = await asyncio.gather(*map(one, runs))
    watching.cancel()
    streams.server.close()
    log = [json.loads(line) for line in world.service.log.read_text("utf-8", "replace").splitlines() if line.startswith("{")]
    why = {line["recording"].split("/")[0]: line["why"] for line in log if line["event"] == "follower.gave_up"}
    for run, report in zip(runs, reports, strict=True):
        kept = report | {"GaveUp": why.get(report["TaskId"], "")}
        (run.folder / _REPORT).write_text(json.dumps(kept, indent=1, ensure_ascii=False), "utf-8")
    errors = Counter(line["event"] for line in log if line["level"] == "error")
    print(f"over {scheme}: sent {lateness.most_s:.2f} s late at most; logged as errors: {dict(errors) or 'nothing'}")


class _Lateness:
    """When the event loop of the servers was late, and by how much at most."""

    def __init__(self) -> None:
        self.most_s = 0.0
        self._late_s: list[float] = []

    async def watch(self) -> None:
        """Look until it is cancelled."""
        while True:
            due_s = time.monotonic() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            late_s = time.monotonic() - due_s
            self.most_s = max(self.most_s, late_s)
            if late_s > _LATE_S:
                self._late_s.append(due_s)

    def since(self, time_s: float) -> bool:
        """Whether it was late after this time (monotonic)."""
        return bool(self._late_s) and self._late_s[-1] > time_s


@contextlib.asynccontextmanager
async def _world(folder: Path, template: str, *, follow: bool) -> AsyncIterator[conftest.World]:
    empty(folder)
    account = signature.Account(secret_id=conftest.SECRET_ID, secret_key=conftest.SECRET_KEY)
    simulator = server.Simulator(folder=folder / "tencent", accounts=[account], buckets=[conftest.BUCKET], announce_pulls=True)
    world = conftest.World(folder, simulator, "embedded")
    if follow:
        service_process.ServiceProcess.program = quick_following.PROGRAM
        uploads.MIN_PART_BYTES = quick_following.PART_BYTES
    await simulator.start()
    try:
        await world.serve(PULL_ADDRESS=template, FOLLOW=str(follow), LINGER="6s", IDLE_TIMEOUT="60s")
        try:
            yield world
        finally:
            await world.service.stop()
    finally:
        await simulator.stop()


async def _room(world: conftest.World, run: Run, cast: Any) -> dict[str, Any]:
    """Record one room; returns the report. A session that does not finish in time is reported as an error."""
    scene = scenes.Scene(world, run.speaker)
    report: dict[str, Any] = {"TaskId": (await scene.start(run.mode))["TaskId"]}
    for event in {"00": [callbacks.AUDIO_ON], "01": [callbacks.VIDEO_ON]}.get(run.mode, [callbacks.AUDIO_ON, callbacks.VIDEO_ON]):
        scene.room.announce(event, run.speaker)
    try:
        await waiting.until(lambda: cast.began, _BEGINS_S, "the first pull")
        await asyncio.sleep(cast.began + cast.length() / 1000 + _AFTER_S - time.time())
        scene.room.announce(callbacks.DISMISSED)
        await world.service.finished(scene.task_id, _FINISHED_S)
        result = await scene.result("RoomDestroyed")
    except AssertionError as error:
        return report | {"Error": str(error)}
    (entry,) = result["Files"]
    report |= {"Entry": entry, "Began": cast.began, "Pulls": list(cast.pulls)}
    if entry["RecordFile"]:
        stored = world.object_path(entry["RecordFile"])
        report["File"] = f"finished{stored.suffix}"
        shutil.copyfile(stored, run.folder / report["File"])
    return report


def empty(folder: Path) -> None:
    """Make a folder, or remove everything in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Judge:
    """Judges what `record` has kept."""

    def __init__(self, played: dict[Path, list[str]]) -> None:
        self._played = played

    @staticmethod
    async def of(runs: Sequence[Run], out: Path) -> Judge:
        """A judge, after Chromium has played all files of these runs."""
        files = [run.folder / name for run in runs if (name := _report(run.folder).get("File"))]
        return Judge(await playback.faults(out, files))

    async def __call__(self, recipe: Any, mode: str, folder: Path) -> tuple[str, str, str]:
        """OK, told or FAIL; why; and what became of the follower."""
        report = _report(folder)
        said = f"gave up: {report['GaveUp']}" if report["GaveUp"] else "followed"
        if "Error" in report:
            return "FAIL", report["Error"], said
        entry = report["Entry"]
        broadcast = await asyncio.to_thread(recipe.make)
        tags = recipe_source.sent(broadcast, [pull * 1000 for pull in report["Pulls"]])
        if entry["Status"] != 1:
            word, why = recipe_judge.nothing(tags, mode)
            told = entry["Detail"] and (word == "told" or _CANNOT_READ in entry["Detail"])
            return "told" if told else "FAIL", entry["Detail"] or why, "–"
        path = folder / report["File"]
        found = [*_entry_faults(entry, path), *self._played[path]]
        made = _output(entry, path)
        found += await asyncio.to_thread(recipe_judge.faults, made, mode, recipe, tags, round(report["Began"] * 1000))
        if found:
            return "FAIL", "; ".join(found), said
        return *recipe_judge.word(made), said


def _report(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / _REPORT).read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def _entry_faults(entry: dict[str, Any], path: Path) -> list[str]:
    """What is wrong with the result's words about a file."""
    with av.open(str(path)) as container:
        duration_s = (container.duration or 0) / 1_000_000
    found = []
    if abs(entry["Duration"] - duration_s) > _NEAR_S:
        found.append(f"the result says {entry['Duration']} s of {duration_s:.2f} s")
    published_s = _unix_s(entry["LeftTime"]) - _unix_s(entry["PublishedTime"])
    known_s = entry["Duration"] + sum(gap["Duration"] for gap in entry["Gaps"])
    if known_s > published_s + _EDGES_S:
        found.append(f"file and gaps are {known_s:.2f} s of {published_s:.2f} s")
    return found


def _output(entry: dict[str, Any], path: Path) -> transcode.TranscodeOutput:
    """The result's entry as the judge knows it. Gaps at the edges are times before the first packet and after the last."""
    gaps = [transcode.Gap(at_s=gap["At"], duration_s=gap["Duration"]) for gap in scenes.gaps(entry)]
    points = [(round(each["At"] * 1000), round(_unix_s(each["Time"]) * 1000)) for each in entry["Anchors"]]
    named = re.search(rf"{_CANNOT_READ}: (.*?)\.( |$)", entry["Detail"])
    return transcode.TranscodeOutput(
        path=path,
        duration_ms=round(entry["Duration"] * 1000),
        size_bytes=entry["Size"],
        crc64=entry["Crc64"],
        gaps=tuple(gaps),
        anchors=alignment.Anchors(tuple(points)),
        error_ms=entry["ErrorMs"],
        live=(),
        unreadable=tuple(named[1].split(", ")) if named else (),
        lost_ms=0,
        lost_segments=0,
        start_ms=None,
        end_ms=None,
    )


def _unix_s(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
