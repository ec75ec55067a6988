"""A visitor of the console: headless Chromium with one page, the addresses that it asked for, and the errors that it reported.

Rule: at the end of a visit no request has left the host of the service, and the page has reported no error. All visits of a test
process share one Chromium, whose start takes longer than most visits. Each has its own profile (a browser context) in it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import run_folders, waiting

if TYPE_CHECKING:
    from playwright.async_api import Page

AXE = Path(__file__).parent / "data" / "axe"
DESKTOP, PHONE = (1360, 860), (390, 844)
START_LIMIT_S = 30.0
# As Playwright starts it: nothing of its own goes to the network, and no page that is not in front is slowed down.
_WORDS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-field-trial-config",
    "--disable-popup-blocking",
    "--disable-renderer-backgrounding",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-service-autorun",
    "--password-store=basic",
)


@dataclass(kw_only=True)
class Visitor:
    """One browser on a service's console. `expected` are parts of the errors that a test provokes."""

    url: str
    page: Page
    asked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    async def open(self, path: str = "/console") -> int:
        """Open a page of the console, and return its status."""
        answer = await self.page.goto(self.url + path)
        return answer.status if answer is not None else 0

    async def sign_in(self, key: str) -> None:
        """Sign in on the page that asks for a key."""
        await self.page.fill("#key", key)
        await self.page.click("button.primary")

    async def text(self, selector: str = "main") -> str:
        """The visible text of an element, in one line."""
        return " ".join((await self.page.inner_text(selector)).split())

    async def until(self, selector: str, text: str) -> None:
        """Wait until an element, which the page updates by itself, contains a text."""

        async def shown() -> bool:
            found = self.page.locator(selector)
            return await found.count() > 0 and text in " ".join(
                " ".join([await each.inner_text() for each in await found.all()]).split()
            )

        await waiting.until(shown, 20, f"{selector} shows {text!r}")

    async def fetch(self, method: str, path: str, form: dict[str, Any]) -> int:
        """Send a form as a script of the page could; returns the status."""
        answer = await self.page.context.request.fetch(self.url + path, method=method, form=form, max_redirects=0)
        return answer.status

    @property
    def strangers(self) -> list[str]:
        """The requests to other hosts."""
        here = urllib.parse.urlsplit(self.url).netloc
        return [one for one in self.asked if urllib.parse.urlsplit(one).netloc not in (here, "")]


@functools.cache
def _shared() -> str:
    """The address of this process's Chromium, started at its first use. Call from the main thread: it ends with the thread."""
    binary = shutil.which("chromium")
    assert binary, "Chromium is not installed: sh deploy/test-servers.sh"
    folder = run_folders.make("chromium")
    words = [*_WORDS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": "/usr/bin:/bin"}
    with (folder / "log").open("wb") as log:
        tied = ["setpriv", "--pdeathsig", "KILL", "--", binary, *words]
        process = subprocess.Popen(tied, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def remove() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    told, until_s = folder / "DevToolsActivePort", time.monotonic() + waiting.limit_s(START_LIMIT_S)
    while not (told.exists() and told.read_text().count("\n") == 1):
        if time.monotonic() > until_s or process.poll() is not None:
            raise RuntimeError((folder / "log").read_text(errors="replace")[-2000:])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    port, place = told.read_text().split("\n")
    return f"ws://127.0.0.1:{port}{place}"


@asynccontextmanager
async def visiting(
    url: str,
    *,
    key: str = "",
    path: str = "/console",
    language: str = "en-US",
    theme: str = "light",
    size: tuple[int, int] = DESKTOP,
) -> AsyncIterator[Visitor]:
    """A browser that has opened a page of the console, signed in with `key` if there is one."""
    # Here, and not in every process of a run: this is the largest module of all that tests load.
    from playwright.async_api import async_playwright

    address = _shared()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(address, timeout=waiting.limit_s(START_LIMIT_S) * 1000)
        try:
            width, height = size
            context = await browser.new_context(
                locale=language,
                color_scheme="dark" if theme == "dark" else "light",
                viewport={"width": width, "height": height},
                timezone_id="Asia/Shanghai",
            )
            context.set_default_timeout(waiting.limit_s(15) * 1000)
            visitor = Visitor(url=url, page=await context.new_page())
            visitor.page.on("request", lambda request: visitor.asked.append(request.url))
            visitor.page.on("pageerror", lambda error: visitor.problems.append(str(error)))
            visitor.page.on("console", lambda said: visitor.problems.append(said.text) if said.type == "error" else None)
            await visitor.open(path)
            if key:
                await visitor.sign_in(key)
            yield visitor
            assert visitor.strangers == []
            assert [each for each in visitor.problems if not any(part in each for part in visitor.expected)] == []
        finally:
            # Ends what it has opened, and the connection; Chromium goes on.
            await browser.close()


async def axe(folder: Path) -> str:
    """The source of axe-core, from its lock. Skips the test, with npm's own message, if npm's registry is unreachable."""
    assert shutil.which("npm"), "npm is not installed: apt-get install nodejs npm"
    shutil.copytree(AXE, folder / "axe")
    process = await asyncio.create_subprocess_exec(
        "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(folder / "cache"),
        cwd=folder / "axe", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with waiting.at_most(60):
        output, _ = await process.communicate()
    if process.returncode and re.search(rb"ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN|network|E40[13]", output):
        pytest.skip(f"npm ci could not fetch axe-core: {output.decode(errors='replace')[-300:]}")
    assert process.returncode == 0, output.decode(errors="replace")
    return (folder / "axe" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def obstacles(visitor: Visitor, script: str) -> list[str]:
    """The serious and critical findings of axe-core on the open page: rule, element, and why."""
    await visitor.page.evaluate(script)
    found = await visitor.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
