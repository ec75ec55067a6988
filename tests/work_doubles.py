"""Test doubles of a worker's work, and a node on a real store and machine that a test drives message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from events import codec
from handlers import dispatch, unit_of_work
from machine import capture_progress, due_work, job_key, model, segments, uploaded_object
from store import store as stores
from tests import engines, transactions, waiting
from worker import command_handlers, work_ports, worker

ROOM = {"SdkAppId": 1400000001, "RoomId": 88}
COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p", "SecretId": "i", "SecretKey": "k"}
POLICY = model.Policy(lease_ms=600)


async def measured() -> None:
    """The measurement of a spool whose figures a test gives."""


class Capture:
    """A capture that ends on the test's request."""

    def __init__(self, on_media: work_ports.OnMedia) -> None:
        self.on_media = on_media
        self.progress = capture_progress.CaptureProgress()
        self.started = self.stopped = self.killed = False
        self._ended: asyncio.Future[capture_progress.CaptureExit] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True
        self.end("stopped")

    def kill(self) -> None:
        self.killed = True
        self.end("stopped")

    async def wait(self) -> capture_progress.CaptureExit:
        return await asyncio.shield(self._ended)

    def media(self, media_ms: int, clock: engines.Clock) -> None:
        self.progress = capture_progress.CaptureProgress(
            media_ms=media_ms, size_bytes=media_ms, first_packet_ms=clock() - media_ms, last_packet_ms=clock()
        )
        self.on_media(self.progress)

    def end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(capture_progress.CaptureExit(reason=reason, detail="", progress=self.progress))


@dataclass
class RecordedWork:
    """Work that records its calls."""

    captures: list[Capture] = field(default_factory=list)
    transcodes: int = 0
    failure: Exception | None = None
    scanned: capture_progress.CaptureProgress = field(default_factory=capture_progress.CaptureProgress)
    unreadable: bool = False
    removed: list[str] = field(default_factory=list)
    fetched: list[tuple[int, str]] = field(default_factory=list)
    joined: list[list[int]] = field(default_factory=list)
    manifests: list[due_work.ManifestAssignment] = field(default_factory=list)
    stuck: int = 0
    spool_problem: str = ""
    following: set[job_key.RecordingKey] = field(default_factory=set)
    unfollowed: list[tuple[job_key.RecordingKey, dict[str, Any] | None]] = field(default_factory=list)

    def capture(self, job: due_work.Assignment, epoch: int, on_media: work_ports.OnMedia) -> work_ports.Capture:
        self.captures.append(Capture(on_media))
        return self.captures[-1]

    def follows(self, recording: job_key.RecordingKey) -> bool:
        return recording in self.following

    def followed(self) -> list[job_key.RecordingKey]:
        return sorted(self.following, key=str)

    async def unfollow(self, recording: job_key.RecordingKey, upload: dict[str, Any] | None) -> None:
        self.following.discard(recording)
        self.unfollowed.append((recording, upload))

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> capture_progress.CaptureProgress:
        if self.unreadable:
            raise OSError(5, "Input/output error")
        return self.scanned

    async def transcode(self, job: due_work.Assignment, epoch: int, parts: Sequence[segments.Segment]) -> model.Output:
        self.transcodes += 1
        self.joined.append([segment.epoch for segment in parts])
        if self.failure:
            raise self.failure
        return model.Output(duration_ms=1000, size_bytes=10)

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        self.fetched.append((epoch, url))
        return True

    async def upload(
        self, job: due_work.Assignment, state: dict[str, Any] | None, save: work_ports.SaveState
    ) -> uploaded_object.UploadedObject:
        await save({"reached": 1})
        return uploaded_object.UploadedObject(size_bytes=10, crc64="1", url="https://x")

    async def deliver(self, delivery: model.Delivery) -> None:
        return None

    async def write_manifest(self, manifest: due_work.ManifestAssignment) -> None:
        if self.failure:
            raise self.failure
        self.manifests.append(manifest)

    async def remove(self, recording_id: str, until_epoch: int) -> int:
        if self.stuck:
            self.stuck -= 1
            raise OSError("the disk does not answer")
        self.removed.append(recording_id)
        return 1

    async def remove_outputs(self, recording_id: str, before_epoch: int, except_epoch: int) -> int:
        raise AssertionError("nothing is left over")

    async def probe_spool(self) -> str:
        return self.spool_problem

    async def task_ids_on_spool(self) -> list[str]:
        return []


class Node:
    """One node's worker and its surroundings, driven message by message."""

    def __init__(self, store: stores.Store, clock: engines.Clock, policy: model.Policy = POLICY) -> None:
        self.store = store
        self.clock = clock
        self.policy = policy
        self.work = RecordedWork()
        self._ids = 0
        self.decider = dispatch.Decider(store, unit_of_work.Context(policy=policy, new_id=self.new_id))
        self.worker = self.new_worker()

    def new_worker(self) -> worker.Worker:
        return worker.Worker(self.store, self.work, node="node-1", policy=self.policy, clock=self.clock)

    def new_id(self) -> str:
        self._ids += 1
        return f"01{self._ids:024d}"

    async def say(self, type_: str, **data: Any) -> dict[str, Any]:
        event = codec.make(type_, id=self.new_id(), time_ms=self.clock(), data=data)
        return await self.decider.decide(event)

    async def relay(self) -> list[str]:
        """Relay all unsent messages; returns their types."""
        types = []
        while messages := await self.store.outbox.unsent():
            for message in messages:
                event = codec.decode(message.body, now_ms=self.clock())
                types.append(event.type)
                if message.channel == "event":
                    await self.decider.decide_from_bus(event)
                elif message.channel == "command":
                    await command_handlers.handle(self.worker, event)
                await self.store.outbox.mark_sent(message.seq)
        return types

    async def relayed(self, type_: str) -> None:
        """Relay until a message of this type was delivered."""

        async def came() -> bool:
            return type_ in await self.relay()

        await waiting.until(came, what=type_)

    async def recording(self) -> model.Recording:
        async with transactions.opened(self.store) as tx:
            (found,) = await tx.read("recordings", self.task_id)
        return found

    async def open(self) -> Capture:
        """A session with one speaker whose capture runs."""
        self.task_id = (await self.say("start", **ROOM, UserId="rec", UserSig="s", CosConfig=COS))["TaskId"]
        await self.say("user-publishing", **ROOM, UserId="al", EventMs=self.clock(), Kind="audio")
        await self.relay()
        return await waiting.until(lambda: next((c for c in self.work.captures if c.started), None), what="the capture")


@pytest.fixture
async def node(store: stores.Store, clock: engines.Clock) -> AsyncIterator[Node]:
    made = Node(store, clock)
    await made.worker.start()
    yield made
    await made.worker.stop()
    await made.worker.stop()
