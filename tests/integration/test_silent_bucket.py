"""A bucket that takes requests and never answers, beside one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tencent import cos, cos_requests, cos_target
from tests import waiting
from tests.integration import scripted_cos

SILENT = "silent-1250000000"
THREADS = 2


class Held:
    """Requests to the silent bucket, which wait for `answered`."""

    def __init__(self, server: scripted_cos.Cos) -> None:
        self.answered = asyncio.Event()
        self.waiting = 0
        server.script = {operation: [self.hold] * 100 for operation in ("begun", "create", "part", "complete", "head", "parts")}

    async def hold(self, _: scripted_cos.Cos, request: web.Request) -> None:
        """Let a request to another bucket through."""
        if request.host.startswith(SILENT):
            self.waiting += 1
            await self.answered.wait()


@pytest.fixture
async def server() -> AsyncIterator[scripted_cos.Cos]:
    async with scripted_cos.serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(threads=THREADS, first_part_bytes=scripted_cos.MIB, silence_timeout_s=waiting.limit_s(120))
    await one.start()
    yield one
    await one.stop()


async def test_a_bucket_that_never_answers_takes_no_thread_of_another(
    uploader: cos.CosUploader, server: scripted_cos.Cos, tmp_path: Path
) -> None:
    """Uploads and live uploads take all threads that one bucket may have, and their requests are not answered. An upload to
    another bucket ends meanwhile. When the silent bucket answers, its uploads end too."""
    held, path = Held(server), tmp_path / "file.mp4"
    path.write_bytes(bytes(3 * scripted_cos.MIB))

    def silent(number: int) -> cos_target.CosTarget:
        endpoint = ("http", "127.0.0.1", server.port)
        return cos_target.CosTarget(region=scripted_cos.REGION, bucket=SILENT, key=f"room/{number}.mp4", endpoint=endpoint)

    async def look(number: int) -> None:
        async def connect() -> cos_requests.Client:
            return uploader.connect(silent(10 + number), scripted_cos.KEYS)

        live = uploader.live(path, silent(10 + number))
        await live.look(connect)
        await live.close()

    async def upload(number: int) -> None:
        await uploader.upload(path, silent(number), scripted_cos.KEYS, state=None, save=scripted_cos.Notes().save)

    tasks = [asyncio.create_task(work(number)) for number in range(4) for work in (upload, look)]
    try:
        await waiting.until(lambda: held.waiting == THREADS, what="requests to the silent bucket")
        async with waiting.at_most(30):
            await scripted_cos.upload(uploader, path, server)
        assert server.objects[scripted_cos.KEY] == path.read_bytes()
        assert (held.waiting, held.answered.is_set()) == (THREADS, False)
    finally:
        held.answered.set()
        await asyncio.gather(*tasks)
    assert {f"room/{number}.mp4" for number in range(4)} < server.objects.keys()


async def test_cancelled_uploads_leave_their_turns(uploader: cos.CosUploader, server: scripted_cos.Cos, tmp_path: Path) -> None:
    """Uploads that are cancelled while they wait for a thread of their bucket, or in the moment that they get one, take none."""
    held, path = Held(server), tmp_path / "file.mp4"
    path.write_bytes(bytes(scripted_cos.MIB))

    async def upload(number: int) -> None:
        endpoint = ("http", "127.0.0.1", server.port)
        target = cos_target.CosTarget(region=scripted_cos.REGION, bucket=SILENT, key=f"room/{number}.mp4", endpoint=endpoint)
        await uploader.upload(path, target, scripted_cos.KEYS, state=None, save=scripted_cos.Notes().save)

    tasks = [asyncio.create_task(upload(number)) for number in range(12)]
    await waiting.until(lambda: held.waiting == THREADS, what="requests to the silent bucket")
    for task in tasks[:8]:
        task.cancel()
    held.answered.set()
    await waiting.until(lambda: held.waiting > THREADS, what="the next ones")
    for task in tasks[8:10]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {"room/10.mp4", "room/11.mp4"} <= server.objects.keys()
    await upload(12)
    assert "room/12.mp4" in server.objects
