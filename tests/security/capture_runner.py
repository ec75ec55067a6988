"""Capture runner: captures a hostile address to its end, with short limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

from machine import capture_progress
from media import capture, capture_engines
from tests import waiting
from tests.flv_source import FFMPEG


async def run(address: str, folder: Path, name: str, engine: str = "ffmpeg") -> capture_progress.CaptureExit:
    """Run one capture until it ends. `engine` is "ffmpeg" or "native"."""
    spec = capture.CaptureSpec(address=address, path=folder / f"{name}.flv", mode="02", stall_after_s=3, first_media_s=4)
    engines = capture_engines.CaptureEngines(engine, ffmpeg=FFMPEG, clock=capture.unix_ms)
    running = engines.make(spec, name, lambda _: None)
    await running.start()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(60))
