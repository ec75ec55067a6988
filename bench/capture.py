"""CPU of the service per captured stream, compared with bare ffmpeg on the same stream.

    .venv/bin/python -m bench.capture

Rule: the service runs as a process of its own, as an operator would run it. Bare ffmpeg and the service take turns on the same
source. CPU is the user and system time that the kernel counts for the processes, over a window in which all streams flow.

Bare is `ffmpeg -i ADDRESS -c copy -flush_packets 1 -f flv FILE`: the service promises flushing, so the reference pays for it too.
The service also has a cost that does not depend on streams, because its clock and its relay poll the database a few times a
second. That cost is measured without any stream and shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from bench import noise, processes
from bench import source as source_of

APP = 1400000001
FFMPEG: str = imageio_ffmpeg.get_ffmpeg_exe()
SETTLE_S = 5.0
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU time per second of wall time, in ms: of the service's own process, and of the ffmpegs, for all streams together."""

    service: float
    ffmpeg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How long CPU is counted, and how long the streams flow before that."""

    seconds: float
    settle_s: float

    def measure(self, ffmpegs: Callable[[], set[int]], service: int) -> Cost:
        """Count the CPU of these processes. Raises RuntimeError if an ffmpeg ends meanwhile."""
        time.sleep(self.settle_s)
        pids, begun_s = ffmpegs(), time.monotonic()
        before = {pid: processes.cpu_s(pid) if pid else 0.0 for pid in (*pids, service)}
        time.sleep(self.seconds)
        after = {pid: processes.cpu_s(pid) if pid else 0.0 for pid in (*pids, service)}
        wall_s = time.monotonic() - begun_s
        if pids != ffmpegs():
            raise RuntimeError("an ffmpeg ended inside the window: the figures would mean nothing")
        used = {pid: (after[pid] - before[pid]) / wall_s * 1000 for pid in after}
        return Cost(service=used[service], ffmpeg=sum(used[pid] for pid in pids))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--capture", choices=("native", "ffmpeg"), default="native", help="the setting CAPTURE of the service")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each window")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds before each window")
    parser.add_argument(
        "--length", type=int, default=source_of.LENGTH_S, help="seconds of the source; it must outlast the windows"
    )
    parser.add_argument("--folder", type=Path, default=Path("var"), help="where everything is written")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as folder:
        measure(Path(folder), given.folder.absolute(), given, print)


def measure(folder: Path, cache: Path, given: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run all rounds and print the table."""
    bare, recorded = [], []
    window = Window(seconds=given.seconds, settle_s=given.settle)
    with source(cache, given.length) as address:
        quiet = noise.Noise()
        idle = served(folder / "idle", address, 0, window, given.capture)
        for at in range(given.rounds):
            bare.append(bared(folder / f"bare-{at}", address, given.streams, window))
            recorded.append(served(folder / f"served-{at}", address, given.streams, window, given.capture))
    per = given.streams
    ratios = [(r.ffmpeg + r.service - idle.service) / b.ffmpeg for b, r in zip(bare, recorded, strict=True)]
    with_idle = statistics.median(r + idle.service / b.ffmpeg for r, b in zip(ratios, bare, strict=True))
    lines = [
        ["bare ffmpeg", noise.spread([b.ffmpeg / per for b in bare], ".2f")],
        ["the service's ffmpeg", noise.spread([r.ffmpeg / per for r in recorded], ".2f")],
        ["the service itself, without its idle part", noise.spread([(r.service - idle.service) / per for r in recorded], ".2f")],
        ["ratio: (ffmpeg + service) / bare", noise.spread(ratios, ".2f")],
        ["", ""],
        ["idle part of the service, once", f"{idle.service:.2f}"],
        [f"ratio with the idle part, {per} streams", f"{with_idle:.2f}"],
    ]
    heading = f"{per} {given.capture} captures of 1.5 Mbit/s, {given.rounds} rounds of {given.seconds:g} s"
    say(noise.table([heading, "ms of CPU per second and stream"], lines))
    say(str(quiet))


@contextlib.contextmanager
def source(folder: Path, length_s: int) -> Iterator[str]:
    """Start the live source; yields its address, to which a stream name is added."""
    command = [sys.executable, "-m", "bench.source", str(folder), str(length_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/live/"
        process.stdin.close()


def bared(folder: Path, address: str, streams: int, window: Window) -> Cost:
    """The cost of bare ffmpegs."""
    folder.mkdir()
    plain = ["-nostdin", "-loglevel", "error", "-analyzeduration", "1000000"]
    running = []
    try:
        for at in range(streams):
            file = str(folder / f"{at}.flv")
            command = [FFMPEG, *plain, "-i", f"{address}{at}", "-c", "copy", "-flush_packets", "1", "-f", "flv", file]
            running.append(subprocess.Popen(command))
        _until(lambda: len(_growing(folder)) == streams, "the streams to flow")
        return window.measure(lambda: {process.pid for process in running}, 0)
    finally:
        for process in running:
            process.kill()
            process.wait()


def served(folder: Path, address: str, streams: int, window: Window, capture: str) -> Cost:
    """The cost of the service and of its ffmpegs; the native capture has none."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PORT": str(port), "DATA_DIR": str(folder / "data"),
        "SPOOL_DIR": str(folder / "spool"), "MIN_FREE": "100MiB", "FFMPEG_BINARY": FFMPEG, "LOG_LEVEL": "info",
        "CAPTURE": capture,
        "PULL_ADDRESS": f"{address}{{speaker}}",
        # No stream ends before the measurement does, so nothing is ever uploaded and the bucket need not be reachable.
        "COS_ENDPOINT": "http://127.0.0.1:9",
    }  # fmt: skip
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", "import service; service.main()", "serve"], env=environment, stderr=log)
    try:
        _until(lambda: _is_ready(process, port, folder), "the service to be ready")
        if streams:
            _start(f"http://127.0.0.1:{port}/sessions", streams)
        _until(lambda: len(_growing(folder / "spool")) == streams, "the streams to flow")
        return window.measure(lambda: processes.children(process.pid), process.pid)
    finally:
        process.terminate()
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], port: int, folder: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the service ended: {(folder / 'service.log').read_text('utf-8')[-2000:]}")
    return _ask(f"http://127.0.0.1:{port}/readyz") is not None


def _start(url: str, streams: int) -> None:
    speakers = [f"speaker-{n}" for n in range(streams)]
    cos = {"Region": "ap-shanghai", "Bucket": "bench-1250000000", "Path": "/", "SecretId": "id", "SecretKey": "key"}
    request = {"SdkAppId": APP, "RoomId": 1, "UserId": "rec", "UserSig": "sig", "Mode": "02", "CosConfig": cos}
    if _ask(url, request | {"SubscribeUserIds": speakers}) is None:
        raise RuntimeError("the start was refused; is the service's log any help?")


def _ask(url: str, body: Any = None) -> Any:
    """The response as JSON, None without one or for an error. The address is always http on 127.0.0.1."""
    data = json.dumps(body).encode() if body is not None else None
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - always http on 127.0.0.1
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310 - always http on 127.0.0.1
            return json.loads(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def _growing(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.flv") if path.stat().st_size > 1 << 16]


def _until(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > limit_s:
            raise RuntimeError(f"waited {LIMIT_S:.0f} s for {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
