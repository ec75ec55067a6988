"""Sampler: runs `service.main()` and writes the number of its asyncio tasks to SOAK_TASKS once a second.

Rule: it reads from a thread of its own and changes nothing in the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from pathlib import Path

import service

EVERY_S = 1.0


class _Policy(asyncio.DefaultEventLoopPolicy):
    """Collects the event loops that the service makes."""

    def __init__(self) -> None:
        super().__init__()
        self.loops: list[asyncio.AbstractEventLoop] = []

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        self.loops.append(super().new_event_loop())
        return self.loops[-1]


def _watch(policy: _Policy, path: Path, ended: threading.Event) -> None:
    while not ended.wait(EVERY_S):
        tasks = [task for loop in policy.loops for task in asyncio.all_tasks(loop)]
        kinds = Counter(task.get_name().split(" ")[0].split("-")[0] for task in tasks)
        path.with_suffix(".part").write_text(json.dumps({"tasks": len(tasks), "kinds": kinds}))
        path.with_suffix(".part").replace(path)


def main() -> None:
    """Run `recorder` with the sampler."""
    policy, ended = _Policy(), threading.Event()
    asyncio.set_event_loop_policy(policy)
    threading.Thread(target=_watch, args=(policy, Path(os.environ["SOAK_TASKS"]), ended), daemon=True).start()
    try:
        service.main()
    finally:
        ended.set()
