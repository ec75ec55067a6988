"""Rooms of the soak test: sessions start and end, speakers join, leave and return, and each finished session is judged.

Rule: a room's script depends on its seed alone, so a run can be repeated; only the speed of the machine differs.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from fastcrc import crc64

from simulator import rooms
from tests import waiting
from tests.e2e.conftest import APP, World, receiver

FINISH_S = 180.0
ASK_EVERY_S = 2.0
LINGER_S = 3.0
# What the service refuses it may refuse for a while.
REFUSED_S = 5.0


@dataclass(slots=True)
class Tally:
    """Totals over all sessions. `faults`: a sentence for each session with a wrong end."""

    started: int = 0
    finished: int = 0
    files: int = 0
    posts: int = 0
    repeats: int = 0
    media_s: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Rooms:
    """`count` rooms with two speakers each, one session after the other until `until_s` (of time.monotonic)."""

    def __init__(self, world: World, *, count: int, until_s: float, live_s: tuple[float, float], seed: int, mode: str) -> None:
        self._world = world
        self._mode = mode
        self._count = count
        self._until_s = until_s
        self._live_s = live_s
        self._seed = seed
        self.tally = Tally()
        self.judged: list[tuple[float, str]] = []

    async def run(self) -> None:
        """Run until every room has ended its last session."""
        await asyncio.gather(*(self._room(number) for number in range(self._count)))

    async def _room(self, number: int) -> None:
        chance = random.Random(self._seed * 1_000 + number)
        await _pass(chance.uniform(0, self._live_s[1] / 3))
        name: int | str = f"soak-{number}" if number % 2 else 9_000 + number
        while time.monotonic() < self._until_s:
            try:
                await self._session(name, chance)
            except AssertionError as error:
                self.tally.faults.append(f"room {name}: {error}")
                await _pass(REFUSED_S)

    async def _session(self, name: int | str, chance: random.Random) -> None:
        task_id = str((await self._world.service.post("/sessions", self._world.request(name, Mode=self._mode)))["TaskId"])
        self.tally.started += 1
        room = self._world.simulator.create_room(APP, name)
        try:
            speakers = await self._live(room, chance)
            if chance.random() < 0.3:
                await self._world.service.post(f"/sessions/{task_id}/stop")
                expected = "Stopped"
            else:
                expected = "RoomDestroyed"
        finally:
            # Also after a fault: the next session needs the room empty.
            await room.dismiss()
        # As an application does: 150 rooms that ask for the state of their sessions would be the load that is measured.
        await waiting.until(lambda: self._posts(name, task_id), FINISH_S, f"the result of {task_id}", every_s=0.2)
        finished = await self._world.service.finished(task_id, 30, ASK_EVERY_S)
        await self._judge(name, finished, expected, speakers)

    async def _live(self, room: rooms.Room, chance: random.Random) -> set[str]:
        """Keep a room live for a while; returns its speakers."""
        stays_s = chance.uniform(*self._live_s)
        await room.join("alice", video=False, number=0)
        await _pass(chance.uniform(0, 2))
        bob = await room.join("bob", video=False, number=1)
        await _pass(stays_s / 2)
        what = chance.choice(("stay", "blink", "again", "third"))
        if what in ("blink", "again"):
            await bob.leave()
            await _pass(1.0 if what == "blink" else LINGER_S * 2)
            await room.join("bob", video=False, number=1)
        elif what == "third":
            carol = await room.join("carol", video=False, number=2)
            await _pass(stays_s / 4)
            await carol.leave()
        self.tally.kinds[what] = self.tally.kinds.get(what, 0) + 1
        await _pass(stays_s / 2)
        return {"alice", "bob", "carol"} if what == "third" else {"alice", "bob"}

    async def _judge(self, name: int | str, session: Any, expected: str, speakers: set[str]) -> None:
        task_id, tally = session["TaskId"], self.tally
        tally.finished += 1
        posts = self._posts(name, task_id)
        bodies = {post.body for post in posts}
        tally.posts, tally.repeats = tally.posts + len(posts), tally.repeats + len(posts) - len(bodies)
        result = posts[0].json()
        states = [r["State"] for r in session["Recordings"]]
        wrong = [f"states {states}"] if set(states) != {"Done"} else []
        wrong += [f"{len(bodies)} bodies"] if len(bodies) != 1 or result["Revision"] != 1 else []
        wrong += [f"ended by {result['EndReason']}, not {expected}"] if result["EndReason"] != expected else []
        missing = speakers - {entry["UserId"] for entry in result["Files"]}
        wrong += [f"no file of {', '.join(sorted(missing))}"] if missing else []
        wrong += [fault for entry in result["Files"] for fault in await asyncio.to_thread(self._file_faults, entry)]
        tally.faults += [f"{task_id} in room {name}: {fault}" for fault in wrong]
        tally.files += len(result["Files"])
        tally.media_s += sum(entry.get("Duration") or 0 for entry in result["Files"])
        self.judged.append((time.monotonic(), task_id))

    def _posts(self, name: int | str, task_id: str) -> list[Any]:
        return [p for p in list(self._world.simulator.receiver.received[receiver(name)]) if p.json()["TaskId"] == task_id]

    def _file_faults(self, entry: Any) -> list[str]:
        if entry["Status"] != 1:
            return [f"{entry['UserId']}: {entry['Code']} {entry['Detail']}"]
        path = self._world.object_path(entry["RecordFile"])
        if not path.exists():
            return [f"{path.name} is not in COS"]
        body = path.read_bytes()
        same = (len(body), str(crc64.xz(body))) == (entry["Size"], entry["Crc64"])
        return [] if same and entry["Duration"] > 0 else [f"{path.name} is not the file that was reported"]


async def until(at_s: float) -> None:
    """Wait for a time of time.monotonic."""
    await waiting.until(lambda: time.monotonic() >= at_s, max(0.0, at_s - time.monotonic()) + 60, every_s=0.25)


async def _pass(seconds: float) -> None:
    """Wait for a duration: a room is live as long as its speakers publish."""
    await until(time.monotonic() + seconds)
