"""Lives of recordings on the real engine: the events of whole recordings, decided directly or by way of a bus.

Rule: a life is a closed loop. Each event is published after the one before was committed, and many lives run at once. Over a bus
a life ends when its result arrives. Leases that a worker takes in between cost time and count as no events.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aio_pika
from aio_pika import abc

from assembly import identity
from bus import local as local_bus
from bus import rabbit as rabbit_bus
from bus import topology as topologies
from events import codec
from handlers import dispatch, unit_of_work
from machine import encryption, job_key, model
from store import connections
from store import store as stores

APP = 1400000001
SPEAKER = "alice"
POLICY = model.Policy()
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}
COS = {"Region": "ap-shanghai", "Bucket": "bench-1250000000", "Path": "p", "SecretId": "id", "SecretKey": "key"}


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


async def eight_events(engine: Decisions) -> None:
    """A room with one speaker, announced by TRTC callbacks, from start to end: eight events, three leases."""
    room = next(engine.rooms)
    task_id = (await engine.say("start", request(room)))["TaskId"]
    there = {"SdkAppId": APP, "RoomId": room, "UserId": SPEAKER, "EventMs": now_ms(), "Kind": "audio"}
    await engine.say("user-publishing", there)
    await engine.begin_capture(task_id)
    await engine.say("user-publishing", there | {"Kind": "video"})
    await engine.say("room-destroyed", {"SdkAppId": APP, "RoomId": room, "UserId": "", "EventMs": now_ms() + 1})
    await engine.finish(task_id)


SIX = 6


async def six_steps(engine: Decisions) -> None:
    """A subscribed speaker from start to result: six events, three leases."""
    room = next(engine.rooms)
    begun_s = time.perf_counter()
    task_id = (await engine.say("start", request(room) | {"SubscribeUserIds": [SPEAKER]}))["TaskId"]
    await engine.begin_capture(task_id)
    await engine.say("stop", {"TaskId": task_id})
    await engine.finish(task_id)
    engine.lives_s.append(time.perf_counter() - begun_s)


def request(room: int) -> dict[str, Any]:
    """The start of a recording."""
    return {"SdkAppId": APP, "RoomId": room, "UserId": "rec", "UserSig": "sig", "CosConfig": COS, "Mode": "02"}


class Decisions:
    """The real Decider on the real Store. `lanes` lives run at once. `commits_s` has the time from publish to commit of each
    event, `results_s` the time from the publish of the last event of a life to its result, `lives_s` the time of whole lives."""

    def __init__(self, url: str, life: Callable[[Decisions], Awaitable[None]] = eight_events, *, lanes: int) -> None:
        self.store = stores.Store(
            connections.open_database(url),
            clock=now_ms,
            keyring=encryption.Keyring([encryption.new_key()]),
        )
        self.decider = dispatch.Decider(self.store, unit_of_work.Context(policy=POLICY, new_id=identity.new_id))
        self.engine = self.store.connections.engine
        self.rooms = itertools.count(1)
        self.lanes = lanes
        self.decided = 0
        self.commits_s: list[float] = []
        self.results_s: list[float] = []
        self.lives_s: list[float] = []
        self._life = life

    async def start(self) -> None:
        """Create the tables."""
        await self.store.start()

    async def stop(self) -> None:
        """Close the database."""
        await self.store.stop()

    async def run(self, seconds: float) -> tuple[int, float]:
        """(events, seconds): run as many lives in parallel as there are lanes, until the time is over."""
        before = self.decided
        return await in_window(self.recording, self.lanes, seconds, lambda: self.decided - before)

    async def recording(self) -> None:
        """One life."""
        await self._life(self)

    async def begin_capture(self, task_id: str) -> None:
        """A worker takes the capture and reports its first packet."""
        await self.lease(task_id, 1)
        await self.store.segments.register(job_key.RecordingKey(task_id, SPEAKER, 1), 1, "n1")
        await self.say("capture-started", of(task_id) | {"Epoch": 1, "FirstPacketMs": now_ms()})

    async def finish(self, task_id: str) -> None:
        """The capture ends; then transcode and upload succeed, and the result arrives."""
        stopped = {"Job": "capture", "Epoch": 1, "Reason": "stopped", "MediaMs": 5_000, "SizeBytes": 9}
        await self.say("ffmpeg-exit", of(task_id) | stopped)
        await self.lease(task_id, 2)
        await self.say("ffmpeg-exit", of(task_id) | {"Job": "transcode", "Epoch": 2, "Reason": "ok", "Output": OUTPUT})
        await self.lease(task_id, 3)
        uploaded = {"Epoch": 3, "SizeBytes": 9, "Crc64": "1", "Url": "https://bench/1"}
        await self.say_last(task_id, "upload-finished", of(task_id) | uploaded)

    async def say(self, type_: str, data: dict[str, Any]) -> dict[str, Any]:
        """Publish one event and wait for its commit; returns the answer."""
        event, begun_s = codec.make(type_, id=identity.new_id(), time_ms=now_ms(), data=data), time.perf_counter()
        answer = await self.decide(event)
        self.commits_s.append(time.perf_counter() - begun_s)
        self.decided += 1
        return answer

    async def say_last(self, task_id: str, type_: str, data: dict[str, Any]) -> None:
        """Publish the last event of a life. Without a bus the result is only a row."""
        await self.say(type_, data)

    async def decide(self, event: codec.Event) -> dict[str, Any]:
        """Have one event decided; returns the answer after the commit."""
        return await self.decider.decide(event)

    async def lease(self, task_id: str, epoch: int) -> None:
        """Take the lease of the recording's job, as a worker does."""
        if not await self.store.leases.take(job_key.RecordingKey(task_id, SPEAKER, 1), epoch, "n1", POLICY.lease_ms):
            raise RuntimeError(f"the lease of epoch {epoch} was refused: the events are not those of a whole recording")


