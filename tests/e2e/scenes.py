"""Scene: one recorded room, the actions on it and their outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from simulator import rooms, speakers
from tests import content, waiting
from tests.e2e.conftest import APP, World

IDLE_S = 4 * waiting.pace()
SHORT = {"LINGER": f"{3 * waiting.pace():.1f}s", "IDLE_TIMEOUT": f"{IDLE_S:.1f}s"}
"""The time limits under test, as short as this machine can keep them."""
DONE = ("Success", "Partial")
"""The codes of a file in the bucket."""
# The length of a beep in the simulator's content.
BEEP_S = 0.1

_ONE_FILE = threading.Lock()


class Scene:
    """A room of the simulator, and the session that records it."""

    def __init__(self, world: World, name: int | str, *, app: int = APP) -> None:
        self.world = world
        self.name = name
        self.app = app
        self.room: rooms.Room = world.simulator.create_room(app, name)
        self.task_id = ""

    async def start(self, mode: str = "02", **more: Any) -> Any:
        """Start the session; returns the response."""
        answer = await self.world.service.post("/sessions", self.world.request(self.name, SdkAppId=self.app, Mode=mode, **more))
        self.task_id = answer["TaskId"]
        return answer

    async def join(self, user_id: str, **more: Any) -> speakers.Speaker:
        """Let a speaker enter, with the same number in the bar code each time."""
        return await self.room.join(user_id, **{"number": number(user_id)} | more)

    async def recordings(self, *states: str, timeout_s: float = 25) -> None:
        """Wait until the session's recordings have these states, in the order of their opening."""

        async def there() -> bool:
            return await self.world.service.states(self.task_id) == list(states)

        await waiting.until(there, timeout_s, f"recordings of {self.name!r} to be {states}", every_s=0.2)

    async def noted(self, text: str, timeout_s: float = 12, times: int = 1) -> None:
        """Wait until the text occurs on the session's timeline at least this many times."""

        async def there() -> bool:
            return len([note for note in await self.notes() if text in note]) >= times

        await waiting.until(there, timeout_s, f"{text!r} on the timeline of {self.name!r}", every_s=0.2)

    async def notes(self) -> list[str]:
        """The notes on the session's timeline, each after its event."""
        return [f"{line['Event']}: {line['Note']}" for line in (await self.world.service.session(self.task_id))["Timeline"]]

    async def result(self, *end_reasons: str) -> Any:
        """The delivered result of the finished session, which ended for one of these reasons."""
        finished = await self.world.service.finished(self.task_id)
        assert finished["EndReason"] in end_reasons, finished
        (result,) = await waiting.until(self.results, 10, f"the callback of {self.name!r}")
        return result

    def results(self) -> list[Any]:
        """The delivered results of this session."""
        return [result for result in self.world.results(self.name) if result["TaskId"] == self.task_id]

    async def files(self, end_reason: str) -> dict[str, list[Any]]:
        """The session's files by speaker; each of them is in the bucket, though faults may have cost media."""
        result = await self.result(end_reason)
        found: dict[str, list[Any]] = {}
        for entry in result["Files"]:
            assert (entry["Status"], entry["Message"]) == (1, "录制成功"), result
            assert entry["Code"] in DONE, result
            found.setdefault(entry["UserId"], []).append(entry)
        return found

    async def inspect(self, entry: Any) -> content.Content:
        """The content of a file, whose length must equal the reported duration."""
        found = await asyncio.to_thread(_inspect, self.world.object_path(entry["RecordFile"]))
        assert abs(found.duration_s - entry["Duration"]) <= 0.5, (found, entry)
        return found


def _inspect(path: Path) -> content.Content:
    """Decode one file at a time: two would only slow the rooms that are still live."""
    with _ONE_FILE:
        return content.look(path)


def number(user_id: str) -> int:
    """One of four numbers, so that few pictures must be encoded; alice and bob differ."""
    return sum(user_id.encode()) % 4


async def encode(world: World, *sizes: str) -> None:
    """Encode every picture of these rooms before anything is timed."""
    for each in range(4):
        await world.simulator.content.picture("320x240", each)
    for size in sizes:
        await world.simulator.content.picture(size, number("alice"))


def about(expected_s: float) -> Any:
    """A length in seconds, within half a second; less exact on a busy machine, because two processes measure its ends."""
    return pytest.approx(expected_s, abs=0.5 * waiting.patience())


def gaps(entry: Any) -> list[Any]:
    """The gaps inside a file. Those at its edges are the time that a pull takes to begin, which a busy machine makes longer."""
    return [gap for gap in entry["Gaps"] if 0 < gap["At"] < entry["Duration"]]


def check_together(found: content.Content, entry: Any) -> None:
    """Each beep has its flash, except at a seam: the last sound may come before its picture, and in the second after it a picture
    starts with its next key frame, sound at once."""
    seams_s = [0.0, *(gap["At"] for gap in entry["Gaps"])]
    judged = tuple(beep for beep in found.beeps_s if not any(-0.3 <= beep - seam <= 1.1 for seam in seams_s))
    assert len(judged) >= 2, (found.beeps_s, seams_s)
    # `content.check_together` skips the first and the last beep.
    content.check_together(dataclasses.replace(found, beeps_s=(0.0, *judged)))


def after(found: content.Content, at_s: float) -> content.Content:
    """The content after a position. A beep at the position itself is skipped, because an encoder's delay moves its rest past the
    position."""
    beeps, flashes = (tuple(t for t in times if t > at_s + BEEP_S) for times in (found.beeps_s, found.flashes_s))
    return dataclasses.replace(found, beeps_s=beeps, flashes_s=flashes)
