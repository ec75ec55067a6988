"""Finished files in headless Chromium: each plays to its end without an error, has its header's length, and can be sought.

Rule: it plays at `_RATE` times its speed, several files at a time in one page. The browser alone judges; no figure depends on how
fast the machine is.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import playwright.async_api
from aiohttp import web

_RATE, _AT_ONCE, _LIMIT_S = 4, 3, 120
_NEAR_S = 0.15
_WORDS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
]
_PLAY = """async ([source, rate, limit]) => {
  const player = document.createElement("video");
  const until = (name) => new Promise((done, failed) => {
    player.addEventListener(name, done, {once: true});
    player.addEventListener("error", () => failed(new Error(player.error.message)), {once: true});
    setTimeout(() => failed(new Error(`no ${name} at ${player.currentTime}`)), limit * 1000);
  });
  try {
    player.muted = true;
    player.src = source;
    await until("canplay");
    player.playbackRate = rate;
    const ended = until("ended");
    await player.play();
    await ended;
    const reached = player.currentTime, duration = player.duration;
    const seeked = until("seeked");
    player.currentTime = duration / 2;
    await seeked;
    return {duration, reached, middle: player.currentTime, decodes: player.readyState >= 2};
  } catch (error) {
    return {error: String(error)};
  } finally {
    player.removeAttribute("src");
    player.load();
  }
}"""


async def faults(root: Path, files: Iterable[Path]) -> dict[Path, list[str]]:
    """What Chromium has against each file; all of them are somewhere in `root`."""
    binary = shutil.which("chromium")
    if not binary:
        raise SystemExit("Chromium is not installed: sh deploy/test-servers.sh")
    application = web.Application()
    application.add_routes([web.get("/", _empty), web.static("/files", root)])
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with playwright.async_api.async_playwright() as started:
            browser = await started.chromium.launch(executable_path=binary, args=_WORDS, timeout=_LIMIT_S * 1000)
            page = await browser.new_page()
            await page.goto(address)
            turn = asyncio.Semaphore(_AT_ONCE)

            async def one(path: Path) -> list[str]:
                async with turn:
                    source = f"{address}files/{path.relative_to(root)}"
                    return _judged(path, await page.evaluate(_PLAY, [source, _RATE, _LIMIT_S]))

            every = list(files)
            return dict(zip(every, await asyncio.gather(*map(one, every)), strict=True))
    finally:
        await runner.cleanup()


async def _empty(_: web.Request) -> web.Response:
    return web.Response(text="<!doctype html>", content_type="text/html")


def _judged(path: Path, answer: dict[str, Any]) -> list[str]:
    if "error" in answer:
        return [f"Chromium: {answer['error']}"]
    length_s = _length_s(path)
    found = []
    if abs(answer["duration"] - length_s) > _NEAR_S:
        found.append(f"Chromium plays {answer['duration']:.2f} s of {length_s:.2f} s")
    if abs(answer["reached"] - answer["duration"]) > _NEAR_S:
        found.append(f"Chromium ends at {answer['reached']:.2f} s of {answer['duration']:.2f} s")
    if abs(answer["middle"] - answer["duration"] / 2) > _NEAR_S or not answer["decodes"]:
        found.append(f"Chromium shows {answer['middle']:.2f} s for the middle of {answer['duration']:.2f} s")
    return found


def _length_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / 1_000_000