async def in_window(
    live: Callable[[], Awaitable[None]], lanes: int, seconds: float, events: Callable[[], int]
) -> tuple[int, float]:
    """(events, seconds): run lives in so many lanes until the time is over, and let those that run then end.

    The quotient is the rate up to that time, when all lanes were busy. The events of the ending lives are counted, because their
    CPU is, and the seconds are longer in proportion."""
    begun = time.perf_counter()
    inside: list[tuple[int, float]] = []

    async def lane() -> None:
        while time.perf_counter() - begun < seconds:
            await live()

    async def window() -> None:
        await asyncio.sleep(seconds)
        inside.append((events(), time.perf_counter() - begun))

    await asyncio.gather(window(), *(lane() for _ in range(lanes)))
    ((counted, took_s),) = inside
    return events(), took_s * events() / max(1, counted)


def of(task_id: str) -> dict[str, Any]:
    """The fields that name the life's recording."""
    return {"TaskId": task_id, "Speaker": SPEAKER, "N": 1}


class OverBus(Decisions, ABC):
    """The same by way of a bus: published, delivered, decided, and the results delivered to a listener."""

    def __init__(self, url: str, life: Callable[[Decisions], Awaitable[None]] = eight_events, *, lanes: int) -> None:
        super().__init__(url, life, lanes=lanes)
        self._committing: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._expecting: dict[str, asyncio.Future[None]] = {}

    async def say_last(self, task_id: str, type_: str, data: dict[str, Any]) -> None:
        """Publish the last event of a life and wait for its result."""
        arrived = self._expecting[task_id] = asyncio.get_running_loop().create_future()
        begun_s = time.perf_counter()
        await self.say(type_, data)
        await arrived
        self.results_s.append(time.perf_counter() - begun_s)

    async def decide(self, event: codec.Event) -> dict[str, Any]:
        """Publish one event; returns the answer after the commit."""
        decided = self._committing[event.id] = asyncio.get_running_loop().create_future()
        await self.publish(event)
        return await decided

    @abstractmethod
    async def publish(self, event: codec.Event) -> None:
        """Give one event to the bus."""

    async def on_event(self, event: codec.Event) -> None:
        """Decide an event that the bus delivered."""
        answer = await self.decider.decide(event)
        self._committing.pop(event.id).set_result(answer)

    def on_result(self, result: codec.Event) -> None:
        """Note a result that the bus delivered."""
        if result.type == "session-finished" and (arrived := self._expecting.pop(result.data["TaskId"], None)):
            arrived.set_result(None)


class OverLocal(OverBus):
    """By way of the bus in the process, whose queue is the outbox. Commands are delivered to a worker that does nothing."""

    async def start(self) -> None:
        """Create the tables and begin to relay."""
        await super().start()
        self._bus = local_bus.LocalBus(self.store, clock=now_ms, on_event=self.on_event, on_command=self._on_command)
        self._bus.listeners.append(self.on_result)
        await self._bus.start()

    async def stop(self) -> None:
        """Close everything."""
        await self._bus.stop()
        await super().stop()

    async def publish(self, event: codec.Event) -> None:
        """Write one event to the outbox, as a worker does."""
        await self.store.outbox.send("event", event)

    async def _on_command(self, command: codec.Event) -> None:
        """Do nothing: the lives take the leases themselves."""


class OverRabbit(OverBus):
    """By way of RabbitMQ: one node of the roles machine and api, with publishers in the same process. Commands stay queued."""

    def __init__(
        self,
        url: str,
        broker: str,
        life: Callable[[Decisions], Awaitable[None]] = eight_events,
        *,
        lanes: int,
        roles: Sequence[str] = ("machine", "api"),
        prefix: str = "recorder",
    ) -> None:
        super().__init__(url, life, lanes=lanes)
        self._broker = broker
        self._bus = rabbit_bus.RabbitBus(
            self.store,
            url=broker,
            node="n1",
            roles=roles,
            clock=now_ms,
            on_event=self.on_event,
            on_command=self._on_command,
            keyring=encryption.Keyring([encryption.new_key()]),
            prefix=prefix,
        )
        self._bus.listeners.append(self.on_result)

    async def start(self) -> None:
        """Create the tables, the queues and the connections."""
        await super().start()
        await self._bus.start()
        await self._bus.connection.session()
        self._connection = await aio_pika.connect(self._broker)
        self._channel = await self._connection.channel()
        self._exchange = await self._channel.get_exchange(self._bus.topology.exchange, ensure=False)

    async def stop(self) -> None:
        """Close everything."""
        await self._connection.close()
        await self._bus.stop()
        await super().stop()

    async def run(self, seconds: float) -> tuple[int, float]:
        """(events, seconds): as above; then the commands, which nobody consumes, are deleted."""
        done = await super().run(seconds)
        await purge(self._channel, self._bus.topology)
        return done

    async def publish(self, event: codec.Event) -> None:
        """Publish one event with a confirmation."""
        message = aio_pika.Message(codec.encode(event), message_id=event.id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self._exchange.publish(message, f"event.{event.type}", mandatory=True)

    async def _on_command(self, command: codec.Event) -> None:
        raise RuntimeError(f"a node without the role worker received {command.type}")


async def purge(channel: abc.AbstractChannel, topology: topologies.Topology) -> None:
    """Delete the commands in the queues of the workers."""
    await topologies.declare_queues(channel, topology, topology.node("n1"))
    for queue in (*topology.work, *topology.node("n1")):
        await (await channel.get_queue(queue.name, ensure=False)).purge()
