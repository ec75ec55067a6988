"""Pictures of the console for the README and docs/operate.md: light and dark, desktop and phone, English and Chinese.

    CONSOLE_PICTURES=docs/images .venv/bin/python -m pytest tests/e2e/test_console_pictures.py

Without the variable the pictures go to a temporary folder. What a page shows knows no engine: the embedded one is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simulator.cos import faults
from tests import backends, console_browser, waiting
from tests.e2e import scenes
from tests.e2e.conftest import World, live_for

PLAYS = "(player => player !== null && player.currentTime > 1)(document.querySelector('#player video'))"
# The elements that reach beyond the screen, unless something around them scrolls.
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")].filter(
  each => {
    for (let around = each.parentElement; around; around = around.parentElement)
      if (around !== document.body && getComputedStyle(around).overflowX !== "visible") return false;
    return each.getBoundingClientRect().right > innerWidth;
  }).map(each => each.outerHTML.slice(0, 200))"""
OVERVIEW, LIVE, LIST, FAILED = "overview", "live", "sessions-phone", "failed-phone"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("engine", [backends.EMBEDDED])
async def test_pictures_of_the_console(world: World, tmp_path: Path) -> None:
    """A service with a live, a finished and a failed lesson: each page fits its screen, names the failure, and is drawn."""
    folder = Path(os.environ.get("CONSOLE_PICTURES") or tmp_path)
    world.simulator.cos.faults.set(
        faults.Fault(action=faults.STATUS, status=403, code="AccessDenied", times=0, key="*/ms-lin_1.mp4")
    )
    await world.serve()
    live, done, failed = (scenes.Scene(world, name) for name in ("algebra-7a", "physics-9c", "history-8b"))
    for scene, names in ((done, ("mr-okafor", "aiko")), (failed, ("ms-lin",)), (live, ("dr-weber", "tom", "小明"))):
        await scene.start()
        for name in names:
            await scene.join(name)
        await scene.recordings(*["Recording"] * len(names))
    await live_for(3)
    for scene in (done, failed):
        await scene.room.dismiss()
        await world.service.finished(scene.task_id)
    await _draw(world, folder / OVERVIEW, "/console", shows="history-8b")
    await _draw(world, folder / LIVE, f"/console/sessions/{live.task_id}", theme="dark", click="a[data-watch]", shows="dr-weber")
    phone = console_browser.PHONE
    await _draw(world, folder / LIST, "/console/sessions", size=phone, language="zh-CN", shows="history-8b")
    page = f"/console/sessions/{failed.task_id}"
    await _draw(world, folder / FAILED, page, size=phone, theme="dark", language="zh-CN", shows="ms-lin")


async def _draw(
    world: World,
    file: Path,
    path: str,
    *,
    shows: str,
    size: tuple[int, int] = (1280, 800),
    theme: str = "light",
    language: str = "en-US",
    click: str = "",
) -> None:
    """Open a page, and draw the part that a screen of this size shows."""
    async with console_browser.visiting(world.service.url, path=path, size=size, theme=theme, language=language) as visitor:
        await visitor.until("main", shows)
        if click:
            await visitor.page.locator(click).first.click()
            await waiting.until(lambda: visitor.page.evaluate(PLAYS), 40, "the player to play", every_s=0.3)
            visitor.expected += ["409", "503"]
        assert await visitor.page.evaluate(TOO_WIDE) == []
        picture = await visitor.page.screenshot(path=file.with_suffix(".png"))
        assert len(picture) > 10_000, f"{path} is an empty page"
