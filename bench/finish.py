"""From the end of a room to its object in COS: files written and sent while the recording runs, next to those made afterwards.

    make bench-finish

Rule: both ways take turns with the same stream and the same COS, which takes 50 MB/s. The time begins with the last byte of the
segment and ends with the verified object; decisions and messages are not in it. A recording is fed faster than real time. Its
last seconds come when the follower and its upload have nothing left to do, as in real time. `cpu_ms` is the CPU of the follower
and its ffmpeg per second of media, while the recording runs. `peak_mb` is the most that the recording took of the disk. On a
bounded spool (`--ways bounded`) the media comes only as fast as it is joined and sent, as a live stream does. With `--compare`
the files of both ways are also decoded and compared, and the followed one is played (`bench/whole_file.py`). With
`--camera-after` the pictures begin so many seconds later than the sound, so they have to be encoded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from assembly import live_uploads
from assembly import work as node_work
from bench import cos_sink, noise, processes, source, whole_file
from config import settings
from machine import due_work, segments
from media import arrival_index, bounded_file, flv, followers, following, free_space, holes, pieces, spool
from tencent import credentials
from tests import examples

MINUTES = (1, 10, 60, 180)
MODES = {"02": "MP4", "00": "MP3"}
WAYS = ("following", "afterwards", "bounded")
RESULTS = Path(__file__).parent / "results" / "finish.json"
NAMES = ("transcode_s", "upload_s", "total_s", "cpu_ms", "mb", "peak_mb")
BEGAN_MS = 1_790_000_000_000
FED_MS, LAST_MS = 30_000, 5_000
# A live stream brings so much between two looks, and what came before a place that may still move is joined.
_BOUNDED_FED_MS, _UNJOINED_MS, _STEP_S = 5_000, following.LAG_MS + 20_000, 5.0
# Each longer than a look of the follower or of its upload.
_QUICK_LOOK_S = 0.2
_UNSENT_BYTES = bounded_file.KEPT_BYTES + (7 << 20)
_LOOK_S, _IDLE_LOOKS, _IDLE_CPU, _CAUGHT_UP_S = 6.0, 2, 0.05, 1_800.0
TASK = "0" * 26


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=list(MINUTES))
    parser.add_argument("--modes", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS[:2]))
    parser.add_argument("--camera-after", type=float, default=0, help="seconds of sound before the first picture")
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--compare", action="store_true", help="compare the files of both ways, and play one")
    parser.add_argument("--write", action="store_true", help="write bench/results/finish.json")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    given.folder.mkdir(parents=True, exist_ok=True)
    quiet = noise.Noise()
    tags = source.encoded(given.folder)
    camera_ms = round(given.camera_after * 1000)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with cos() as port:
        for mode in given.modes:
            for minutes in given.minutes:
                for way in given.ways:
                    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as folder:
                        kept = given.folder / f"{way}.{MODES[mode].lower()}" if given.compare else None
                        row = asyncio.run(measure(tags, minutes, mode, way, Path(folder), port, kept, camera_ms))
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                if given.compare:
                    wrong += _compared(given.folder, f"{minutes:g} min, {MODES[mode]}", MODES[mode].lower())
    shown = [[f"{row['minutes']:g} min, {row['file']}, {row['way']}", *(f"{row[name]:g}" for name in NAMES)] for row in rows]
    print(noise.table(["recording of 1.5 Mbit/s", *NAMES], shown))
    print(quiet)
    if given.write:
        RESULTS.write_text(json.dumps({"load": str(quiet), "rows": rows}, indent=1) + "\n", "utf-8")
    if wrong:
        sys.exit("\n".join(wrong))


def _compared(folder: Path, name: str, extension: str) -> list[str]:
    """The faults of the followed file; both are removed."""
    files = [folder / f"{way}.{extension}" for way in ("following", "afterwards")]
    with tempfile.TemporaryDirectory() as profile:
        found = whole_file.faults(*files, Path(profile))
    size_bytes = files[0].stat().st_size
    for file in files:
        file.unlink()
    print(f"{name}: {'; '.join(found) or 'the same frames and samples, whole and playable'} ({size_bytes} bytes)", flush=True)
    return [f"{name}: {each}" for each in found]


@contextlib.contextmanager
def cos(mb_per_s: float = cos_sink.MB_PER_S) -> Iterator[int]:
    """A COS of its own; yields its port."""
    command = [sys.executable, "-m", "bench.cos_sink", str(mb_per_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def measure(
    tags: list[flv.Tag],
    minutes: float,
    mode: str,
    way: str,
    folder: Path,
    port: int,
    kept: Path | None = None,
    camera_ms: int = 0,
) -> dict[str, Any]:
    """One row. The finished file is moved to `kept`."""
    environ = {"HOME": str(folder), "FOLLOW": str(way == "following"), "COS_ENDPOINT": f"http://127.0.0.1:{port}"}
    environ["SPOOL_POLICY"] = "bounded" if way == "bounded" else "keep"
    place = spool.Spool(folder / "spool")
    place.start()
    chain = credentials.CredentialChain({}, clock=lambda: 0, home=folder, system_profile=folder / "none")
    work = node_work.NodeWork(settings.load(environ), place, chain)
    work.followers.after_s = 0
    if way == "bounded":
        work.followers = followers.Followers(work.ffmpeg, after_s=0, look_every_s=_QUICK_LOOK_S)
        work.live_uploads = live_uploads.LiveUploads(look_every_s=_QUICK_LOOK_S)
        space = free_space.FreeSpace(place)
        await space.measure()
        await work.bound_spool(space)
    await work.uploader.start()
    try:
        row = {"minutes": minutes, "file": MODES[mode], "way": way} | await _record(work, place, tags, minutes, mode, camera_ms)
        if kept is not None:
            place.output_path(TASK, "al", 1, mode, 2).replace(kept)
        return row
    finally:
        await work.live_uploads.stop()
        await work.followers.stop()
        await work.uploader.stop()
        place.stop()


async def _record(
    work: node_work.NodeWork, place: spool.Spool, tags: list[flv.Tag], minutes: float, mode: str, camera_ms: int
) -> dict[str, float]:
    recording = examples.recording(TASK, mode=mode)
    job = due_work.Assignment(session=examples.session(TASK), recording=recording, secrets=examples.SECRETS)
    segment = place.segment_path(TASK, "al", 1, 1)
    work.capture(job, 1, lambda _: None)
    ends_ms = round(minutes * 60_000)
    disk = asyncio.create_task(_peak_mb(place.root))
    fed_ms = _BOUNDED_FED_MS if work.bound_bytes else FED_MS
    written = write(segment, tags, ends_ms, BEGAN_MS, fed_ms, camera_ms)
    for at_ms in written:
        await (_joined(segment.parent, at_ms) if work.bound_bytes else asyncio.sleep(0.01))
        if at_ms >= ends_ms - LAST_MS:
            break
    pids = work.followers.pids()
    if pids:
        await _caught_up(pids, work)
    cpu_s = sum(processes.tree_cpu_s(pid) for pid in pids)
    for _ in written:
        pass
    told = segments.Segment(
        epoch=1, node="n1", first_packet_ms=BEGAN_MS, last_packet_ms=BEGAN_MS + ends_ms, media_ms=ends_ms,
        registered_ms=BEGAN_MS, reason="eof",
    )  # fmt: skip
    begun_s = time.monotonic()
    made = await work.transcode(job, 2, [told])
    made_s = time.monotonic()
    await work.upload(replace(job, recording=replace(recording, output=made)), None, _unsaved)
    done_s = time.monotonic()
    disk.cancel()
    (peak_mb,) = await asyncio.gather(disk)
    cpu_ms = cpu_s * 1000 / (ends_ms / 1000)
    figures = (made_s - begun_s, done_s - made_s, done_s - begun_s, cpu_ms, made.size_bytes / 1e6, peak_mb)
    return {name: round(value, 2) for name, value in zip(NAMES, figures, strict=True)}


async def _peak_mb(folder: Path) -> float:
    """The most that the files of a folder took of the disk, until it is cancelled; a file with two names counts once."""
    most_bytes = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            most_bytes = max(most_bytes, _used_bytes(folder))
            await asyncio.sleep(_QUICK_LOOK_S / 4)
    return most_bytes / 1e6


def _used_bytes(folder: Path) -> int:
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found[path.stat().st_ino] = holes.used_bytes(path)
    return sum(found.values())


async def _joined(folder: Path, at_ms: int) -> None:
    """Wait until the media is joined that a live stream would have joined by this position, and its parts are sent."""
    until_s = time.monotonic() + _STEP_S
    while time.monotonic() < until_s and at_ms > _UNJOINED_MS:
        known = pieces.of(folder)
        begin = known[-1].begin if known else None
        if (
            begin is not None
            and begin.live_ms - BEGAN_MS > at_ms - _UNJOINED_MS
            and holes.used_bytes(known[-1].path) < _UNSENT_BYTES
        ):
            return
        await asyncio.sleep(_QUICK_LOOK_S / 4)


async def _unsaved(_: dict[str, Any]) -> None:
    return


async def _caught_up(pids: list[int], work: node_work.NodeWork) -> None:
    """Wait until the follower works no more, and its upload sends nothing."""
    until_s, idle_looks, before = time.monotonic() + _CAUGHT_UP_S, 0, (0.0, 0)
    while time.monotonic() < until_s and idle_looks < _IDLE_LOOKS:
        await asyncio.sleep(_LOOK_S)
        now = sum(processes.tree_cpu_s(pid) for pid in pids), work.live_uploads.sent_parts()
        idle_looks = idle_looks + 1 if now[0] - before[0] < _IDLE_CPU * _LOOK_S and now[1] == before[1] else 0
        before = now


def write(
    path: Path, tags: list[flv.Tag], ends_ms: int, began_ms: int, fed_ms: int = FED_MS, camera_ms: int = 0
) -> Iterator[int]:
    """Write a segment of the repeated stream that began at `began_ms` (Unix ms), each packet arriving at its time, pictures from
    `camera_ms` on; yields how far it has come."""
    sent_ms = 0
    with path.open("ab") as file, arrival_index.path_of(path).open("ab") as index:
        file.write(flv.header(audio=True, video=True))
        index.write(arrival_index.header(began_ms))
        for at_ms, tag in source.repeated(tags, ends_ms):
            step_ms = fed_ms if at_ms < ends_ms - LAST_MS - fed_ms else LAST_MS
            if at_ms - sent_ms >= step_ms:
                file.flush()
                index.flush()
                sent_ms = at_ms
                yield at_ms
            if tag.kind == flv.VIDEO and tag.is_media and at_ms < camera_ms:
                continue
            file.write(flv.encode(tag.kind, at_ms, tag.payload))
            index.write(arrival_index.record(at_ms, tag.kind, len(tag.payload)))


if __name__ == "__main__":
    main()
