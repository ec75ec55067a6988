"""Ports of the store: shapes that `store/` implements for two engines, and the simulated world for a third.

Rule: the contract of each method is documented in `store/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import Any, Protocol, TypeVar

from events import codec, requests
from machine import capture_progress, changes, due_work, job_key, model, nodes, presence, segments
from machine.presence import Kinds


class Snapshot(Protocol):
    """The data that one decision reads, at the time `now_ms` (Unix ms). Reading raises NotLoaded for data that is not loaded yet;
    the store then loads it and repeats the decision, which has no effect before its end."""

    now_ms: int

    def session(self, task_id: str) -> model.Session | None:
        """The session, locked until the decision is written."""
        ...

    def sessions_in(self, room: requests.Room) -> Sequence[model.Session]:
        """The unfinished sessions of a room in the order of their ids, locked, as is the room: otherwise a start and the first
        event of a speaker, decided at the same time, would each miss the other."""
        ...

    def recordings(self, task_id: str) -> Sequence[model.Recording]:
        """All recordings of a session, oldest first."""
        ...

    def recordings_of(self, task_id: str, speaker: str) -> Sequence[model.Recording]:
        """The recordings of one speaker of a session, oldest first."""
        ...

    def recording(self, key: job_key.RecordingKey) -> model.Recording | None: ...
    def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None:
        """A delivery without its body, which no decision needs."""
        ...

    def pending_deliveries(self, task_id: str) -> Sequence[model.Delivery]:
        """The pending deliveries of a session's results, without their bodies."""
        ...

    def deadline(self, owner: job_key.OwnerKey, kind: str) -> str:
        """The serial of an armed deadline; "" if none of this kind is armed."""
        ...

    def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped. Raises DecryptionFailed."""
        ...

    def callback_url(self, task_id: str) -> str:
        """The whole URL that a session's results are posted to; "" for none. Raises DecryptionFailed."""
        ...

    def has_segments(self, key: job_key.RecordingKey) -> bool:
        """Whether segments of the recording hold media."""
        ...

    def segment_nodes(self, key: job_key.RecordingKey) -> dict[str, int]:
        """The nodes that keep segments of a recording, the one that began the last one last: node → media in ms."""
        ...

    def node_seen_ms(self, node: str) -> int:
        """The last heartbeat of a node, Unix ms; 0 for an unknown node."""
        ...

    def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """The start of the session's last pull that is not later than `until_ms`, Unix ms; 0 if there is none."""
        ...

    def evicted(self, key: job_key.RecordingKey, ended_ms: int) -> bool:
        """Whether a pull for another recording of the session began just as a run of this one ended, and went on."""
        ...

    def open_sessions_of(self, key_id: str) -> int:
        """How many Open sessions an API key has started; the key is locked, so that two starts cannot pass its quota."""
        ...

    def callback_ms(self, sdk_app_id: int) -> int:
        """When a callback of this application was last noted, Unix ms; 0 if none ever came."""
        ...

    def presence(self, room: requests.Room, user_id: str) -> Mapping[str, Any]:
        """Presence of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        ...

    def publishers(self, room: requests.Room) -> Sequence[tuple[str, Kinds]]:
        """Users who publish in a room by what callbacks ever told: (user, kinds), ordered by user. The caller judges how old
        that is."""
        ...


Need = tuple[str, tuple[Any, ...]]
"""One reading of a snapshot: the method's name and its arguments."""
Answer = dict[str, Any]
Decide = Callable[[Snapshot], tuple[Answer, changes.Changes]]
Value = TypeVar("Value")


class NotLoaded(Exception):
    """A decision needs data that its snapshot does not have yet."""

    def __init__(self, need: Need) -> None:
        super().__init__(need[0])
        self.need = need


Plan = Callable[[Snapshot], Iterator[Sequence[Need]]]
"""Yields what a decision needs in most cases, in stages: a later stage reads from the snapshot what an earlier one loaded."""


class Decisions(Protocol):
    """Loads, decides and writes (store.decisions.Decisions)."""

    async def decide(self, event: codec.Event, plan: Plan, decide: Decide) -> Answer: ...
    async def answered(self, event_id: str, fingerprint: str = "") -> tuple[Answer, int] | None: ...
    async def read(self, query: Callable[[Snapshot], Value]) -> Value: ...
    async def write(self, written: changes.Changes) -> None: ...


class Connections(Protocol):
    """Connections to the database (store.connections.Connections)."""

    async def ping(self) -> None: ...


class Outbox(Protocol):
    """Messages that a transaction wrote and nothing has delivered yet (store.outbox.Outbox)."""

    async def unsent(self, limit: int = 100) -> Sequence[due_work.OutboxMessage]: ...
    async def due(
        self,
        limit: int,
        *,
        ripe: Collection[int] = (),
        except_seqs: Collection[int] = (),
        except_types: Collection[str] = (),
        except_tasks: Collection[str] = (),
    ) -> Sequence[due_work.OutboxMessage]: ...
    async def release_all(self) -> None: ...
    async def postpone(self, pauses_ms: Mapping[int, int]) -> None: ...
    async def newest_seq(self) -> int: ...
    async def claim(self, limit: int, hold_ms: int) -> Sequence[due_work.OutboxMessage]: ...
    async def release(self, seqs: Sequence[int]) -> None: ...
    async def mark_sent(self, seq: int, parked: str = "") -> None: ...
    async def mark_all_sent(self, seqs: Sequence[int]) -> None: ...
    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None: ...


