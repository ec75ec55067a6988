"""Workers of the simulated world: they keep the contract of each command without ffmpeg, COS or waiting.

Rule: like a worker, a node uses only the ports of the store. The media of its captures is on the world's disk and outlives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from events import codec
from handlers import sweeper
from machine import capture_progress, database_clock, job_key, states
from tests.simulated import coroutine_runner, script

if TYPE_CHECKING:
    from tests.simulated.world import World

LEASE_MS = script.POLICY.lease_ms
RENEW_MS = 14_000
KINDS = {"start-capture": "capture", "start-transcode": "transcode", "start-upload": "upload", "send-callback": "callback"}


@dataclass(slots=True, eq=False)
class Run:
    """A job that a node holds. `from_ms`: start of its media; `quiet_ms`: time since which a capture gets no media; `over`: it
    does not run any more; `ended`: its outcome is published."""

    kind: str
    owner: job_key.JobKey
    epoch: int
    names: dict[str, Any]
    node: Node
    speaker: str = ""
    from_ms: int = 0
    quiet_ms: int = 0
    pulling: bool = False
    stop_requested: bool = False
    over: bool = False
    ended: bool = False
    kinds: set[str] = field(default_factory=set)


class _NoTask:
    """Replaces the sweeper's tasks: the world calls the sweeper."""

    def start(self) -> None:
        """Start nothing."""


