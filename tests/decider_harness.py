"""A harness for the deciding handlers: sends events and reads the results, on a real store and a clock that the test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from events import codec, requests
from handlers import dispatch, unit_of_work
from machine import job_key, model
from store import queries
from store import store as stores
from tests import engines, transactions

APP = 1400000001
LEASE_MS = 30_000
# Secrets carry a mark, so that a test can find them where they must not be.
SECRETS = {"SecretId": "MARK-id", "SecretKey": "MARK-key", "Token": "MARK-token"}
COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p", **SECRETS}
START: dict[str, Any] = {"SdkAppId": APP, "RoomId": 88, "UserId": "rec", "UserSig": "MARK-sig", "CosConfig": COS}
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}


@dataclass(slots=True)
class Harness:
    """Sends events to the deciding handlers and reads the results."""

    store: stores.Store
    clock: engines.Clock
    decider: dispatch.Decider
    reading: queries.SessionQueries
    new_id: Any = field(default_factory=lambda: engines.ids("e"))

    async def say(self, type_: str, id_: str = "", **data: Any) -> dict[str, Any]:
        """Decide one event, with a new id unless it has one."""
        return await self.decider.decide(codec.make(type_, id=id_ or self.new_id(), time_ms=self.clock(), data=data))

    async def start(self, **changes: Any) -> str:
        """Start a session; returns its TaskId."""
        data = START | {"Mode": "02"} | changes
        answer = await self.say("start", **{k: v for k, v in data.items() if v is not None})
        return str(answer["TaskId"])

    async def trtc(self, type_: str, user: str = "al", ago_ms: int = 0, **data: Any) -> None:
        """A TRTC callback about room 88."""
        room = {} if "StrRoomId" in data or "RoomId" in data else {"RoomId": 88}
        about = {} if type_ == "room-destroyed" else {"UserId": user}
        await self.say(type_, SdkAppId=APP, EventMs=self.clock() - ago_ms, **room, **about, **data)

    async def publish(self, user: str = "al", **data: Any) -> None:
        """A speaker switches audio on."""
        await self.trtc("user-publishing", user, **({"Kind": "audio"} | data))

    async def take(self, owner: str, node: str = "n1") -> int:
        """A worker takes the present job; returns its epoch."""
        epoch = (await self.recording(owner)).epoch
        assert await self.store.leases.take(job_key.parse_job(owner), epoch, node, LEASE_MS)
        if (await self.recording(owner)).capture == "leased":
            await self.store.segments.register(job_key.parse_recording(owner), epoch, node)
        return epoch

    async def outcome(self, type_: str, owner: str, epoch: int, **data: Any) -> None:
        """A worker's outcome of a recording's job."""
        await self.say(type_, **job_key.parse_recording(owner).fields(), Epoch=epoch, **data)

    async def capture(self, owner: str, *, media_ms: int = 5_000, reason: str = "stopped", **data: Any) -> None:
        """A capture is taken, brings media, and ends."""
        epoch = await self.take(owner)
        if media_ms:
            await self.outcome("capture-started", owner, epoch, FirstPacketMs=self.clock())
        await self.outcome(
            "ffmpeg-exit", owner, epoch, Job="capture", Reason=reason, MediaMs=media_ms, SizeBytes=media_ms, **data
        )

    async def transcode(self, owner: str, *, good: bool = True) -> None:
        """The transcode is taken and ends."""
        said = {"Reason": "ok", "Output": OUTPUT} if good else {"Reason": "ffmpeg-failed", "Detail": "bad frame", "Retry": False}
        await self.outcome("ffmpeg-exit", owner, await self.take(owner), Job="transcode", **said)

    async def upload(self, owner: str, *, good: bool = True, retry: bool = False) -> None:
        """The upload is taken and ends."""
        epoch = await self.take(owner)
        if good:
            await self.outcome("upload-finished", owner, epoch, SizeBytes=11, Crc64="2", Url=f"https://cos/{owner}")
        else:
            await self.outcome("upload-failed", owner, epoch, Reason="refused", Detail="AccessDenied", Retry=retry)

    async def recorded(self, owner: str) -> None:
        """Take a recording whose session is closing from its first packet to Done."""
        await self.transcode(owner)
        await self.upload(owner)

    async def pending_upload(self, **changes: Any) -> str:
        """A session that finished while one upload is still retried. Returns the recording's id."""
        task_id = await self.start(**changes)
        await self.publish()
        owner = f"{task_id}/al/1"
        epoch = await self.take(owner)
        await self.outcome("capture-started", owner, epoch)
        await self.say("stop", TaskId=task_id)
        await self.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=4_000)
        await self.transcode(owner)
        for _ in range(20):
            await self.upload(owner, good=False, retry=True)
            await self.wait(60_000)
            if (await self.recording(owner)).job != model.Job(kind="upload", state="queued"):
                break
        return owner

    async def wait(self, ms: int) -> None:
        """Let time pass in the steps of the deadlines on the way, each of which is published."""
        end_ms = self.clock() + ms
        while True:
            for deadline in await self.store.deadlines.due():
                await self.say("deadline-passed", Owner=str(deadline.owner), Kind=deadline.kind, Serial=deadline.serial)
            if self.clock() >= end_ms:
                return
            self.clock.now_ms = min(end_ms, await self.next_ms() or end_ms)

    async def jump(self, ms: int) -> None:
        """Let time pass in one step; overdue deadlines are published late."""
        self.clock.advance(ms)
        await self.wait(0)

    async def next_ms(self) -> int:
        """The time of the next deadline."""
        async with self.store.connections.read() as connection:
            query = text("SELECT min(at_ms) FROM deadlines WHERE at_ms > :now")
            return int((await connection.execute(query, {"now": self.clock()})).scalar() or 0)

    async def recording(self, owner: str) -> model.Recording:
        """One recording, read from the store."""
        async with transactions.opened(self.store) as tx:
            found = await tx.recording(job_key.parse_recording(owner))
        assert found is not None
        return found

    async def deliveries(self, task_id: str) -> list[model.Delivery]:
        """The deliveries of a session's results."""
        return (await self.reading.parts([task_id], bodies=True))[task_id].deliveries

    async def states(self, task_id: str) -> dict[str, str]:
        """speaker/n → state of a session's recordings."""
        async with transactions.opened(self.store) as tx:
            return {f"{r.speaker}/{r.n}": r.state for r in await tx.read("recordings", task_id)}

    async def session(self, task_id: str) -> model.Session:
        """One session, read from the store."""
        found = await self.reading.session(task_id)
        assert found is not None
        return found

    async def messages(self, channel: str = "") -> list[codec.Event]:
        """Unsent messages in the outbox, in order."""
        return [codec.decode(m.body, now_ms=0) for m in await self.store.outbox.unsent(1_000) if channel in ("", m.channel)]

    async def commands(self, owner: str) -> list[tuple[str, int]]:
        """(type, epoch) of the commands to one recording, in order."""
        return [(m.type, m.data["Epoch"]) for m in await self.messages("command") if m.subject == owner]

    async def notes(self, task_id: str) -> str:
        """All notes of a session's timeline, as one text."""
        return "\n".join(line.note for line in await self.reading.timeline(task_id))


def _object_url(_: requests.StartRequest, recording: model.Recording) -> str:
    return f"https://cos/{recording.task_id}/{recording.speaker}_{recording.object_number}"


def connect(
    store: stores.Store,
    clock: engines.Clock,
    inspect: dispatch.Inspect | None = None,
    *,
    prefix: str = "01",
    **given: Any,
) -> Harness:
    """A harness with the default policy; `given` are other fields of the handlers' context. `prefix` distinguishes its ids from
    those of another one on the same database."""
    defaults = {"policy": model.Policy(), "new_id": engines.ids(prefix), "object_url": _object_url}
    context = unit_of_work.Context(**(defaults | given))
    decider, reading = dispatch.Decider(store, context, inspect), queries.SessionQueries(store.connections)
    return Harness(store, clock, decider, reading, engines.ids(f"e{prefix}"))


@asynccontextmanager
async def opened(database: engines.Database, clock: engines.Clock, prefix: str) -> AsyncIterator[Harness]:
    """A harness on a store of its own, whose connections end with the block."""
    store = database.open(clock)
    try:
        yield connect(store, clock, prefix=prefix)
    finally:
        await store.stop()
