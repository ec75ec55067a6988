"""The pages that people follow: every command of both READMEs, and of the pages behind them, is typed here in its order.

A command that is not typed (installing packages, make) is looked at instead; one that is neither fails the test.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