class Attempts(Protocol):
    """Attempt counts of messages (store.attempts.Attempts)."""

    async def count(self, message: str) -> int: ...
    async def add(self, message: str) -> int: ...
    async def take_back(self, message: str) -> None: ...
    async def forget(self, message: str) -> None: ...


class Leases(Protocol):
    """Which node works on which job (store.leases.Leases)."""

    async def take(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int) -> bool: ...
    async def renew_all(
        self, jobs: Sequence[tuple[job_key.JobKey, int]], node: str, lease_ms: int
    ) -> Set[tuple[job_key.JobKey, int]]: ...
    async def is_held(self, owner: job_key.JobKey, epoch: int, node: str) -> bool: ...
    async def to_stop(self, captures: Sequence[tuple[job_key.RecordingKey, int]]) -> Set[tuple[job_key.RecordingKey, int]]: ...
    async def of_node(self, node: str) -> Sequence[due_work.Lease]: ...


class Assignments(Protocol):
    """The data of leased jobs (store.assignments.Assignments)."""

    async def recording(self, key: job_key.RecordingKey) -> due_work.Assignment | None: ...
    async def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None: ...
    async def manifest(self, key: job_key.DeliveryKey) -> due_work.ManifestAssignment | None: ...
    async def receiver(self, key: job_key.DeliveryKey) -> str: ...


class Segments(Protocol):
    """Segments while workers write them (store.segments.Segments)."""

    async def register(self, recording: job_key.RecordingKey, epoch: int, node: str) -> None: ...
    async def update(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None: ...
    async def note_progress(
        self, growing: Mapping[tuple[job_key.RecordingKey, int], capture_progress.CaptureProgress]
    ) -> None: ...
    async def of_recording(self, recording: job_key.RecordingKey) -> Sequence[segments.Segment]: ...


class Presence(Protocol):
    """Presence that callbacks report of rooms without an unfinished session (store.presence.Presence)."""

    async def note(self, reports: Sequence[presence.Report]) -> Sequence[bool]: ...


class Uploads(Protocol):
    """States of interrupted uploads (store.uploads.Uploads)."""

    async def state(self, recording: job_key.RecordingKey) -> dict[str, Any] | None: ...
    async def save(self, recording: job_key.RecordingKey, epoch: int, node: str, body: Mapping[str, Any]) -> bool: ...
    async def delete(self, recording: job_key.RecordingKey, epoch: int) -> None: ...


class Deadlines(Protocol):
    """Deadlines that have passed and leases that have ended (store.deadlines.Deadlines)."""

    async def due(self, limit: int = 100, *, ahead_ms: int = 0) -> Sequence[due_work.Deadline]: ...
    async def expired(self, limit: int = 100, *, fresh_until_ms: int | None = None) -> Sequence[due_work.Lease]: ...
    async def queued(self, limit: int = 100) -> Sequence[due_work.QueuedJob]: ...
    async def publish(
        self, events: Sequence[tuple[due_work.Overdue, codec.Event]], *, fresh_until_ms: int | None = None
    ) -> int: ...


class Nodes(Protocol):
    """Heartbeats and spare capacities of nodes (store.nodes.Nodes)."""

    @property
    def older_alive(self) -> bool: ...
    async def heartbeat(
        self,
        node: str,
        url: str = "",
        spare: model.SpareCapacity | None = None,
        *,
        over_ms: int | None = None,
        skew_ms: int | None = None,
        report: nodes.NodeReport | None = None,
    ) -> int: ...
    async def now_ms(self) -> int: ...
    async def url(self, node: str, alive_since_ms: int) -> str: ...
    async def spare_capacities(self, alive_since_ms: int) -> Sequence[model.SpareCapacity]: ...


class SpoolFiles(Protocol):
    """Files on spools that nothing needs any more (store.spool_files.SpoolFiles)."""

    async def removable(self, failed_before_ms: int) -> Sequence[job_key.RecordingKey]: ...
    async def give_up(self, recording: job_key.RecordingKey, failed_before_ms: int) -> bool: ...
    async def given_up(self, node: str) -> Sequence[job_key.RecordingKey]: ...
    async def of_recording(self, recording: job_key.RecordingKey, node: str) -> segments.GivenUpFiles | None: ...
    async def forget(self, recording: job_key.RecordingKey, node: str, epochs: Sequence[int]) -> None: ...
    async def leftovers(self, task_ids: Sequence[str]) -> Sequence[segments.Leftovers]: ...


class Retention(Protocol):
    """Deletion of old rows (store.retention.Retention)."""

    async def delete_messages(self, before_ms: int) -> bool: ...
    async def delete_sessions(self, before_ms: int, presence_before_ms: int = 0) -> int: ...


class Store(Protocol):
    """One database (store.store.Store)."""

    changed: asyncio.Event
    armed: asyncio.Event

    @property
    def connections(self) -> Connections: ...
    @property
    def decisions(self) -> Decisions: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def attempts(self) -> Attempts: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def assignments(self) -> Assignments: ...
    @property
    def segments(self) -> Segments: ...
    @property
    def uploads(self) -> Uploads: ...
    @property
    def deadlines(self) -> Deadlines: ...
    @property
    def nodes(self) -> Nodes: ...
    @property
    def spool_files(self) -> SpoolFiles: ...
    @property
    def presence(self) -> Presence: ...
    @property
    def retention(self) -> Retention: ...
