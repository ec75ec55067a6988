"""Fault figures: the audit at the end of the fault tests, and the file of their measurements, var/fault-figures.txt.

Rule: a figure is measured in the run that notes it. No figure is averaged or left out.
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
NOTES = ROOT / "var" / "fault-figures.txt"


def note(what: str, figure: str) -> None:
    """Append a figure to the file."""
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a", encoding="utf-8") as file:
        file.write(f"{what}: {figure}\n")


async def audited(
    world: World, database: str, expected: Sequence[tuple[Scene, str]], heard: subscriber.Subscriber | None = None
) -> audit.Figures:
    """Wait until no work is left. Then nothing may be lost, doubled or leaked, and the subscriber must have received every
    result; it is stopped after it has read the rest."""
    tasks = sorted({scene.task_id for scene, _ in expected})

    async def over() -> bool:
        return not await asyncio.to_thread(audit.settled, database, tasks)

    await waiting.until(over, 60, "all work to be done", every_s=0.5)
    scope = audit_scope(world, database, [(s.task_id, who) for s, who in expected])
    if heard is not None:
        await heard.stop()
        scope = dataclasses.replace(scope, heard=heard.path)
    figures = await asyncio.to_thread(audit.audit, scope)
    found = {name: value for name, value in dataclasses.asdict(figures).items() if isinstance(value, list)}
    assert not any(found.values()), found
    return figures


def audit_scope(world: World, database: str, expected: list[tuple[str, str]]) -> audit.Scope:
    """The scope of the audit for a world."""
    received: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, posts in world.simulator.receiver.received.items():
        for post in posts:
            headers = {header.lower(): value for header, value in post.headers.items()}
            received[name].append((headers["webhook-id"], post.body.decode()))
    cos = world.simulator.folder / "cos"
    return audit.Scope(
        database=database,
        bucket=cos / BUCKET,
        uploads=world.simulator.folder / "cos-uploads",
        prefix="lessons",
        received=dict(received),
        expected=expected,
        folder=str(world.folder),
        pids=[],
        # The nodes keep running as children of the test; their own children must have ended.
        living=service_process.children(os.getpid()),
    )
