"""One history: the outer world of a script, its faults, and between them the recorder's real handlers and sweepers.

Rules: one heap of (time, chance, number, action); the clock jumps from one action to the next. No real clock is read, and all
randomness comes from the seeds: the same script and faults give the same history.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from events import codec
from handlers import dispatch, trtc_events, unit_of_work
from machine import errors, failpoints, job_key
from tests import engines
from tests.simulated import coroutine_runner, dictionary, fault_profile, invariants, nodes, script

CRASHES = ("inbox.claim.before", "inbox.claim.after", "decision.commit.before", "decision.commit.after")
OUTCOMES = ("capture-started", "ffmpeg-exit", "upload-finished", "upload-failed", "worker-lost")
FOR_EVER_MS = 1 << 60
COPY_LATE_MS = 60_000
BREAK_MS = 3_000
MOST_STEPS = 20_000


class Crashed(Exception):
    """The process died at this failpoint; uncommitted writes are lost."""


class World:
    """Plays one history."""

    def __init__(
        self, outer: script.Script, profile: fault_profile.FaultProfile, show: Callable[[str], None] | None = None
    ) -> None:
        self.script = outer
        self.profile = profile
        self.show = show
        self.clock = engines.Clock()
        self.chance = Random(profile.seed)
        self.store = dictionary.Store(clock=self.clock)
        self.watch = invariants.Watch(self.store.tables)
        self.store.connections.watch = self.watch.check
        self.store.connections.meddle = self._meddle if profile.conflict else None
        self.decider = dispatch.Decider(self.store, unit_of_work.Context(policy=script.POLICY, new_id=engines.ids()))
        self.nodes = {name: nodes.Node(name, self) for name in ("n1", "n2")}
        self.publishing: dict[str, set[str]] = {}
        self.broken_until_ms: dict[str, int] = {}
        self.destroyed = False
        self.task_id = ""
        self.under_way: dict[str, tuple[codec.Event, str]] = {}
        self.reported_media: dict[tuple[job_key.JobKey, int], int] = {}
        self.heard: dict[str, list[int]] = {}
        self.results: list[tuple[str, bytes]] = []
        self.received: dict[job_key.JobKey, set[str]] = {}
        self.began_ms: dict[tuple[job_key.JobKey, int], int] = {}
        self.published: dict[str, list[list[int]]] = {}
        self.disk: dict[job_key.JobKey, dict[int, int]] = {}
        self.finished: dict[job_key.JobKey, frozenset[int]] = {}
        self.objects: dict[job_key.JobKey, frozenset[int]] = {}
        self.bucket: dict[str, frozenset[int]] = {}
        self.events = self.faults = 0
        self._heap: list[tuple[int, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0
        self._deciding = False
        self._swept: set[Any] = set()
        self._sweep_ms: int | None = None

    # --- time -------------------------------------------------------------------------------------------------------------
    def after(self, ms: int, what: Callable[..., None], *about: Any) -> None:
        """Schedule an action in `ms`."""
        self._numbers += 1
        tie = self.chance.random() if self.profile.kind != "calm" else 0.0
        heapq.heappush(self._heap, (self.clock.now_ms + ms, tie, self._numbers, what, about))

    def late(self, most_ms: int, calm_ms: int) -> int:
        """A delay within the bounds of the fault profile."""
        return calm_ms if self.profile.kind == "calm" else int(self.chance.random() * most_ms)

    def play(self) -> World:
        """Play the whole history, until no action is left."""
        for act in self.script.acts:
            self.after(act.at_ms, getattr(self, act.name), *act.about)
        for at_ms, name, back_ms in self.profile.deaths:
            self.after(at_ms, self.nodes[name].die, back_ms)
        for at_ms, name, for_ms in self.profile.freezes:
            self.after(at_ms, self.nodes[name].freeze, for_ms)
        failpoints.install(self._fault if self.profile.crash else None)
        try:
            for node in self.nodes.values():
                node.start()
            for _ in range(MOST_STEPS):
                if not self._step():
                    return self
            raise AssertionError("it does not come to rest")
        finally:
            failpoints.install(None)

    def _step(self) -> bool:
        sweep_ms = self._next_sweep_ms()
        at_ms = self._heap[0][0] if self._heap else FOR_EVER_MS
        if sweep_ms == at_ms == FOR_EVER_MS:
            return False
        if sweep_ms <= at_ms:
            self.clock.now_ms = max(self.clock.now_ms, sweep_ms)
            self._sweep()
        else:
            self.clock.now_ms = at_ms
            _, _, _, what, about = heapq.heappop(self._heap)
            what(*about)
        if self.store.tables.unsent:
            self.relay()
        return True

    # --- sweepers --------------------------------------------------------------------------------------------------------
    def _next_sweep_ms(self) -> int:
        """The next time at which a deadline or lease expires that no sweeper has published. Skips `keep`, which takes a week."""
        if self._sweep_ms is not None and not self.watch.timed:
            return self._sweep_ms
        self.watch.timed = False
        since = [node.expires_from_ms for node in self.nodes.values() if node.awake][: None if self.profile.all_sweep else 1]
        tables = self.store.tables
        if not since:
            self._sweep_ms = None
            return FOR_EVER_MS
        due = [at for (_, kind), (at, serial) in tables.deadlines.items() if kind != "keep" and serial not in self._swept]
        if tables.leased:
            judged_ms = min(since)
            due += [max(tables.jobs[key].lease_until_ms + 1, judged_ms) for key in tables.leased if key not in self._swept]
        self._sweep_ms = min(due, default=FOR_EVER_MS)
        return self._sweep_ms

    def _sweep(self) -> None:
        now_ms, tables = self.clock.now_ms, self.store.tables
        sweeping = [node for node in self.nodes.values() if node.awake]
        for node in sweeping if self.profile.all_sweep else sweeping[:1]:
            node.sweep()
        self._swept |= {serial for at_ms, serial in tables.deadlines.values() if at_ms <= now_ms}
        self._swept |= {key for key in tables.leased if tables.jobs[key].lease_until_ms < now_ms}
        self._sweep_ms = None

    def reschedule_sweep(self) -> None:
        """Recompute the next sweep after a node started, died or woke."""
        self._sweep_ms = None

    # --- messages ---------------------------------------------------------------------------------------------------------
    def relay(self) -> None:
        """Relay committed messages. If the relay dies before it marks a message, the message is relayed again."""
        for message in coroutine_runner.run(self.store.outbox.unsent()):
            if message.channel == "result":
                self.results.append((message.type, message.body))
            else:
                event = codec.decode(message.body, now_ms=self.clock.now_ms)
                self._post(self._deliver if message.channel == "event" else self._obey, event, message.node)
                if message.channel == "command" and event.type != "stop-capture":
                    self.under_way[event.subject] = (event, message.node)
            if self.profile.relay_dies and self.chance.random() < self.profile.relay_dies:
                self.faults += 1
                self.after(1_000, self._nothing)
            else:
                coroutine_runner.run(self.store.outbox.mark_sent(message.seq))

    def _nothing(self) -> None:
        """Give the relay another turn."""

    def _post(self, how: Callable[..., None], event: codec.Event, node: str = "") -> None:
        first_ms = self.late(self.profile.bus_late_ms, 10)
        if self.profile.straggles and event.type in OUTCOMES and self.chance.random() < self.profile.straggles:
            self.faults += 1
            first_ms += int(self.chance.random() * COPY_LATE_MS)
        self.after(first_ms, how, event, node)
        self._copies(first_ms, how, event, node)

    def _copies(self, first_ms: int, how: Callable[..., None], *about: Any) -> None:
        for _ in range(self.chance.randrange(self.profile.copies) if self.profile.copies else 0):
            self.faults += 1
            self.after(first_ms + int(self.chance.random() * COPY_LATE_MS), how, *about)

    def _deliver(self, event: codec.Event, node: str = "") -> None:
        """Deliver an event to a decider."""
        if not self._decide(event):
            self.after(1_000, self._deliver, event, node)

    def _decide(self, event: codec.Event) -> bool:
        """Decide an event; False if its decider died or met too many conflicts."""
        self._deciding = True
        try:
            report = trtc_events.presence_report(event)
            if report is None or coroutine_runner.run(self.store.presence.note([report])) != [True]:
                coroutine_runner.run(self.decider.decide_from_bus(event))
        except (Crashed, errors.Conflict):
            return False
        finally:
            self._deciding = False
        if self.show is not None:
            self.show(f"{self._when()} event    {event.type} {event.id} {event.subject or _about(event)}")
        self.events += 1
        return True

    def _obey(self, command: codec.Event, node: str) -> None:
        """Deliver a command to a worker: to its node, or to any."""
        self.under_way.pop(command.subject, None)
        awake = [n for n in self.nodes.values() if n.awake and node in ("", n.name)]
        if node and self.nodes[node].gone:
            return  # it waits in the queue of a node that never comes back
        if not awake:
            self.after(5_000, self._obey, command, node)
            return
        chosen = awake[0] if self.profile.kind == "calm" else awake[int(self.chance.random() * len(awake))]
        if self.show is not None:
            self.show(f"{self._when()} command  {command.type} {command.subject} epoch {command.data['Epoch']} → {chosen.name}")
        chosen.obey(command)

    # --- the script's acts ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """The application starts the recording; copies of the request follow."""
        event = codec.make("start", id="start-1", time_ms=self.clock.now_ms, data=self.script.request())
        self.note("start")
        self._deliver(event)
        self._copies(0, self._deliver, event)

    def stop(self) -> None:
        """The application stops the recording, by the key of its start."""
        self.note("stop")
        data = {"SdkAppId": script.APP, **self.script.room, "UserId": script.RECORDER}
        self._deliver(codec.make("stop", id="stop-1", time_ms=self.clock.now_ms, data=data))

    def replay(self) -> None:
        """An operator replays each session: from Joining, which is refused for a closed session, and then from its files."""
        for stage in ("joining", self.script.replay_from):
            self.note(f"replay {stage}")
            for task_id in self.store.tables.sessions:
                data = {"TaskId": task_id} | ({"From": stage} if stage else {})
                self._deliver(codec.make("replay", id=f"replay-{stage}-{task_id}", time_ms=self.clock.now_ms, data=data))

    def switch_on(self, speaker: str, kind: str) -> None:
        """A speaker publishes a track."""
        if not self.destroyed:
            self.note(f"{speaker} publishes {kind}")
            self.publishing.setdefault(speaker, set()).add(kind)
            self._published(speaker)
            nodes.stream_changed(self, speaker, "on", kind)
            self._callback("user-publishing", UserId=speaker, Kind=kind)

    def switch_off(self, speaker: str, kind: str) -> None:
        """A speaker switches a track off."""
        if not self.destroyed:
            self.note(f"{speaker} ends {kind}")
            self.publishing.setdefault(speaker, set()).discard(kind)
            self._published(speaker)
            nodes.stream_changed(self, speaker, "off", kind)
            self._callback("user-unpublished", UserId=speaker, Kind=kind)

    def break_off(self, speaker: str) -> None:
        """A speaker's stream breaks off for a moment, without a callback."""
        self.note(f"{speaker}'s stream breaks off")
        self.broken_until_ms[speaker] = self.clock.now_ms + BREAK_MS
        nodes.stream_changed(self, speaker, "broken")

    def leave(self, speaker: str) -> None:
        """A speaker leaves. TRTC sends no other callback for that."""
        self.note(f"{speaker} leaves")
        self.publishing.pop(speaker, None)
        self._published(speaker)
        nodes.stream_changed(self, speaker, "gone")
        self._callback("user-left", UserId=speaker, Reason=1)

    def destroy(self) -> None:
        """The room is dismissed."""
        self.note("the room is dismissed")
        self.destroyed = True
        for speaker in list(self.publishing):
            self.publishing.pop(speaker)
            self._published(speaker)
            nodes.stream_changed(self, speaker, "gone")
        self._callback("room-destroyed")

    def remove(self) -> None:
        """The recording user is removed from the room."""
        self.note("the recording user is removed")
        self._callback("user-left", UserId=script.RECORDER, Reason=3)

    def _callback(self, type_: str, **data: Any) -> None:
        """Send a TRTC callback: at least once, late, or (if the profile loses callbacks) never."""
        if self.script.blind:
            return
        self._numbers += 1
        data = {"SdkAppId": script.APP, **self.script.room, "EventMs": self.clock.now_ms, **data}
        if type_ == "room-destroyed" and "StrRoomId" in data:  # TRTC's 102 does not name the kind of room
            data["RoomId"] = int(data["StrRoomId"])
        event = codec.make(type_, id=f"trtc-{self._numbers}", time_ms=self.clock.now_ms, data=data)
        if self.profile.lost and self.chance.random() < self.profile.lost:
            self.faults += 1
            self.note(f"the callback {type_} {event.id} is lost")
            return
        first_ms = self.late(self.profile.trtc_late_ms, 100)
        self.after(first_ms, self._deliver, event)
        if type_ == "user-publishing" and data["Kind"] in script.WANTED[self.script.mode]:
            self.heard.setdefault(f"{data['UserId']}", []).append(self.clock.now_ms + first_ms)
        self._copies(first_ms, self._deliver, event)

    def _published(self, speaker: str) -> None:
        """Keep the true spans in which a speaker publishes a recorded track; the last one is open while it does."""
        spans, now_ms = self.published.setdefault(speaker, []), self.clock.now_ms
        on = bool(self.publishing.get(speaker, set()) & set(script.WANTED[self.script.mode]))
        if on and not (spans and spans[-1][1] == FOR_EVER_MS):
            spans.append([now_ms, FOR_EVER_MS])
        elif not on and spans and spans[-1][1] == FOR_EVER_MS:
            spans[-1][1] = now_ms

    # --- state ----------------------------------------------------------------------------------------------------------
    def live(self, speaker: str) -> set[str]:
        """The tracks of a speaker that a pull gets now."""
        broken = self.broken_until_ms.get(speaker, 0) > self.clock.now_ms
        return set() if broken else self.publishing.get(speaker, set())

    def elapsed_ms(self) -> int:
        """Time since the beginning."""
        return self.clock.now_ms - engines.START_MS

    def cos_is_down(self) -> bool:
        """Whether COS is unavailable."""
        return any(from_ms <= self.elapsed_ms() < to_ms for from_ms, to_ms in self.script.outages)

    # --- faults -----------------------------------------------------------------------------------------------------------
    def _fault(self, name: str) -> None:
        if self._deciding and name in CRASHES and self.chance.random() < self.profile.crash:
            self.faults += 1
            raise Crashed(name)

    def _meddle(self, owner: str) -> bool:
        """Between load and save, let a worker take the lease of the row, which the guard must detect; or report a change."""
        if self.chance.random() >= self.profile.conflict:
            return False
        self.faults += 1
        command, node = self.under_way.pop(owner, (None, ""))
        if command is None:
            return True
        self._obey(command, node)
        return False

    def note(self, what: str) -> None:
        """Show a line about the outer world."""
        if self.show is not None:
            self.show(f"{self._when()} outside  {what}")

    def _when(self) -> str:
        return f"{self.elapsed_ms() / 1000:>10.3f}s"


def _about(event: codec.Event) -> str:
    return " ".join(str(event.data[name]) for name in ("UserId", "Kind", "Owner") if name in event.data)