class Node:
    """One worker and sweeper."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.alive = False
        self.frozen = False
        self.gone = False
        self.jobs: dict[tuple[job_key.JobKey, int], Run] = {}
        self.clock = database_clock.DatabaseClock(self._machine_ms, world.clock)
        self.sweeper = sweeper.Sweeper(world.store, node=name, policy=script.POLICY, clock=self.clock)
        self._ticking = False
        self._waiting: list[Callable[[], None]] = []

    def _machine_ms(self) -> int:
        """The clock of its machine, which may be off."""
        return self.world.clock.now_ms + self.world.profile.skew_ms(self.name, self.world.elapsed_ms())

    @property
    def awake(self) -> bool:
        """Whether the node runs."""
        return self.alive and not self.frozen

    @property
    def expires_from_ms(self) -> int:
        """The time from which its sweeper expires leases."""
        return round(max(self.sweeper._since_ms, 0)) + LEASE_MS

    def sweep(self) -> None:
        """Run its sweeper once. Rounds in between would find nothing and are skipped."""
        coroutine_runner.run(self.world.store.nodes.heartbeat(self.name))
        self.sweeper._beat_ms = self.sweeper._seen_ms = self.world.clock.now_ms
        coroutine_runner.run(self.sweeper.run_once())

    # --- life -------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the node: void leases of its earlier process, and scan the disk for their media."""
        world = self.world
        self.alive, self.frozen = True, False
        beat(world, but=self)
        self.sweeper = sweeper.Sweeper(world.store, node=self.name, policy=script.POLICY, clock=self.clock)
        self.sweeper.sweep = self.sweeper.cleaning = _NoTask()  # type: ignore[assignment]
        coroutine_runner.run(self.sweeper.start())
        for lease in coroutine_runner.run(world.store.leases.of_node(self.name)):
            self._void(lease.owner, lease.epoch)
        world.reschedule_sweep()

    def _void(self, owner: job_key.JobKey, epoch: int) -> None:
        world = self.world
        data: dict[str, Any] = {"Owner": str(owner), "Epoch": epoch, "Node": self.name}
        if isinstance(owner, job_key.RecordingKey):
            assignment = coroutine_runner.run(world.store.assignments.recording(owner))
            if assignment is not None and assignment.recording.state in states.CAPTURING:
                media_ms = world.disk.get(owner, {}).get(epoch, 0)
                data |= {"MediaMs": media_ms, "SizeBytes": media_ms, "LastPacketMs": None}
        self._send("worker-lost", f"voided.{owner}.{epoch}", data, owner)

    def die(self, back_ms: int) -> None:
        """Kill the node with all its ffmpegs; it restarts after `back_ms`, or never (0)."""
        if not self.alive:
            return
        world = self.world
        world.faults += 1
        world.note(f"{self.name} dies, {f'and is back in {back_ms / 1000:g} s' if back_ms else 'for good'}")
        beat(world)
        for run in self.jobs.values():
            close(world, run)
            run.over = run.ended = True
        self.jobs.clear()
        self._waiting.clear()
        self.alive, self.gone = False, not back_ms
        world.reschedule_sweep()
        if back_ms:
            world.after(back_ms, self.start)

    def freeze(self, for_ms: int) -> None:
        """SIGSTOP: the node stops, its ffmpegs continue."""
        if self.awake:
            self.world.faults += 1
            beat(self.world)
            self.sweeper._beat_ms = self.sweeper._seen_ms = self.world.clock.now_ms
            self.world.note(f"{self.name} freezes for {for_ms / 1000:g} s")
            self.frozen = True
            self.world.reschedule_sweep()
            self.world.after(for_ms, self.wake)

    def wake(self) -> None:
        """SIGCONT: run the waiting work, then renew leases."""
        if self.alive and self.frozen:
            self.world.note(f"{self.name} wakes")
            beat(self.world)
            self.frozen = False
            coroutine_runner.run(self.sweeper.run_once())
            self.world.reschedule_sweep()
            waiting, self._waiting = self._waiting, []
            for what in waiting:
                what()
            self._renew()

    def when_awake(self, what: Callable[[], None]) -> None:
        """Call `what` now, or when the node wakes."""
        if self.frozen:
            self._waiting.append(what)
        else:
            what()

    # --- commands ---------------------------------------------------------------------------------------------------------
    def obey(self, command: codec.Event) -> None:
        """Take the lease of a command's job and begin, or do nothing."""
        names = dict(command.data)
        epoch = names.pop("Epoch")
        owner = job_key.RecordingKey.of(names) if "Speaker" in names else job_key.DeliveryKey.of(names)
        if command.type == "stop-capture":
            if run := self.jobs.get((owner, epoch)):
                run.stop_requested = True
                if run.pulling:
                    self.world.after(300, self._exit, run, "stopped")
            return
        world = self.world
        if not coroutine_runner.run(world.store.leases.take(owner, epoch, self.name, LEASE_MS)):
            return
        kind = KINDS[command.type]
        run = Run(kind, owner, epoch, names, self, speaker=names.get("Speaker", ""))
        self.jobs[owner, epoch] = run
        if not self._ticking:
            self._ticking = True
            world.after(RENEW_MS, self._tick)
        match kind:
            case "capture":
                coroutine_runner.run(world.store.segments.register(owner, epoch, self.name))
                world.after(100, self._spawn, run)
            case "transcode":
                world.after(world.late(4_000, 2_000), self._when_over, run, self._transcoded)
            case "upload":
                world.after(world.late(3_000, 1_000), self._when_over, run, self._uploaded)
            case _:
                world.after(world.late(1_000, 200), self._when_over, run, self._delivered)

    def _when_over(self, run: Run, then: Callable[[Run], None]) -> None:
        if not run.over:
            self.when_awake(lambda: None if run.over else then(run))

    # --- captures ---------------------------------------------------------------------------------------------------------
    def _spawn(self, run: Run) -> None:
        if run.over:
            return
        if self.frozen:
            self._waiting.append(lambda: self._spawn(run))
            return
        world = self.world
        if run.stop_requested or not coroutine_runner.run(world.store.leases.is_held(run.owner, run.epoch, self.name)):
            self._exit(run, "stopped")
            return
        run.pulling = True
        kinds = world.live(run.speaker)
        if kinds & set(script.WANTED[world.script.mode]):
            world.after(300, self._first_packet, run)
        else:
            world.after(15_000 if kinds else 200, self._exit, run, "no-media" if kinds else "refused")

    def _first_packet(self, run: Run) -> None:
        if run.over:
            return
        world = self.world
        run.kinds = world.live(run.speaker) & set(script.WANTED[world.script.mode])
        if not run.kinds:
            self._exit(run, "eof")
            return
        run.from_ms = first_ms = world.began_ms[run.owner, run.epoch] = self.clock()

        def publish() -> None:
            if not run.ended:
                coroutine_runner.run(world.store.segments.update(run.owner, run.epoch, {"first_packet_ms": first_ms}))
                self._publish(run, "capture-started", {"FirstPacketMs": first_ms})

        self.when_awake(publish)

    def stream_changed(self, run: Run, how: str, kind: str) -> None:
        """The effect of a speaker's change on the pull of a capture."""
        if how in ("gone", "broken"):
            self._exit(run, "eof")
        elif how == "on":
            run.quiet_ms = 0
            if run.from_ms and kind not in run.kinds and kind in script.WANTED[self.world.script.mode]:
                self._exit(run, "new-track")
        elif run.from_ms and not self.world.live(run.speaker) & run.kinds:
            run.quiet_ms = self.world.clock.now_ms
            self.world.after(10_000, self._stalled, run, run.quiet_ms)

    def _stalled(self, run: Run, quiet_ms: int) -> None:
        if run.quiet_ms == quiet_ms:
            self._exit(run, "stalled")

    def _exit(self, run: Run, reason: str) -> None:
        if run.over:
            return
        media_ms = close(self.world, run)
        run.over = True
        last_ms = run.from_ms + media_ms if media_ms else None
        data = {"Job": "capture", "Reason": reason, "Detail": f"it was {reason}", "MediaMs": media_ms, "SizeBytes": media_ms}
        data |= {"FirstPacketMs": run.from_ms or None, "LastPacketMs": last_ms}
        self.when_awake(lambda: self._publish_end(run, "ffmpeg-exit", data))
        if run.ended:
            self.world.reported_media[run.owner, run.epoch] = media_ms

    # --- the other jobs ---------------------------------------------------------------------------------------------------
    def _transcoded(self, run: Run) -> None:
        world = self.world
        registered = {s.epoch for s in coroutine_runner.run(world.store.segments.of_recording(run.owner))}
        there = {epoch for epoch, media_ms in on_disk(world, run.owner).items() if media_ms and epoch in registered}
        if run.speaker in world.script.bad and not world.script.cured_ms:
            failure = {"Reason": "ffmpeg-failed", "Detail": "it cannot be read", "Retry": world.script.bad[run.speaker]}
            self._publish_end(run, "ffmpeg-exit", {"Job": "transcode", **failure})
        elif not there:
            failure = {"Reason": "no-media", "Detail": "no segment holds media", "Retry": False}
            self._publish_end(run, "ffmpeg-exit", {"Job": "transcode", **failure})
        else:
            world.finished[run.owner] = frozenset(there)
            joined = _joined(world, run.owner, there)
            output = {"SizeBytes": len(there), "Crc64": _crc64(there), "StartMs": 1, "EndMs": 2, **joined}
            self._publish_end(run, "ffmpeg-exit", {"Job": "transcode", "Reason": "ok", "Output": output})

    def _uploaded(self, run: Run) -> None:
        world = self.world
        if world.elapsed_ms() < world.script.cured_ms:
            self._publish_end(run, "upload-failed", {"Reason": "refused", "Detail": "AccessDenied", "Retry": False})
        elif world.cos_is_down():
            self._publish_end(run, "upload-failed", {"Reason": "server", "Detail": "COS is away", "Retry": True})
        else:
            content = world.finished[run.owner]
            url = f"https://cos/{run.names['TaskId']}/{run.speaker}_{world.store.tables.recordings[str(run.owner)].object_number}"
            assert url not in world.watch.delivered or world.bucket[url] == content, f"{url} changes after it was delivered"
            world.objects[run.owner] = world.bucket[url] = content
            self._publish_end(run, "upload-finished", {"SizeBytes": len(content), "Crc64": _crc64(content), "Url": url})

    def _delivered(self, run: Run) -> None:
        world = self.world
        from_ms, to_ms = world.script.deaf
        callback = coroutine_runner.run(world.store.assignments.delivery(run.owner))
        if from_ms <= world.elapsed_ms() < to_ms or callback is None:
            self._publish_end(run, "callback-failed", {"Reason": "status", "Detail": "500", "Retry": True})
            return
        world.received.setdefault(run.owner, set()).add(callback.body)
        self._publish_end(run, "callback-finished", {})

    # --- leases and outcomes ----------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._ticking = False
        if self.awake:
            self._renew()
        if self.alive and self.jobs:
            self._ticking = True
            self.world.after(RENEW_MS, self._tick)

    def _renew(self) -> None:
        world, store = self.world, self.world.store
        refused = coroutine_runner.run(store.leases.renew_all(list(self.jobs), self.name, LEASE_MS))
        growing: dict[tuple[job_key.RecordingKey, int], capture_progress.CaptureProgress] = {}
        for key, run in list(self.jobs.items()):
            media_ms = media_of(world, run)
            if key not in refused:
                if media_ms and not run.ended:
                    growing[key] = capture_progress.CaptureProgress(  # type: ignore[index]
                        media_ms=media_ms,
                        size_bytes=media_ms,
                        first_packet_ms=run.from_ms,
                        last_packet_ms=run.from_ms + media_ms,
                    )
                continue
            del self.jobs[key]
            if not run.over:
                close(world, run)
            run.over = run.ended = True
        coroutine_runner.run(store.segments.note_progress(growing))

    def _publish_end(self, run: Run, type_: str, data: dict[str, Any]) -> None:
        """Publish the job's outcome, unless its lease was refused meanwhile."""
        if not run.ended and (run.owner, run.epoch) in self.jobs:
            self._publish(run, type_, data)
            run.over = run.ended = True

    def _publish(self, run: Run, type_: str, data: dict[str, Any]) -> None:
        self._send(type_, f"{type_}.{run.owner}.{run.epoch}", {**run.names, "Epoch": run.epoch, **data}, run.owner)

    def _send(self, type_: str, id_: str, data: dict[str, Any], owner: job_key.JobKey) -> None:
        event = codec.make(type_, id=id_, time_ms=self.clock(), data=data, subject=str(owner))
        coroutine_runner.run(self.world.store.outbox.send("event", event, owner.task_id))


