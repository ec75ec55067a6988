"""What the tests of the surroundings share: the audit at their end, and the figures they note in var/surroundings.txt.

Imports the tests' own eyes. Rule: what is noted is measured in that run, nothing is averaged or left out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests import service_process, subscriber, waiting
from tests.chaos import audit
from tests.e2e.conftest import BUCKET, World
from tests.e2e.scenes import Scene

ROOT = Path(__file__).parents[2]
NOTES = ROOT / "var" / "surroundings.txt"


def note(what: str, figure: str) -> None:
    """Write a figure down."""
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a", encoding="utf-8") as file:
        file.write(f"{what}: {figure}\n")


async def audited(
    world: World, database: str, expected: Sequence[tuple[Scene, str]], heard: subscriber.Subscriber | None = None
) -> audit.Figures:
    """Wait until nothing is left to do; then nothing may be lost, doubled or leaked, and all must be heard by the subscriber, who
    is told to hear the rest."""
    tasks = sorted({scene.task_id for scene, _ in expected})

    async def over() -> bool:
        return not await asyncio.to_thread(audit.settled, database, tasks)

    await waiting.until(over, 60, "nothing to be left to do", every_s=0.5)
    what = looked_at(world, database, [(s.task_id, who) for s, who in expected])
    if heard is not None:
        await heard.stop()
        what = dataclasses.replace(what, heard=heard.path)
    figures = await asyncio.to_thread(audit.audit, what)
    found = {name: value for name, value in dataclasses.asdict(figures).items() if isinstance(value, list)}
    assert not any(found.values()), found
    return figures


def looked_at(world: World, database: str, expected: list[tuple[str, str]]) -> audit.What:
    """Where the audit looks."""
    received: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, posts in world.simulator.receiver.received.items():
        for post in posts:
            headers = {header.lower(): value for header, value in post.headers.items()}
            received[name].append((headers["webhook-id"], post.body.decode()))
    cos = world.simulator.folder / "cos"
    return audit.What(
        database=database,
        bucket=cos / BUCKET,
        uploads=world.simulator.folder / "cos-uploads",
        prefix="lessons",
        received=dict(received),
        expected=expected,
        folder=str(world.folder),
        pids=[],
        # The nodes go on, as processes that the test has started; what they have started must have ended.
        living=service_process.children(os.getpid()),
    )
