"""Time of a scrape of `/metrics` on a node that executes many captures, with every label set that the service can make.

    .venv/bin/python -m bench.scrape
    .venv/bin/python -m bench.scrape --captures 300 --scrapes 200

The node is one of the embedded engine in this process, and so is the client, whose time counts as well. Captures are stand-ins
that hold leases and write nothing: their work is in `bench.capture_density`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import aiohttp

from assembly import gauges, logs
from assembly import node as nodes
from bench import noise
from config import settings
from handlers import dispatch
from machine import capture_progress, job_key, metrics, states
from machine.reasons import Reason
from web import scopes
from worker import leased_job

TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
STATUSES = ("200", "400", "401", "403", "404", "409", "429", "503")


class StandInCapture:
    """A capture that has written some bytes, and never ends."""

    progress = capture_progress.CaptureProgress(media_ms=5_000, size_bytes=1_000_000, last_packet_ms=1)

    async def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def kill(self) -> None:
        """Nothing to kill."""

    async def wait(self) -> capture_progress.CaptureExit:
        """Wait without end."""
        await asyncio.Event().wait()
        raise AssertionError("it never ends")


def fill() -> None:
    """Make every label set of events, jobs and requests once."""
    for type_ in dispatch.EVENT_HANDLERS:
        for outcome in ("decided", "refused", "failed"):
            metrics.EVENTS.labels(type_, outcome).inc()
        metrics.EVENT_SECONDS.labels(type_).observe(0.01)
        metrics.EVENT_AGE_SECONDS.labels(type_).observe(0.01)
    for kind in gauges.KINDS:
        for reason in Reason:
            metrics.JOBS_ENDED.labels(kind, reason).inc()
        metrics.JOB_WAIT_SECONDS.labels(kind).observe(0.01)
        metrics.JOB_SECONDS.labels(kind).observe(0.01)
    for method, path in scopes.TABLE:
        for status in STATUSES:
            metrics.HTTP_REQUESTS.labels(path, method, status).inc()
        metrics.HTTP_SECONDS.labels(path).observe(0.01)


def capture(node: nodes.Node, count: int) -> None:
    """Let the node hold so many captures."""
    assert node.worker is not None
    for number in range(count):
        key = job_key.recording(TASK_ID, f"speaker{number}", 1)
        job = leased_job.LeasedJob(owner=key, epoch=1, kind=states.CAPTURE, capture=StandInCapture())
        node.worker.leases.jobs[job.key] = job


async def measure(captures: int, scrapes: int, folder: Path) -> tuple[list[float], float, int]:
    """The times of scrapes in ms, sorted, the CPU of one in ms, and the size of the last one in bytes."""
    places = {
        "DATA_DIR": str(folder / "data"),
        "SPOOL_DIR": str(folder / "spool"),
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
    }
    environment = {"PORT": "0", "LOG_LEVEL": "error", "METRICS_TOKEN": "scrape", "MIN_FREE": "1MiB"} | places
    node = nodes.Node(settings.load(environment), environment)
    await node.start()
    found, size_bytes, began_cpu_s = [], 0, time.process_time()
    try:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer scrape"}) as http:
            for _ in range(scrapes + 1):
                # A renewal ends leases that no row has.
                capture(node, captures)
                began_s = time.perf_counter()
                async with http.get(f"{node.url}/metrics") as response:
                    size_bytes = len(await response.read())
                found.append((time.perf_counter() - began_s) * 1000)
    finally:
        await node.stop()
    cpu_ms = (time.process_time() - began_cpu_s) * 1000 / len(found)
    return sorted(found[1:]), cpu_ms, size_bytes  # the first one opens the connection and waits for the first figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captures", type=int, default=300)
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    quiet, lines = noise.Noise(), []
    logs.configure(level="error")
    fill()
    for captures in (0, given.captures):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as folder:
            times_ms, cpu_ms, size_bytes = asyncio.run(measure(captures, given.scrapes, Path(folder)))
        places = (len(times_ms) // 2, len(times_ms) * 99 // 100, len(times_ms) - 1)
        lines.append(
            [f"{captures} captures", *(f"{times_ms[at]:.1f}" for at in places), f"{cpu_ms:.1f}", f"{size_bytes / 1024:,.0f}"]
        )
    print(noise.table(["scrape, ms", "p50", "p99", "most", "CPU", "KiB"], lines))
    print(quiet)


if __name__ == "__main__":
    main()
