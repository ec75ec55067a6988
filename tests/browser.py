"""What a browser shows of a finished file: headless Chromium plays it in a page that is served on 127.0.0.1.

Rule: the page looks at the picture at given positions, reached by seeking, and at all samples of the sound. Nothing depends on
how fast the machine plays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tests import waiting

_PAGE = """<!doctype html><video id="player" muted preload="auto"></video><canvas id="canvas" width="32" height="32"></canvas>
<script>
const player = document.getElementById("player"), canvas = document.getElementById("canvas");
const pen = canvas.getContext("2d", {willReadFrequently: true});
const once = (name) => new Promise((done, failed) => {
  player.addEventListener(name, done, {once: true});
  player.addEventListener("error", () => failed(new Error("player: " + player.error.message)), {once: true});
});
// "seeked" may come before the picture of the new position is there, so that the last one would be looked at once more.
const shown = () => new Promise((done) => player.requestVideoFrameCallback(done));
async function seen(positions) {
  const first = shown();
  player.src = "/file";
  await once("loadeddata");
  await first;
  const found = [];
  for (const position of positions) {
    const next = shown();
    player.currentTime = position;
    await once("seeked");
    await next;
    pen.drawImage(player, 0, 0, 32, 32);
    const [red, green, blue] = pen.getImageData(16, 8, 1, 1).data;
    found.push({position, time: player.currentTime, bright: (red + green + blue) / 3});
  }
  return {duration: player.duration, width: player.videoWidth, height: player.videoHeight, pictures: found};
}
async function heard() {
  const bytes = await (await fetch("/file")).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  const samples = sound.getChannelData(0), beeps = [];
  let quiet = 1e9;
  for (let at = 0; at < samples.length; at += 160) {
    let peak = 0;
    for (let i = at; i < Math.min(at + 160, samples.length); i++) peak = Math.max(peak, Math.abs(samples[i]));
    if (peak > 0.05) { if (quiet >= 20) beeps.push(at / 16000); quiet = 0; } else quiet++;
  }
  return {beeps, length: sound.duration};
}
(async () => {
  let answer;
  try { answer = {...await seen(POSITIONS), ...(SOUND ? await heard() : {beeps: [], length: 0})}; }
  catch (error) { answer = {error: String(error)}; }
  await fetch("/answer", {method: "POST", body: JSON.stringify(answer)});
})();
</script>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """`bright`: the brightness (0 to 255) of the upper part of the picture at each position that was asked for; `beeps` and
    `sound_s`: when beeps begin, and the length of the sound, counted in samples."""

    duration_s: float
    size: tuple[int, int]
    bright: dict[float, float]
    beeps: tuple[float, ...]
    sound_s: float


async def play(path: Path, positions_s: Sequence[float], folder: Path, *, sound: bool = True) -> Shown:
    """Open a file in Chromium, and look at it. Raises AssertionError if the browser cannot play it."""
    binary = shutil.which("chromium")
    assert binary, "Chromium is not installed: sh deploy/test-servers.sh"
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    page = _PAGE.replace("POSITIONS", json.dumps(list(positions_s))).replace("SOUND", json.dumps(sound))

    async def answered(request: web.Request) -> web.Response:
        await answers.put(json.loads(await request.text()))
        return web.Response()

    async def show(request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def file(request: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    application = web.Application()
    application.add_routes([web.get("/", show), web.get("/file", file), web.post("/answer", answered)])
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return _shown(await _browse(binary, f"http://127.0.0.1:{runner.addresses[0][1]}/", folder, answers))
    finally:
        await runner.cleanup()


async def _browse(binary: str, address: str, folder: Path, answers: asyncio.Queue[dict[str, Any]]) -> dict[str, Any]:
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"]
    words += [f"--user-data-dir={folder / 'profile'}", "--disable-background-networking", "--disable-component-update", address]
    with (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        )
        try:
            async with waiting.at_most(90):
                return await answers.get()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _shown(answer: dict[str, Any]) -> Shown:
    assert "error" not in answer, answer
    return Shown(
        duration_s=answer["duration"],
        size=(answer["width"], answer["height"]),
        bright={each["position"]: each["bright"] for each in answer["pictures"]},
        beeps=tuple(answer["beeps"]),
        sound_s=answer["length"],
    )
