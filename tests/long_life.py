"""A long life of one recording: every handler and every call of workers, sweeper and operators, each measured.

Rule: its history may be of any length; the calls are the same.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from events import codec
from machine import capture_progress, due_work, job_key, model, session_view
from tests import decider_harness, engines, history, statement_meter

Value = TypeVar("Value")
KEY = model.Caller(name="school", key_id="k1", quota=5, operates=False)
URL = "https://receiver.example/results"
NODE = "n1"


@dataclass(slots=True)
class Life:
    """One session with one speaker, on a database whose history was made before. `pulls`: earlier runs of its capture. `others`:
    speakers who publish in the same room."""

    harness: decider_harness.Harness
    meter: statement_meter.Meter | None = None
    pulls: int = 0
    others: int = 0
    room: int = 88
    task_id: str = ""

    @property
    def _owner(self) -> job_key.RecordingKey:
        return job_key.RecordingKey(self.task_id, "al", 1)

    async def run(self) -> None:
        """Live from the start to the second revision of the result."""
        await self.begin()
        await self.go_on()

    async def go_on(self) -> None:
        """Live on after the first pull."""
        await self.speak()
        await self._finish()
        await self._revise()
        await self._sweep()
        await self._look()

    async def speak(self) -> None:
        """Live on until the room ends: events of this speaker alone."""
        await self._flap()
        await self._speak()

    async def _measure(self, name: str, call: Awaitable[Value]) -> Value:
        return await (self.meter.measure(name, call) if self.meter is not None else call)

    async def _say(self, type_: str, id_: str = "", by: model.Caller | None = None, **data: Any) -> None:
        event = codec.make(type_, id=id_ or self.harness.new_id(), time_ms=self.harness.clock(), data=data)
        answer = await self._measure(type_, self.harness.decider.decide(event, by))
        if type_ == "start":
            self.task_id = answer["TaskId"]

    async def _trtc(self, type_: str, **data: Any) -> None:
        user = {} if type_ == "room-destroyed" else {"UserId": data.pop("user", "al")}
        await self._say(type_, SdkAppId=decider_harness.APP, RoomId=self.room, EventMs=self.harness.clock(), **user, **data)
        self.harness.clock.advance(10)

    async def _job(self, type_: str, **data: Any) -> None:
        await self._say(type_, **self._owner.fields(), Epoch=await self._epoch(), **data)

    async def _epoch(self) -> int:
        return (await self.harness.recording(self._owner.text)).epoch

    async def _take(self) -> None:
        epoch, store = await self._epoch(), self.harness.store
        taken = await self._measure("take", store.leases.take(self._owner, epoch, NODE, decider_harness.LEASE_MS))
        assert taken
        await self._measure("assignment", store.assignments.recording(self._owner))

    async def _capture(self) -> None:
        await self._take()
        await self._measure("register", self.harness.store.segments.register(self._owner, await self._epoch(), NODE))

    async def _wait(self, ms: int) -> None:
        """Let time pass; the deadlines on the way are handled."""
        self.harness.clock.advance(ms)
        for due in await self._measure("due", self.harness.store.deadlines.due()):
            await self._say("deadline-passed", Owner=due.owner.text, Kind=due.kind, Serial=due.serial)

    async def begin(self) -> None:
        """Start, and pull. Then the earlier pulls are added, as if there had been so many before this one."""
        start = decider_harness.START | {"RoomId": self.room, "Mode": "02", "Callback": URL}
        id_ = self.harness.new_id()
        if self.others:
            await history.add_users(self.harness.store, self.harness.clock(), self.others, room=str(self.room))
        await self._say("start", id_, KEY, **start)
        await self._say("start", id_, KEY, **start)
        await self._say("start", by=KEY, **start)
        await self._trtc("user-entered")
        await self._trtc("user-publishing", Kind="audio")
        await self._capture()
        if self.pulls:
            await history.add_pulls(self.harness.store, self._owner, self.pulls, media_ms=0)
            await history.analyze(self.harness.store)

    async def _flap(self) -> None:
        """The pull ends without media, and another follows."""
        await self._job("ffmpeg-exit", Job="capture", Reason="eof", MediaMs=0, SizeBytes=0)
        await self._wait(12_000)
        await self._capture()

    async def _speak(self) -> None:
        store, clock = self.harness.store, self.harness.clock
        await self._job("capture-started", FirstPacketMs=clock())
        await self._trtc("user-publishing", Kind="video")
        await self._trtc("user-unpublished", Kind="video")
        await self._trtc("user-removed", user="rec", Reason=1)
        clock.advance(5_000)
        await self._trtc("user-left", user="rec", Reason=1)
        key = self._owner, await self._epoch()
        progress = capture_progress.CaptureProgress(
            media_ms=5_000, size_bytes=5_000, first_packet_ms=clock() - 5_000, last_packet_ms=clock()
        )
        await self._measure("renew", store.leases.renew_all([key], NODE, decider_harness.LEASE_MS))
        await self._measure("progress", store.segments.note_progress({key: progress}))
        await self._measure("update", store.segments.update(*key, {"media_ms": 5_100}))
        await self._measure("held", store.leases.is_held(*key, NODE))
        packets = {"FirstPacketMs": clock() - 5_000, "LastPacketMs": clock()}
        await self._job("ffmpeg-exit", Job="capture", Reason="eof", MediaMs=5_000, SizeBytes=5_000, **packets)
        await self._wait(2_000)
        await self._capture()
        await self._say(
            "worker-lost", Owner=self._owner.text, Epoch=await self._epoch(), Node=NODE, MediaMs=100, LastPacketMs=clock()
        )
        await self._wait(12_000)
        await self._trtc("user-left")
        await self._trtc("user-publishing", Kind="audio")
        await self._capture()
        await self._job("capture-started", FirstPacketMs=clock())

    async def _finish(self) -> None:
        await self._trtc("room-destroyed")
        await self._job("ffmpeg-exit", Job="capture", Reason="stopped", MediaMs=900, SizeBytes=900)
        await self._take()
        await self._job("ffmpeg-exit", Job="transcode", Reason="ok", Output=decider_harness.OUTPUT)
        await self._take()
        await self._job("upload-failed", Reason="timeout", Detail="no answer", Retry=True)
        await self._wait(3_000)
        await self._take()
        await self._job("upload-finished", SizeBytes=11, Crc64="2", Url="https://cos/1")
        await self._say("stop", by=KEY, TaskId=self.task_id)

    async def _revise(self) -> None:
        """The receiver fails once, a replay makes another revision, and an operator has that one posted again."""
        await self._deliver("callback-failed", 1, Reason="timeout", Retry=True)
        await self._say("replay", by=KEY, TaskId=self.task_id, Speaker="al", N=1, From="uploading")
        await self._take()
        await self._job("upload-finished", SizeBytes=11, Crc64="2", Url="https://cos/1")
        await self._deliver("callback-finished", 2)
        await self._say("resend", by=KEY, TaskId=self.task_id)
        await self._deliver("callback-finished", 2)

    async def _deliver(self, type_: str, revision: int, **data: Any) -> None:
        store, key = self.harness.store, job_key.DeliveryKey(self.task_id, revision)
        value = await store.decisions.read(lambda snapshot: snapshot.delivery(key))
        assert value is not None
        epoch = value.epoch
        assert await self._measure("take", store.leases.take(key, epoch, NODE, decider_harness.LEASE_MS))
        await self._measure("receiver", store.assignments.receiver(key))
        await self._measure("delivery", store.assignments.delivery(key))
        await self._say(type_, **key.fields(), Epoch=epoch, **data)

    async def _sweep(self) -> None:
        """A round of the sweeper, and of a relay. The messages stay: their number is the life's own."""
        store = self.harness.store
        await self._measure("heartbeat", store.nodes.heartbeat(NODE, over_ms=6_000))
        armed = await self._measure("due", store.deadlines.due(ahead_ms=10 * model.MINUTE))
        await self._measure("expired", store.deadlines.expired())
        late: list[tuple[due_work.Overdue, codec.Event]] = [(each, _event(each)) for each in armed]
        await self._measure("queued", store.deadlines.queued(10))
        await self._measure("publish", store.deadlines.publish(late))
        await self._measure("leases", store.leases.of_node(NODE))
        await self._measure("unsent", store.outbox.unsent(10))
        await self._measure("newest", store.outbox.newest_seq())
        claimed = await self._measure("claim", store.outbox.claim(10, 1_000))
        await self._measure("release", store.outbox.release([claimed[0].seq]))
        await self._measure("sent", store.outbox.mark_sent(claimed[1].seq))
        await self._measure("all sent", store.outbox.mark_all_sent([m.seq for m in claimed[2:]]))
        await self._measure("attempt", store.attempts.add("outbox-1"))
        await self._measure("answered", store.decisions.answered("none"))

    async def _look(self) -> None:
        """The first pages that an operator sees."""
        reading = self.harness.reading
        in_room = session_view.SessionFilter(sdk_app_id=decider_harness.APP, room=str(self.room))
        await self._measure("sessions", reading.sessions(limit=10))
        await self._measure("open sessions", reading.sessions(session_view.SessionFilter(state="Open"), limit=10))
        await self._measure("stuck sessions", reading.sessions(session_view.SessionFilter(maybe_stuck=True), limit=10))
        await self._measure(
            "sessions in a room",
            reading.sessions(in_room, limit=10),
        )
        await self._measure("session", reading.session(self.task_id))
        await self._measure("counts", reading.counts([self.task_id]))
        await self._measure("parts", reading.parts([self.task_id]))
        await self._measure("timeline", reading.timeline(self.task_id, limit=20))
        await self._measure("results", reading.results(self.task_id))
        await self._measure("results after", reading.results_after("now", limit=10))


def _event(armed: due_work.Deadline) -> codec.Event:
    data = {"Owner": armed.owner.text, "Kind": armed.kind, "Serial": armed.serial}
    return codec.make("deadline-passed", id=f"deadline.{armed.serial}", time_ms=engines.START_MS, data=data)
