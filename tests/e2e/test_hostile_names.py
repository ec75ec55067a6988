"""Hostile names on the whole path: the service as a process, the simulator as Tencent, the real ffmpeg.

Rule: the evidence is the file system outside the spool before and after, the files that a running ffmpeg has open, and marked
files whose content must appear nowhere. The tests run on the embedded engine, because the effect of a name does not depend on it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest

from simulator import callbacks
from tests import backends, service_process
from tests.e2e import scenes
from tests.e2e.conftest import APP, CALLBACK_KEY, World, live_for
from tests.e2e.scenes import Scene

pytestmark = pytest.mark.parametrize("engine", [backends.EMBEDDED])

MARK = b"MARK-OF-A-FILE-THAT-IS-NOBODYS-BUSINESS"
PLAIN = re.compile(r"[A-Za-z0-9_-]+")
LIBRARY = re.compile(r"/(?:usr/)?lib(?:64)?/.*\.so[.\d]*")

# (room, recording user, speaker, folder in the bucket): TRTC and COS allow all of these, so they are recorded.
ACCEPTED = [
    ("../../../canary", "../recorder", "../../../../canary", "lessons/%2e%2e/x"),
    ("..", ".", "..", "-y"),
    ("%2e%2e%2fcanary", "%2F", "a%2F..%2Fb", "a'b\" c"),
    ("|id;$(id)`id`", "-y", "-i", "$(id)|;&"),
    ("'; option safe 0", "'", "' option protocol_whitelist file", "~"),
    ("file:canary", "concat:a|b", "pipe:1", "http:/127.0.0.1/x"),
    ("房间/\u202e\U0001f3a4", "é", "说话人/%00", "课/…/x"),
]
CONTROL = ["\n", "\r\n", "\x00", "\x1b[2J", "\x7f"]
LONG = "x" * 4096
# Values that are no names are refused, and the response names the field.
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"StrRoomId": f"a{bad}b"}, "StrRoomId") for bad in (*CONTROL, LONG)),
    *(({"UserId": f"a{bad}b"}, "UserId") for bad in (*CONTROL, LONG)),
    *(({"SubscribeUserIds": [f"a{bad}b"]}, "SubscribeUserIds") for bad in (*CONTROL, LONG)),
    *(({"CosConfig": {"Path": bad}}, "CosConfig.Path") for bad in ("..", "a/../b", "./a", "a\\b", "a\nb", "a\x00", LONG)),
    ({"CosConfig": {"Region": "ap-shanghai.evil.example/#"}}, "CosConfig.Region"),
    ({"CosConfig": {"Bucket": "x@evil.example:80/-1250000000"}}, "CosConfig.Bucket"),
    ({"Callback": "file:///etc/passwd"}, "Callback"),
    ({"Callback": "http://169.254.169.254/latest/meta-data/"}, "Callback"),
]
WORSE: list[Any] = [LONG, "a\nb", "\x00", "\ud800", "", None, 7, -1, 1.5, True, [], {}, ["x"], {"a": {"b": {}}}, "9" * 400]


def listing(folder: Path, *, without: tuple[str, ...]) -> dict[str, int]:
    """Every file and folder below `folder` with its size, except those inside the excluded folders."""
    found = {}
    for root, folders, files in os.walk(folder):
        place = Path(root).relative_to(folder)
        folders[:] = [name for name in folders if str(place / name) not in without]
        found.update({str(place / name): (Path(root) / name).stat().st_size for name in files})
        found.update(dict.fromkeys((str(place / name) for name in folders), 0))
    return found


def held_open(pid: int, spool: Path) -> list[str]:
    """The files that ffmpegs of the service have open, except pipes, sockets, the spool, and libraries that the loader is
    opening."""
    found = []
    for child in service_process.children(pid):
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{child}/comm").read_text().startswith("ffmpeg"):
                continue  # about to become an ffmpeg
            names = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
            ours = (f"{spool}/", "/dev/null", "/etc/ld.so.cache")
            files = [name for name in names if name.startswith("/") and not name.startswith(ours)]
            found += [name for name in files if not LIBRARY.fullmatch(name)]
    return found


def in_spool(spool: Path) -> list[str]:
    """Every path of the spool, relative to its root."""
    # Not rglob, which fails when a folder is removed meanwhile.
    found = [Path(folder, name) for folder, folders, names in os.walk(spool) for name in (*folders, *names)]
    return [str(path.relative_to(spool)) for path in found if path.name not in (".lock", ".node")]


async def recorded(scene: Scene, user: str, speaker: str, folder: str) -> None:
    """Record a session with these names to its end: one file, under the key of the contract."""
    config = scene.world.request(scene.name)["CosConfig"] | {"Path": folder}
    await scene.start("00", UserId=user, CosConfig=config)
    await scene.join(speaker)
    await scene.recordings("Recording")
    await live_for(1.5)
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert entry["UserId"] == speaker
    encoded = speaker if PLAIN.fullmatch(speaker) else "b64-" + base64.urlsafe_b64encode(speaker.encode()).decode().rstrip("=")
    key = unquote(entry["RecordFile"].split("/", 3)[3])
    assert key == f"{folder.strip('/')}/{scene.task_id}/{encoded}_1.mp3"


async def refused(world: World) -> None:
    """Assert that every start of the table is refused with the field's name and without its value."""
    async with aiohttp.ClientSession() as http:
        for number, (change, field) in enumerate(REFUSED):
            body = world.request(f"refused-{number}") | change
            body["CosConfig"] = world.request("x")["CosConfig"] | change.get("CosConfig", {})
            async with http.post(f"{world.service.url}/sessions", json=body) as answer:
                text = await answer.text()
            assert answer.status == 400, (change, text[:300])
            assert field in text, (field, text[:300])
            assert len(text) < 1_000


