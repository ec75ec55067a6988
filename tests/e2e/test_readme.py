"""The pages that people follow: every command of both READMEs, and of the pages behind them, is typed here in its order.

A command that is not typed (installing packages, make) is looked at instead; one that is neither fails the test.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud import webhook
from events import codec
from machine import errors
from tests import pages

ROOT = pages.ROOT
README = ROOT / "README.md"


def installs(words: list[str]) -> None:
    """apt-get install: each package is one that our own scripts name, or curl, which only the pages use."""
    assert words[:2] == ["apt-get", "install"]
    scripts = "".join(path.read_text() for path in (ROOT / "deploy").glob("*.sh"))
    unknown = [package for package in words[2:] if not re.search(rf"\b{re.escape(package)}\b", scripts)]
    assert unknown in ([], ["curl"])


def makes(words: list[str]) -> None:
    """make: each target is one of the Makefile, with a line in `make help`."""
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[0] == "make"
    assert set(words[1:]) <= set(targets)


BY_HAND = {"apt-get": installs, "make": makes}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[pages.Desk]:
    made = pages.Desk(tmp_path)
    yield made
    await made.leave()


@pytest.mark.timeout(180)
async def test_the_readme_word_for_word(desk: pages.Desk) -> None:
    """Every command of the README works, in its order, and prints what the page shows; both servers end well."""
    await pages.Follower(desk, by_hand=BY_HAND).follow(README)
    assert set((await desk.leave()).values()) == {0}


@pytest.fixture
async def running(desk: pages.Desk) -> pages.Follower:
    """As the pages ask for: the README followed until the service of terminal 2 runs."""
    follower = pages.Follower(desk, by_hand=BY_HAND)
    first = pages.blocks(README)
    servers = [number for number, block in enumerate(first) if block.server == "recorder serve"]
    for block in first[: servers[0] + 1]:
        await follower.do(block)
    return follower


@pytest.mark.timeout(180)
async def test_the_page_for_publishers(running: pages.Follower) -> None:
    """docs/publish.md: starts, repeats, refusals and stops are as it says."""
    await running.follow(ROOT / "docs" / "publish.md")


NODE = shutil.which("node")
WITHOUT_NODE = () if NODE else ("node receiver.mjs",)


@pytest.mark.timeout(180)
async def test_the_page_for_subscribers(desk: pages.Desk, running: pages.Follower) -> None:
    """docs/subscribe.md: both receivers take genuine results only, nothing is missed on /results, and the example is one."""
    page = ROOT / "docs" / "subscribe.md"
    follower = pages.Follower(desk, skip=WITHOUT_NODE, aside=("json", "javascript"))
    await follower.follow(page)
    (example,) = [json.loads(block.text) for block in pages.blocks(page) if block.language == "json"]
    codec.check("session-finished", example)


@pytest.mark.parametrize(
    "program", ["receiver.py", pytest.param("receiver.mjs", marks=pytest.mark.skipif(not NODE, reason="no node"))]
)
async def test_a_receiver_takes_what_is_genuine_once(tmp_path: Path, program: str) -> None:
    """What the service's own sender signs is taken, once for each revision; a changed body, an old one, another key's is not."""
    desk, key = pages.Desk(tmp_path), "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
    (source,) = [block.text for block in pages.blocks(ROOT / "docs" / "subscribe.md") if block.file == program]
    desk.write(program, source)
    words = f"{'python3' if program.endswith('.py') else 'node'} {program}"
    printed = await desk.open_terminal(pages.Block(language="sh", text=f"export CALLBACK_SECRET={key}\n{words}\n"))
    url = f"http://127.0.0.1:{desk.others[9911 if program.endswith('.py') else 9912]}/results"

    def body(revision: int) -> bytes:
        files = [{"UserId": "alice", "Code": "Success", "RecordFile": "https://example.com/alice_1.mp4"}]
        return json.dumps({"TaskId": "01M82P1W6G35ZZ72N5K37968XS", "Revision": revision, "Files": files}).encode()

    ours = webhook.WebhookSender(secret=key, allow=["127.0.0.1"])
    now_s = int(time.time())
    for revision in (2, 2, 1, 3):
        await ours.send(url, body(revision), webhook_id=f"t.{revision}", now_s=now_s)
    theirs = webhook.WebhookSender(secret="another", allow=["127.0.0.1"])
    unsigned = webhook.WebhookSender(allow=["127.0.0.1"])
    for sender, sent_s in ((theirs, now_s), (unsigned, now_s), (ours, now_s - 600), (ours, now_s + 600)):
        with pytest.raises(errors.CallbackFailed, match="401"):
            await sender.send(url, body(4), webhook_id="t.4", now_s=sent_s)
    await desk.leave()
    lines = [line.split()[1:4] for line in printed.read_text().splitlines()[1:] if "Success" in line]
    assert lines == [["2", "alice", "Success"], ["3", "alice", "Success"]]
