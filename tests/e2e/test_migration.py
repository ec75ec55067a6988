"""The requests that the cloud function documents, through the recipe of docs/migrate.md: its fields come back.

The page installs the embedded engine."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import aiohttp
import pytest

from tests import waiting
from tests.e2e import scenes
from tests.e2e.conftest import APP, BUCKET, REGION, SECRET_ID, SECRET_KEY, World, live_for

TOKEN = "migrated-7f3a"
SENT = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
# The documented table writes the names of CosConfig in upper case and has keys; the documented example writes them in lower case
# and relies on the role that the function runs under.
COS: tuple[dict[str, str], ...] = (
    {"Region": REGION, "Bucket": BUCKET, "Path": "/trtc", "SecretId": SECRET_ID, "SecretKey": SECRET_KEY},
    {"region": REGION, "bucket": BUCKET, "path": "/trtc"},
)
MODES = {None: "mp3", "00": "mp3", "01": "mp4", "02": "mp4"}
ROOMS: tuple[dict[str, Any], ...] = ({"RoomId": 43474}, {"StrRoomId": "class 7"})


def _requests(world: World) -> list[dict[str, Any]]:
    """Each mode, kind of room and form of CosConfig; a room of its own for each."""
    made = []
    for n, (mode, room, cos) in enumerate(itertools.product(MODES, ROOMS, COS)):
        where = {name: id_ + n if isinstance(id_, int) else f"{id_}-{n}" for name, id_ in room.items()}
        body = {"SdkAppId": APP, **where, "UserId": f"user_{n}", "UserSig": "any", "CosConfig": cos}
        body["Callback"] = world.simulator.receiver_url(f"migrated-{n}")
        made.append(body | ({"Mode": mode} if mode else {}))
    return made


@pytest.mark.parametrize("engine", ["embedded"], indirect=True)
async def test_the_documented_requests(world: World) -> None:
    """All modes, both kinds of rooms, both forms of CosConfig: each request is accepted unchanged with the
    Authorization header, and its result has the function's fields with their types and values."""
    await scenes.encode(world)
    role = {"TENCENTCLOUD_SECRET_ID": SECRET_ID, "TENCENTCLOUD_SECRET_KEY": SECRET_KEY}
    await world.serve(API_TOKENS=TOKEN, **role, **scenes.SHORT)
    bodies = _requests(world)
    async with aiohttp.ClientSession(world.service.url, headers=SENT) as http:
        await asyncio.gather(*(_record(world, http, body) for body in bodies))
    for n, body in enumerate(bodies):
        received = world.simulator.receiver.received[f"migrated-{n}"]
        await waiting.until(lambda received=received: received, 60, f"the result of {body}")
        result = received[0].json()
        room = {name: str(body.get(name, "")) for name in ("RoomId", "StrRoomId")}
        assert {name: result[name] for name in ("SdkAppId", *room, "UserId")} == {
            "SdkAppId": str(APP),
            **room,
            "UserId": f"user_{n}",
        }
        (entry,) = result["Files"]
        assert (entry["UserId"], entry["Status"], entry["Message"]) == ("alice", 1, "录制成功")
        assert entry["RecordFile"].startswith(f"https://{BUCKET}.cos.{REGION}.myqcloud.com/trtc/")
        assert entry["RecordFile"].endswith(f".{MODES[body.get('Mode')]}")
        assert world.object_path(entry["RecordFile"]).is_file()


async def _record(world: World, http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    """Start, let a speaker publish, and end the room."""
    async with http.post("/sessions", json=body) as answer:
        started = await answer.json()
        assert answer.status == 202, started
    room = world.simulator.create_room(APP, body.get("RoomId") or body["StrRoomId"])
    await room.join("alice", number=scenes.number("alice"))

    async def recording() -> bool:
        async with http.get(f"/sessions/{started['TaskId']}") as answer:
            return [each["State"] for each in (await answer.json())["Recordings"]] == ["Recording"]

    await waiting.until(recording, 60, f"{body} to be recorded", every_s=0.5)
    await live_for(1)
    await room.dismiss()
