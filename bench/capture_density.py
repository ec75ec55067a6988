"""Captures of one RTMP stream by nginx-rtmp: the native capture next to bare ffmpeg, 1 to 300 at a time.

    make bench-capture

Rule: the ways take turns on the same server. A row states the CPU of all captures in ms per second and stream, their memory (PSS)
per stream, and how many packets all files lack. Native captures share one process, which runs nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from bench import noise, processes, source
from media import capture, capture_engines, flv
from tests import nginx_rtmp, ports

COUNTS = (1, 10, 50, 100, 300)
UVLOOP = "native+uvloop"
WAYS = ("native", *((UVLOOP,) if importlib.util.find_spec("uvloop") else ()), "ffmpeg", "bare")
MOST_FFMPEGS = 100
FFMPEG: str = imageio_ffmpeg.get_ffmpeg_exe()
RESULTS = Path(__file__).parent / "results" / "capture.json"
NGINX = """
load_module {module};
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 2048; }}
rtmp {{ access_log off; server {{ listen 127.0.0.1:{port}; chunk_size 4096; application live {{ live on; }} }} }}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--write", action="store_true", help="write bench/results/capture.json")
    parser.add_argument("--pull", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pull:
        way, url, count = given.pull
        loop = importlib.import_module("uvloop").new_event_loop if way == UVLOOP else None
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(pull(way, url, int(count), given.folder))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    quiet = noise.Noise()
    source.encoded(given.folder)
    place = given.folder.absolute()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as folder, serving(Path(folder), place) as url:
        for count in given.counts:
            rows += [
                measure(way, count, url, Path(folder) / f"{way}-{count}", given.seconds)
                for way in given.ways
                if count <= MOST_FFMPEGS or way.startswith("native")
            ]
    shown = [[f"{row['streams']} × {row['way']}", *(f"{row[name]:g}" for name in NAMES)] for row in rows]
    print(noise.table(["streams of 1.5 Mbit/s", *NAMES], shown))
    print(quiet)
    if given.write:
        RESULTS.write_text(json.dumps({"seconds": given.seconds, "load": str(quiet), "rows": rows}, indent=1) + "\n", "utf-8")


NAMES = ("cpu_ms", "pss_mib", "lag_p99_ms", "lacking")


@contextlib.contextmanager
def serving(folder: Path, cache: Path) -> Iterator[str]:
    """nginx and one publisher; yields the address of the stream."""
    port = ports.free()
    settings = folder / "nginx.conf"
    settings.write_text(NGINX.format(module=nginx_rtmp.MODULE, folder=folder, port=port))
    server = subprocess.Popen([nginx_rtmp.binary(), "-p", str(folder), "-c", str(settings)], stderr=subprocess.DEVNULL)
    time.sleep(1)
    url = f"rtmp://127.0.0.1:{port}/live/source"
    file = cache / f"source-{source.KBITS}-{source.LENGTH_S}.flv"
    quiet = [FFMPEG, "-nostdin", "-loglevel", "error"]
    push = [*quiet, "-re", "-stream_loop", "-1", "-i", str(file), "-c", "copy", "-f", "flv", url]
    publisher = subprocess.Popen(push, stderr=subprocess.DEVNULL)
    time.sleep(2)
    try:
        yield url
    finally:
        for process in (publisher, server):
            process.kill()
            process.wait()


def measure(way: str, count: int, url: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One row."""
    folder.mkdir()
    if way != "bare":
        command = [sys.executable, "-m", "bench.capture_density", "--folder", str(folder), "--pull", way, url, str(count)]
        running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)]
    else:
        plain = [FFMPEG, "-nostdin", "-loglevel", "error", "-analyzeduration", "1000000", "-i", url, "-c", "copy"]
        files = [[*plain, "-flush_packets", "1", "-f", "flv", str(folder / f"{n}.flv")] for n in range(count)]
        running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in files]
    until_s = time.monotonic() + 60
    while len([path for path in folder.glob("*.flv") if path.stat().st_size > 1 << 17]) < count and time.monotonic() < until_s:
        time.sleep(0.2)
    begun_s, before_s = time.monotonic(), sum(processes.tree_cpu_s(process.pid) for process in running)
    time.sleep(seconds)
    used_s = sum(processes.tree_cpu_s(process.pid) for process in running) - before_s
    took_s = time.monotonic() - begun_s
    memory = sum(processes.pss_mib(pid) for process in running for pid in processes.tree(process.pid))
    lag_ms = 0.0
    for process in running:
        if way != "bare":
            said, _ = process.communicate(timeout=60)
            lag_ms = float(said.split()[-1])
        else:
            process.kill()
            process.wait()
    lacking = sum(_lacking(path) for path in folder.glob("*.flv"))
    for path in folder.iterdir():
        path.unlink()
    figures = {"cpu_ms": used_s / took_s / count * 1000, "pss_mib": memory / count, "lag_p99_ms": lag_ms}
    return {"way": way, "streams": count, **{name: round(value, 2) for name, value in figures.items()}, "lacking": lacking}


async def pull(way: str, url: str, count: int, folder: Path) -> None:
    """Capture `count` times in this process until standard input ends; prints the event loop's lag."""
    specs = (capture.CaptureSpec(address=url, path=folder / f"{n}.flv", mode="02") for n in range(count))
    engines = capture_engines.CaptureEngines("ffmpeg" if way == "ffmpeg" else "native", ffmpeg=FFMPEG, clock=capture.unix_ms)
    captures = [engines.make(spec, spec.path.name, lambda _: None) for spec in specs]
    for each in captures:
        await each.start()
    done = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    lags: list[float] = []
    while not done.done():
        begun_s = time.perf_counter()
        await asyncio.sleep(0.05)
        lags.append(time.perf_counter() - begun_s - 0.05)
    for each in captures:
        each.stop()
    await asyncio.gather(*(each.wait() for each in captures))
    print(round(sorted(lags)[int(len(lags) * 0.99)] * 1000, 2))


def _lacking(path: Path) -> int:
    """Packets that are missing inside a file: jumps of a track by more than one and a half packets."""
    reader, last, missing = flv.TagReader(path), {}, 0
    while tags := reader.read():
        for tag in tags:
            if tag.is_media:
                step = tag.timestamp_ms - last.get(tag.kind, tag.timestamp_ms)
                usual = 40 if tag.kind == flv.VIDEO else 24
                missing += max(0, round(step / usual) - 1) if 0 < step < 10_000 else 0
                last[tag.kind] = tag.timestamp_ms
    reader.close()
    return missing


if __name__ == "__main__":
    main()
