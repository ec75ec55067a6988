"""Simulator viewer: receives a stream, decodes its flashes, beeps and bar codes, and reads the delivered callbacks."""

from __future__ import annotations

import array
import contextlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import av

from simulator import barcode, callbacks, flv, server
from tests import waiting

APP = 1400000001
CALLBACK_KEY, USER_SIG_KEY = "123654", "user-sig-key"


@contextlib.asynccontextmanager
async def running(folder: Path, loops: Path) -> AsyncIterator[server.Simulator]:
    """A simulator whose callbacks about APP go to its own receiver, with a quick retry rule."""
    rule = callbacks.RetryRule(timeout_s=1.0, pause_s=0.1, give_up_after_s=0.5)
    made = server.Simulator(folder=folder, content_folder=loops, retry_rule=rule)
    await made.start()
    made.configure_app(APP, callback_url=made.receiver_url("trtc"), callback_key=CALLBACK_KEY)
    yield made
    await made.stop()


def address(simulator: server.Simulator, room: int | str, of: str, **query: str) -> str:
    values = {"room": str(room), "sdkappid": str(APP), "userid": "recorder", "usersig": "any", "speaker": of} | query
    encoded = {name: quote(value, safe="") for name, value in values.items()}
    return simulator.pull_template.format(**encoded, number_room="&use_number_room_id=1" if isinstance(room, int) else "")


@dataclass
class Recording:
    """The stream that one viewer has received so far; `ended` is how it ended."""

    status: int = 0
    data: bytes = b""
    ended: str = ""

    def tags(self, kind: int | None = None) -> list[tuple[int, int, bytes]]:
        if len(self.data) < 13:
            return []
        return [tag for tag in flv.tags(self.data) if kind in (None, tag[0])]

    @property
    def last_ms(self) -> int:
        return self.tags()[-1][1] if self.tags() else 0


async def receive(http: aiohttp.ClientSession, url: str, recording: Recording) -> None:
    try:
        async with http.get(url) as answer:
            recording.status = answer.status
            async for data in answer.content.iter_any():
                recording.data += data
        recording.ended = "eof"
    except aiohttp.ClientError as error:
        recording.ended = type(error).__name__


async def media(recording: Recording, until_ms: int) -> None:
    await waiting.until(lambda: recording.last_ms >= until_ms, what=f"media up to {until_ms} ms")


def events(simulator: server.Simulator) -> list[dict[str, Any]]:
    return [json.loads(received.body) for received in simulator.receiver.received["trtc"]]


async def until_events(simulator: server.Simulator, *types: int) -> None:
    await waiting.until(lambda: [message["EventType"] for message in events(simulator)] == list(types), what=str(types))


def seen_flashes(data: bytes) -> list[tuple[float, barcode.Reading]]:
    """The beginnings of flashes, in seconds of the file, with the bar code at each; every picture's bar code must be readable."""
    found, lit = [], False
    with av.open(io.BytesIO(data), format="flv") as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            luma, size = bytes(plane), (frame.width, frame.height)
            reading = barcode.read(luma, *size, stride=plane.line_size)
            assert reading is not None
            before, lit = lit, barcode.flashes(luma, *size, stride=plane.line_size)
            if lit and not before:
                found.append((float(frame.time), reading))
    return found


def heard_beeps(data: bytes) -> list[float]:
    """The beginnings of beeps, in seconds of the file."""
    found, last_s = [], -1.0
    with av.open(io.BytesIO(data), format="flv") as container:
        for frame in container.decode(audio=0):
            samples = array.array("f", bytes(frame.planes[0])[: frame.samples * 4])
            for number in range(0, len(samples), 8):
                if max(map(abs, samples[number : number + 8])) > 0.2:
                    at_s = float(frame.time) + number / frame.sample_rate
                    if at_s - last_s > 0.3:
                        found.append(at_s)
                    last_s = at_s
    return found