def beat(world: World, but: Node | None = None) -> None:
    """Send the heartbeats of the running nodes."""
    for node in world.nodes.values():
        if node.awake and node is not but:
            coroutine_runner.run(world.store.nodes.heartbeat(node.name))


def _joined(world: World, owner: job_key.JobKey, there: set[int]) -> dict[str, Any]:
    """The length, the gaps and the live times of a file from these segments."""
    held, live = on_disk(world, owner), list[list[int]]()
    for epoch in sorted(there):
        from_ms = world.began_ms[owner, epoch]
        if live and from_ms <= live[-1][1]:
            live[-1][1] = max(live[-1][1], from_ms + held[epoch])
        else:
            live.append([from_ms, from_ms + held[epoch]])
    gaps, at_ms = [], 0
    for (from_ms, to_ms), (next_ms, _) in itertools.pairwise(live):
        at_ms += to_ms - from_ms
        gaps.append({"AtMs": at_ms, "DurationMs": next_ms - to_ms})
    return {"DurationMs": sum(b - a for a, b in live), "Gaps": gaps, "Live": live}


def media_of(world: World, run: Run) -> int:
    """Media that a capture has written so far, in ms."""
    if not run.from_ms:
        return 0
    if run.over:
        return world.disk.get(run.owner, {}).get(run.epoch, 0)
    return (run.quiet_ms or world.clock.now_ms) - run.from_ms


def close(world: World, run: Run) -> int:
    """End a capture; its media stays on the disk."""
    media_ms = media_of(world, run)
    if media_ms:
        world.disk.setdefault(run.owner, {})[run.epoch] = media_ms
    return media_ms


def on_disk(world: World, owner: job_key.JobKey) -> dict[int, int]:
    """The segments of a recording, including growing ones: epoch → media in ms."""
    held = dict(world.disk.get(owner, {}))
    for node in world.nodes.values():
        held |= {run.epoch: media_of(world, run) for run in node.jobs.values() if run.owner == owner and run.from_ms}
    return held


def _crc64(segments: Iterable[int]) -> str:
    return str(sum(1 << epoch for epoch in segments))  # tells files of different segments apart


def stream_changed(world: World, speaker: str, how: str, kind: str = "") -> None:
    """Tell all captures that pull this speaker."""
    for node in world.nodes.values():
        for run in list(node.jobs.values()):
            if run.speaker == speaker and run.pulling and not run.over:
                node.stream_changed(run, how, kind)
