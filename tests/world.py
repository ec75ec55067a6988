"""A world without ffmpeg, TRTC and COS: rooms, workers and time simulated by hand around a real store and real deciding handlers.

Workers take leases, register segments, publish outcomes and die, as the design has them. Their messages wait in `mail` until they
are delivered: in any order, again, late, or (a TRTC callback) never. This module knows none of the recorder's tables.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from events import codec
from handlers import dispatch, unit_of_work
from machine import capture_progress, errors, job_key, model
from store import store as stores
from tests import engines

APP = 1400000001
REC = "rec"
SPEAKERS = ("al", "bo")
ROOMS: tuple[dict[str, Any], ...] = ({"RoomId": 88}, {"StrRoomId": "88"})
NODES = ("n1", "n2")
TRTC = ("user-publishing", "user-unpublished", "user-left", "room-destroyed", "user-removed")
CAPTURE_ENDS = ("eof", "stalled", "refused", "error", "new-track", "no-media", "refused-for-good", "disk-full")
HANGS_MS = 200_000  # how long a pull of a speaker who left runs before it ends
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}
# The service's figures, with those of hours shortened, so that a history of a day has tens of steps, not thousands.
POLICY = model.Policy(
    max_duration_ms=14 * model.MINUTE,
    upload_retry_for_ms=2 * model.HOUR,
    capture_backoff_ms=(1_000, 10_000, 100_000),
    blind_capture_backoff_ms=(1_000, 30_000, 200_000),
    upload_backoff_ms=(2_000, 10 * model.MINUTE, model.HOUR),
)


@dataclass(slots=True)
class Run:
    """A job in the hands of a live worker."""

    type: str
    owner: str
    epoch: int
    node: str
    data: dict[str, Any]
    since_ms: int
    media_ms: int = 0
    frozen: bool = False


@dataclass(slots=True)
class Truth:
    """The true course of one recording, for comparison with its result."""

    transcode_failures: int = 0
    upload_refused: bool = False
    upload_failures: int = 0
    stored: bool = False


@dataclass(slots=True)
class World:
    """Jobs that no step ends by hand end by chance; the same seed gives the same ends to the same epochs."""

    database: engines.Database
    store: stores.Store
    clock: engines.Clock
    seed: int = 0
    twice: bool = False
    mail: list[codec.Event] = field(default_factory=list)
    delivered: list[codec.Event] = field(default_factory=list)
    commands: list[codec.Event] = field(default_factory=list)
    results: list[codec.Event] = field(default_factory=list)
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    truth: dict[str, Truth] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    new_id: Callable[[], str] = field(default_factory=engines.ids)
    event_id: Callable[[], str] = field(default_factory=lambda: engines.ids("e"))
    decider: dispatch.Decider = field(init=False)

    def __post_init__(self) -> None:
        context = unit_of_work.Context(policy=POLICY, new_id=self.new_id)
        self.decider = dispatch.Decider(self.store, context)

    def of(self, owner: str) -> Truth:
        """The truth about one recording."""
        return self.truth.setdefault(owner, Truth())

    # --- users and TRTC ----------------------------------------------------------------------------------------------
    async def ask(self, type_: str, **data: Any) -> dict[str, Any] | None:
        """An HTTP request, decided immediately. None if it was refused."""
        event = codec.make(type_, id=self.event_id(), time_ms=self.clock(), data=data)
        try:
            answer = await self.decider.decide(event)
        except (errors.Refused, errors.NotFound):
            return None
        self.delivered.append(event)
        return answer

    def callback(self, type_: str, room: int, **data: Any) -> None:
        """A TRTC callback is sent."""
        data = {"SdkAppId": APP, **ROOMS[room], "EventMs": self.clock(), **data}
        self._post(type_, self.event_id(), data)

    # --- mail --------------------------------------------------------------------------------------------------------
    def _post(self, type_: str, id_: str, data: dict[str, Any], subject: str = "") -> None:
        self.mail.append(codec.make(type_, id=id_, time_ms=self.clock(), data=data, subject=subject))

    async def deliver(self, index: int) -> None:
        """One message arrives."""
        if self.mail:
            event = self.mail.pop(index % len(self.mail))
            await self.decider.decide(event)
            self.delivered.append(event)
            if self.twice:
                await self.decider.decide(event)
                if event.type in ("deadline-passed", "worker-lost"):  # a second sweeper publishes the same under an id of its own
                    await self.decider.decide(dataclasses.replace(event, id=f"{event.id}.twin"))

    async def again(self, index: int) -> None:
        """A delivered message is delivered again."""
        if self.delivered:
            event = self.delivered[index % len(self.delivered)]
            await self.decider.decide(event)

    def lose(self, index: int) -> None:
        """A TRTC callback is lost. The recorder's own messages are durable."""
        if self.mail and self.mail[index % len(self.mail)].type in TRTC:
            del self.mail[index % len(self.mail)]

    # --- workers ------------------------------------------------------------------------------------------------------
    async def relay(self) -> None:
        """The outbox is relayed: commands to workers, results to subscribers."""
        for message in await self.store.outbox.unsent():
            event = codec.decode(message.body, now_ms=self.clock())
            {"command": self.commands, "result": self.results, "event": self.mail}[message.channel].append(event)
            await self.store.outbox.mark_sent(message.seq)

    async def obey(self, index: int, node: str) -> None:
        """A worker gets one command."""
        if self.commands:
            command = self.commands.pop(index % len(self.commands))
            await self._do(command, node)
            if self.twice:
                await self._do(command, NODES[0])
                await self._do(command, NODES[1])

    async def _do(self, command: codec.Event, node: str) -> None:
        data = dict(command.data)
        epoch = data.pop("Epoch")
        callback = command.type == "send-callback"
        owner = f"{data['TaskId']}#{data['Revision']}" if callback else f"{data['TaskId']}/{data['Speaker']}/{data['N']}"
        if command.type == "stop-capture":
            if (owner, epoch) in self.runs:
                await self.end(self.runs[owner, epoch], "stopped")
        elif await self.store.leases.take(job_key.parse_job(owner), epoch, node, POLICY.lease_ms):
            run = Run(type=command.type, owner=owner, epoch=epoch, node=node, data=data, since_ms=self.clock())
            self.runs[owner, epoch] = run
            if command.type == "start-capture":
                await self.store.segments.register(job_key.parse_job(owner), epoch, node)

    def run(self, index: int) -> Run | None:
        """One of the running jobs."""
        return list(self.runs.values())[index % len(self.runs)] if self.runs else None

    async def media(self, run: Run) -> None:
        """Two seconds of media arrive in a capture."""
        if run.type != "start-capture":
            return
        if not run.media_ms:
            self._say(run, "capture-started", "started", {"FirstPacketMs": self.clock()})
        run.media_ms += 2_000
        job = job_key.parse_recording(run.owner), run.epoch
        await self.store.segments.update(*job, {"media_ms": run.media_ms, "last_packet_ms": self.clock()})
        if run.frozen:
            return
        if await self.store.leases.renew_all([job], run.node, POLICY.lease_ms):
            await self.end(run, "stopped")
            return
        grown = capture_progress.CaptureProgress(media_ms=run.media_ms, last_packet_ms=self.clock())
        await self.store.segments.note_progress({job: grown})

    async def end(self, run: Run, reason: str) -> None:
        """A job ends and its worker publishes the outcome; `reason` is a capture's reason; for others ok, again or never."""
        if self.runs.pop((run.owner, run.epoch), None) is None:
            return
        if run.type == "start-capture":
            self._end_capture(run, reason)
            return
        retry = {"Reason": "server", "Detail": "it did not work", "Retry": reason == "again"}
        good = reason == "ok"
        match run.type:
            case "start-transcode":
                said = {"Job": "transcode", "Reason": "ok", "Output": OUTPUT} if good else {"Job": "transcode"} | retry
                self.of(run.owner).transcode_failures += not good
                self._say(run, "ffmpeg-exit", reason, said)
            case "start-upload":
                self.of(run.owner).stored |= good
                self.of(run.owner).upload_refused |= reason == "never"
                self.of(run.owner).upload_failures += reason == "again"
                stored = {"SizeBytes": 9, "Crc64": "1", "Url": f"https://cos/{run.owner}"}
                self._say(run, "upload-finished" if good else "upload-failed", reason, stored if good else retry)
            case "send-callback":
                self._say(run, "callback-finished" if good else "callback-failed", reason, {} if good else retry)

    def _end_capture(self, run: Run, reason: str) -> None:
        last_ms = self.clock() if run.media_ms else None
        said = {
            "Job": "capture",
            "Reason": reason,
            "Detail": f"it was {reason}",
            "MediaMs": run.media_ms,
            "SizeBytes": run.media_ms,
        }
        self._say(run, "ffmpeg-exit", reason, said | {"FirstPacketMs": None, "LastPacketMs": last_ms})

    def _say(self, run: Run, type_: str, outcome: str, data: dict[str, Any]) -> None:
        id_ = f"{run.owner}.{run.epoch}.{run.type}.{outcome}"
        self._post(type_, id_, {**run.data, "Epoch": run.epoch, **data}, run.owner if "/" in run.owner else "")

    def die(self, node: str) -> None:
        """A node is killed with all its work."""
        for key in [k for k, run in self.runs.items() if run.node == node]:
            del self.runs[key]

    # --- time -----------------------------------------------------------------------------------------------------------
    async def pass_time(self, ms: int) -> None:
        """Time passes; live workers renew their leases; overdue deadlines are published."""
        self.clock.advance(ms)
        for run in list(self.runs.values()):
            held = [(job_key.parse_job(run.owner), run.epoch)]
            if not run.frozen and await self.store.leases.renew_all(held, run.node, POLICY.lease_ms):
                await self.end(run, "stopped" if run.type == "start-capture" else "again")
        await self.sweep()

    async def sweep(self) -> None:
        """Publish overdue deadlines and expired leases, each once."""
        for deadline in await self.store.deadlines.due(limit=1_000):
            over = {"Owner": str(deadline.owner), "Kind": deadline.kind, "Serial": deadline.serial}
            self._note(f"deadline.{deadline.serial}", "deadline-passed", over)
        for lease in await self.store.deadlines.expired():
            lost: dict[str, Any] = {"Owner": str(lease.owner), "Epoch": lease.epoch, "Node": lease.node}
            if isinstance(lease.owner, job_key.RecordingKey) and lease.epoch % 2:
                held = [s.media_ms for s in await self.store.segments.of_recording(lease.owner) if s.epoch == lease.epoch]
                lost |= {"MediaMs": sum(held)}
            self._note(f"lost.{lease.owner}.{lease.epoch}", "worker-lost", lost)

    def _note(self, id_: str, type_: str, data: dict[str, Any]) -> None:
        if id_ not in self.said:
            self.said.add(id_)
            self._post(type_, id_, data)

    async def be_away(self, ms: int) -> None:
        """The whole service is killed and restarts after `ms`."""
        self.runs.clear()
        await self.store.nodes.heartbeat("n1")
        self.clock.advance(ms)
        assert await self.store.nodes.heartbeat("n1", over_ms=0) == ms

    # --- the end ---------------------------------------------------------------------------------------------------------
    async def come_to_rest(self, steps: int = 3_000) -> None:
        """No speaker publishes any more and no message is lost any more: all work ends, and every deadline passes."""
        for run in self.runs.values():
            run.frozen = False
        for _ in range(steps):
            await self.relay()
            if self.commands:
                await self.obey(0, NODES[0])
            elif self.mail:
                await self.deliver(0)
            elif ended := self._over():
                await self.end(ended, self._fate(ended))
            elif next_ms := self._next_ms():
                await self.pass_time(max(0, next_ms - self.clock()))
            else:
                return
        raise AssertionError("it does not come to rest")

    def _over(self) -> Run | None:
        for run in self.runs.values():
            if run.type != "start-capture" or self.clock() >= run.since_ms + HANGS_MS:
                return run
        return None

    def _fate(self, run: Run) -> str:
        chance = random.Random(f"{self.seed}/{run.owner}/{run.epoch}/{run.type}")
        if run.type == "start-capture":
            return "eof"
        stubborn = random.Random(f"{self.seed}/{run.owner}/{run.type}").random()
        if stubborn < 0.15:
            return "again"
        return chance.choices(("ok", "again", "never"), (7, 2, 1))[0]

    def _next_ms(self) -> int:
        waits = [at_ms for (at_ms,) in self.rows("SELECT at_ms FROM deadlines WHERE kind <> 'keep'")]
        held = self.rows("SELECT owner, epoch, lease_until_ms FROM jobs WHERE state = 'leased'")
        lost = [until_ms + 1 for owner, epoch, until_ms in held if (owner, epoch) not in self.runs]
        captures = [run.since_ms + HANGS_MS for run in self.runs.values()]
        return min([*waits, *lost, *captures], default=0)

    def rows(self, query: str) -> list[Any]:
        """Query the database past the store."""
        return self.database.ask(query)
