"""A whole world on this machine: the simulator as Tencent, and the real service as a process of its own, on each engine.

A module for one engine has `pytestmark = pytest.mark.parametrize("engine", [...])` and names the engine in its header. A test
whose subject is the capture has `@by_captures` and passes `capture` on as the setting CAPTURE.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from simulator import server
from simulator.cos import signature
from tests import backends, service_process, waiting

APP = 1400000001
REGION, BUCKET = "ap-shanghai", "recordings-1250000000"
SECRET_ID, SECRET_KEY = "AKIDexample", "secret-key-example"
CALLBACK_KEY = "callback-key"
NATIVE, FFMPEG = "native", "ffmpeg"
# A capture knows no engine: two runs show both captures and both engines. All other rooms on the embedded engine are captured
# natively.
by_captures = pytest.mark.parametrize(("engine", "capture"), [(backends.EMBEDDED, FFMPEG), (backends.DISTRIBUTED, NATIVE)])


def receiver(room: int | str) -> str:
    """The name of a room's result receiver."""
    return f"{type(room).__name__}-{room}"


class World:
    """The simulator, and services configured with its addresses."""

    def __init__(self, folder: Path, simulator: server.Simulator, engine: str) -> None:
        self.folder = folder
        self.simulator = simulator
        self.engine = engine
        self.backend: backends.Backend | None = None
        self.service: service_process.ServiceProcess

    async def serve(self, **environment: str) -> service_process.ServiceProcess:
        """Start a service that uses the simulator as Tencent, and send TRTC's callbacks to it."""
        folder = self.folder / "service"
        folder.mkdir(parents=True, exist_ok=True)
        self.backend = self.backend or backends.make(self.engine, folder / "data")
        self.service = service_process.ServiceProcess(folder, self.settings() | self.backend.settings | environment)
        await self.service.start()
        self.point_callbacks()
        return self.service

    def point_callbacks(self) -> None:
        """Send TRTC's callbacks to the service."""
        self.simulator.configure_app(APP, callback_url=f"{self.service.url}/trtc/callbacks", callback_key=CALLBACK_KEY)

    def settings(self) -> dict[str, str]:
        """The settings that make the simulator Tencent."""
        return {
            "PULL_ADDRESS": self.simulator.pull_template,
            "COS_ENDPOINT": self.simulator.url,
            "TRTC_CALLBACK_KEYS": json.dumps({str(APP): CALLBACK_KEY}),
            "CALLBACK_ALLOW": "127.0.0.1",
            "CALLBACK_SECRET": "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0",
            "MIN_FREE": "1MiB",
        }

    def request(self, room: int | str, **more: Any) -> dict[str, Any]:
        """The body of a start; its result goes to the simulator's receiver of the room's name."""
        cos = {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", "SecretId": SECRET_ID, "SecretKey": SECRET_KEY}
        where = {"RoomId": room} if isinstance(room, int) else {"StrRoomId": room}
        callback = self.simulator.receiver_url(quote(receiver(room), safe=""))
        start = {"SdkAppId": APP, "UserId": "recorder", "UserSig": "any", "CosConfig": cos, "Callback": callback}
        return start | where | more

    def results(self, room: int | str) -> list[Any]:
        """The results that a room's receiver got, in order."""
        return [r.json() for r in self.simulator.receiver.received[receiver(room)]]

    def object_path(self, url: str) -> Path:
        """The file in which the simulator stores the object of a RecordFile."""
        host, key = url.removeprefix("https://").split("/", 1)
        return self.simulator.folder / "cos" / host.split(".")[0] / key


@pytest.fixture(params=backends.NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the service."""
    return str(request.param)


@pytest.fixture
async def world(tmp_path: Path, loops: Path, engine: str) -> AsyncIterator[World]:
    account = signature.Account(secret_id=SECRET_ID, secret_key=SECRET_KEY)
    simulator = server.Simulator(
        folder=tmp_path / "tencent", content_folder=loops, accounts=[account], buckets=[BUCKET], announce_pulls=True
    )
    await simulator.start()
    made = World(tmp_path, simulator, engine)
    yield made
    if hasattr(made, "service"):
        await made.service.stop()
    if made.backend is not None:
        await made.backend.remove(made.service.log)
    await simulator.stop()


async def live_for(seconds: float) -> None:
    """Keep the room live for a duration: real time is the subject here, so it has to pass."""
    await waiting.passed(seconds)