async def worse(world: World) -> None:
    """Send signed callbacks whose fields are no names, or of another type; none causes a fault of the service."""
    async with aiohttp.ClientSession() as http:
        for field in ("RoomId", "UserId", "EventMsTs", "Reason", "Role"):
            for value in WORSE:
                info = {"RoomId": 77, "EventTs": 1, "EventMsTs": 1_000, "UserId": "u", "Reason": 1, "Role": 20} | {field: value}
                callback = {"EventGroupId": 1, "EventType": 103, "CallbackTs": time.time_ns() // 10**6, "EventInfo": info}
                raw = json.dumps(callback).encode()
                headers = {"SdkAppId": str(APP), "Sign": callbacks.sign(CALLBACK_KEY, raw), "Content-Type": "application/json"}
                async with http.post(f"{world.service.url}/trtc/callbacks", data=raw, headers=headers) as answer:
                    assert answer.status < 500, (field, value)


@pytest.mark.timeout(110)
@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_no_hostile_name_leaves_the_spool(world: World, capture: str) -> None:
    """Hostile rooms, users, speakers and folders that TRTC and COS allow are recorded under safe names, and the rest are refused
    by field; nothing appears outside the spool, no ffmpeg opens a file outside it, and no marked file is read."""
    for place in (world.folder, world.folder / "service"):
        place.mkdir(exist_ok=True)
        (place / "canary").write_bytes(MARK)
    await world.serve(CAPTURE=capture, **scenes.SHORT)
    spool = world.folder / "service" / "spool"
    inside = ("service/spool", "service/data", "tencent")
    before = listing(world.folder, without=inside)
    root, seen, outside = {*os.listdir("/")}, set[str](), list[str]()
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            outside.extend(held_open(world.service.pid, spool))
            seen.update(in_spool(spool))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.1)

    watching = asyncio.create_task(watch())
    async with asyncio.TaskGroup() as group:
        for room, user, speaker, folder in ACCEPTED:
            group.create_task(recorded(Scene(world, room), user, speaker, folder))
        group.create_task(refused(world))
        group.create_task(worse(world))
    done.set()
    await watching
    after = listing(world.folder, without=inside)
    assert {**after, "service/service.log": 0} == {**before, "service/service.log": 0}
    assert {*os.listdir("/")} == root
    assert outside == []
    assert len([path for path in seen if path.endswith(".flv")]) == len(ACCEPTED)
    for path in seen:
        assert re.fullmatch(
            r"[0-9A-Z]{26}(/[A-Za-z0-9_-]+(/(\d{8}\.flv(\.arrivals)?|finished(\.\d{8})?\.mp3(\.part)?))?)?", path
        ), path
    log = world.service.log.read_text()
    assert "Traceback" not in log
    stored = world.simulator.folder / "cos"
    assert not [path for path in stored.rglob("*") if path.is_file() and MARK in path.read_bytes()]
