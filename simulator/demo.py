"""The demo: a real service records a simulated room with two speakers, and the demo checks and prints the result.

Rules: it talks to the service over HTTP, as an application would. It prints only values that it has checked, and a wrong result
raises WrongResult.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import fastcrc
from rich import console, live, table

from simulator import live as live_stream
from simulator import rooms, server
from simulator.cos import signature

APP = 1400000001
ROOM = 8489
SPEAKERS = ("alice", "bob")
REGION, BUCKET = "ap-shanghai", "demo-1250000000"
ACCOUNT = signature.Account(secret_id="AKIDdemo", secret_key="demo-secret-key")  # noqa: S106 - the stand-in's own key
CALLBACK_KEY = "demo-callback-key"
CALLBACK_SECRET = "whsec_ZGVtby1kZW1vLWRlbW8tZGVtby1kZW1vLWRlbW8h"  # noqa: S105 - likewise
RECEIVER = "demo"
STUCK_LIMIT_S = 120.0
"""Nothing moves for so long on no machine: no media, no state."""
TOLERANCE_S = 1.0
"""Between a file and its stream: the service counts media when it is written, the simulator when it is sent."""
REFRESH_S = 0.25
LINE_EVERY_S = 2.0


class WrongResult(Exception):
    """The recorded files differ from the live streams; the text names the difference."""


def settings(simulator: server.Simulator) -> dict[str, str]:
    """The settings of a service that uses the simulator as Tencent."""
    return {
        "PULL_ADDRESS": simulator.pull_template,
        "COS_ENDPOINT": simulator.url,
        "TRTC_CALLBACK_KEYS": json.dumps({str(APP): CALLBACK_KEY}),
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "CALLBACK_ALLOW": "127.0.0.1",
    }


@dataclass(slots=True, kw_only=True)
class Demo:
    """One run. `progress` tells the media captured so far: recording id → ms."""

    simulator: server.Simulator
    service_url: str
    live_s: float
    progress: Callable[[], Mapping[str, int]]
    screen: console.Console
    sent: dict[str, live_stream.Stream] = field(default_factory=dict)

    async def run(self) -> None:
        """Record the room, print the result and the objects. Raises WrongResult."""
        self.simulator.configure_app(APP, callback_url=f"{self.service_url}/trtc/callbacks", callback_key=CALLBACK_KEY)
        async with aiohttp.ClientSession() as http:
            room = self.simulator.create_room(APP, ROOM)
            task_id = await self._start(http)
            self.screen.print(f"Session [bold]{task_id}[/] is open for integer room {ROOM}. {' and '.join(SPEAKERS)} go live.")
            for name in SPEAKERS:
                self.sent[name] = (await room.join(name)).stream
            await self._watch(http, task_id, room)
        result = self._result()
        self.screen.print("\nThe result, as the callback received it (signature verified):")
        self.screen.print_json(json.dumps(result, ensure_ascii=False))
        self.screen.print("\nThe objects:")
        for entry in result["Files"]:
            path = self._check_file(entry)
            self.screen.print(f"  {path}  {entry['Size']} bytes, {entry['Duration']:.1f} s", soft_wrap=True, markup=False)
        # In the order in which they were heard of, and callbacks overtake each other.
        if sorted(entry["UserId"] for entry in result["Files"]) != sorted(SPEAKERS):
            raise WrongResult(f"Files should name {', '.join(SPEAKERS)}, each once.")
        if result["EndReason"] != "RoomDestroyed" or result["Revision"] != 1:
            raise WrongResult("EndReason should be RoomDestroyed, and Revision 1.")

    async def _start(self, http: aiohttp.ClientSession) -> str:
        cos = {"Region": REGION, "Bucket": BUCKET, "Path": "lessons"}
        keys = {"SecretId": ACCOUNT.secret_id, "SecretKey": ACCOUNT.secret_key}
        request = {"SdkAppId": APP, "RoomId": ROOM, "UserId": "recorder", "UserSig": "demo", "Mode": "02"}
        request |= {"CosConfig": cos | keys, "Callback": self.simulator.receiver_url(RECEIVER)}
        async with http.post(f"{self.service_url}/sessions", json=request) as answer:
            said = await answer.json()
            if answer.status != 202:
                raise WrongResult(f"The start was answered {answer.status}: {said.get('Message')}")
            return str(said["TaskId"])

    async def _watch(self, http: aiohttp.ClientSession, task_id: str, room: rooms.Room) -> None:
        """Show what happens until the callback has come; the room is dismissed when both were captured for `live_s` seconds.
        On a busy machine that takes longer: it fails only when nothing has moved for `STUCK_LIMIT_S`."""
        captured: dict[str, int] = {}
        moved_s, last, next_line_s = time.monotonic(), "", 0.0
        with live.Live(console=self.screen, auto_refresh=False, transient=False) as shown:
            while not self.simulator.receiver.received[RECEIVER]:
                async with http.get(f"{self.service_url}/sessions/{task_id}") as answer:
                    session = await answer.json()
                captured |= self.progress()
                shown.update(_picture(session, captured), refresh=self.screen.is_terminal)
                if not self.screen.is_terminal and time.monotonic() >= next_line_s:
                    next_line_s = time.monotonic() + LINE_EVERY_S
                    self.screen.print(_line(session, captured))
                enough = [ms for ms in captured.values() if ms >= self.live_s * 1000]
                if room.exists and len(enough) == len(SPEAKERS):
                    await room.dismiss()
                now = _line(session, captured)
                moved_s, last = (time.monotonic(), now) if now != last else (moved_s, last)
                if time.monotonic() > moved_s + STUCK_LIMIT_S:
                    raise WrongResult(f"No result, and nothing has moved for {STUCK_LIMIT_S:.0f} s: {now.strip()}.")
                await asyncio.sleep(REFRESH_S)
            async with http.get(f"{self.service_url}/sessions/{task_id}") as answer:
                shown.update(_picture(await answer.json(), captured), refresh=True)

    def _result(self) -> dict[str, Any]:
        # A service whose post was answered late posts the same again, under the same id.
        received, *again = self.simulator.receiver.received[RECEIVER]
        headers = {name.lower(): value for name, value in received.headers.items()}
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
        key = base64.b64decode(CALLBACK_SECRET.removeprefix("whsec_"))
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        if headers.get("webhook-signature") != f"v1,{digest}":
            raise WrongResult("The callback's signature does not hold.")
        if any(repeated.body != received.body for repeated in again):
            raise WrongResult("Two different results were posted.")
        body: dict[str, Any] = json.loads(received.body)
        return body

    def _check_file(self, entry: Mapping[str, Any]) -> Path:
        who = entry["UserId"]
        if entry["Status"] != 1:
            raise WrongResult(f"{who}: {entry['Message']} ({entry['Detail']})")
        key = str(entry["RecordFile"]).removeprefix(f"https://{BUCKET}.cos.{REGION}.myqcloud.com/")
        path = self.simulator.folder / "cos" / BUCKET / key
        if not path.is_file():
            raise WrongResult(f"{who}: {path} is not there.")
        content = path.read_bytes()
        if len(content) != entry["Size"] or str(fastcrc.crc64.xz(content)) != entry["Crc64"]:
            raise WrongResult(f"{who}: {path} is not the file that was reported.")
        # Both were captured for live_s at least, and whoever came first for as long as the other took to come.
        sent_s = self.sent[who].last_ms / 1000
        if not self.live_s - TOLERANCE_S <= entry["Duration"] <= sent_s + TOLERANCE_S:
            raise WrongResult(f"{who}: {entry['Duration']} s were recorded; {self.live_s} to {sent_s} s were live.")
        return path


def _picture(session: Mapping[str, Any], captured: Mapping[str, int]) -> table.Table:
    grid = table.Table(title=f"Session {session.get('State')}", title_justify="left", box=None)
    for heading in ("speaker", "state", "captured"):
        grid.add_column(heading, min_width=12)
    for recording in session.get("Recordings", ()):
        grid.add_row(recording["Speaker"], recording["State"], f"{_captured_s(session, recording, captured):.1f} s")
    return grid


def _line(session: Mapping[str, Any], captured: Mapping[str, int]) -> str:
    """The same in one line, for an output that cannot be drawn over."""
    parts = [f"{r['Speaker']} {r['State']} {_captured_s(session, r, captured):.1f} s" for r in session.get("Recordings", ())]
    return f"  {session.get('State')}: {', '.join(parts) or 'nobody yet'}"


def _captured_s(session: Mapping[str, Any], recording: Mapping[str, Any], captured: Mapping[str, int]) -> float:
    return captured.get(f"{session['TaskId']}/{recording['Speaker']}/{recording['N']}", 0) / 1000
