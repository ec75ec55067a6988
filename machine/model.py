"""The values that decisions are made of. All frozen, times in Unix ms. Imports `events`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from events import requests
from machine import states

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

EXTENDED_BY_DOWNTIME = ("join", "idle", "linger")
"""The deadlines for which time does not count in which no node could have tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for something, as the audit names them. `key_id` is "" without a key of the keys' table; `quota` is how many Open
    sessions the key may have at once, 0 for any number; `operates` whether it may act on what others began."""

    name: str
    key_id: str = ""
    quota: int = 0
    operates: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareCapacity:
    """A worker's room for captures: what its spool has free (None: it cannot be read now, and `busy` says why) and must have free
    for another one, and why it takes none now whatever the spool says ("": it would)."""

    free_bytes: int | None
    needed_bytes: int
    busy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The figures that decisions depend on, in ms unless named otherwise. Source of the defaults: TRTC's MaxIdleTime for
    `linger`, the service this replaces for `idle_timeout` and `join_timeout`."""

    linger_ms: int = 30 * SECOND
    idle_timeout_ms: int = 300 * SECOND
    join_timeout_ms: int = 300 * SECOND
    max_duration_ms: int = 24 * HOUR
    result_wait_ms: int = 15 * MINUTE
    upload_retry_for_ms: int = 72 * HOUR
    keep_failed_ms: int = 7 * 24 * HOUR
    keep_messages_ms: int = 7 * 24 * HOUR
    keep_sessions_ms: int = 90 * 24 * HOUR
    node_return_ms: int = 30 * MINUTE
    lease_ms: int = 30 * SECOND
    capture_backoff_ms: tuple[int, ...] = (1_000, 2_000, 4_000, 8_000, 10_000)
    blind_capture_backoff_ms: tuple[int, ...] = (1_000, 2_000, 4_000, 8_000, 16_000, 30_000)
    transcode_backoff_ms: tuple[int, ...] = (2_000, 10_000)
    upload_backoff_ms: tuple[int, ...] = (2_000, 5_000, 15_000, MINUTE, 5 * MINUTE, 15 * MINUTE)
    delivery_backoff_ms: tuple[int, ...] = tuple(
        s * SECOND for s in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
    node_away_backoff_ms: int = 5_000
    lost_limit: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt at a step. `state` is waiting, queued, leased or ended; `node` holds the lease, or is the only one that the
    job is for because the files lie there ("": any)."""

    kind: str
    state: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A verified file of a transcode. `gaps` are (position in the file, wall time missing), both in ms; `missing` counts the
    segments that could not be reached; `epoch` is the transcode that made it, which its file is named by."""

    duration_ms: int
    size_bytes: int
    crc64: str = ""
    start_ms: int | None = None
    end_ms: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    missing: int = 0
    epoch: int = 0

    def to_json(self) -> dict[str, Any]:
        """As events and the database hold it."""
        gaps = [{"AtMs": at, "DurationMs": duration} for at, duration in self.gaps]
        return {
            "DurationMs": self.duration_ms,
            "SizeBytes": self.size_bytes,
            "Crc64": self.crc64,
            "StartMs": self.start_ms,
            "EndMs": self.end_ms,
            "Gaps": gaps,
            "Missing": self.missing,
            "Epoch": self.epoch,
        }

    @staticmethod
    def from_json(body: dict[str, Any]) -> Output:
        """The opposite of `to_json`."""
        return Output(
            duration_ms=body["DurationMs"],
            size_bytes=body["SizeBytes"],
            crc64=body["Crc64"],
            start_ms=body["StartMs"],
            end_ms=body["EndMs"],
            gaps=tuple((g["AtMs"], g["DurationMs"]) for g in body["Gaps"]),
            missing=body.get("Missing", 0),
            epoch=body.get("Epoch", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One appearance of one speaker, to its end: the persisted machine.

    `epoch` numbers its jobs; `tries` counts failures of the present step in a row; `present` is what callbacks say of the
    speaker (None: nothing); `awaited` marks a subscribed speaker who was never seen (no entry in `Files`); `called` says that
    they switched a track on while a run was on its way, which may have come too early for it."""

    task_id: str
    speaker: str
    n: int
    mode: str = "00"
    state: str = states.JOINING
    version: int = 1
    stop_requested: bool = False
    epoch: int = 0
    replays: int = 0
    failures: int = 0
    present: bool | None = None
    never_seen: bool = False
    last_pull: bool = False
    publish_pending: bool = False
    idle_from_ms: int = 0
    stage_started_ms: int = 0
    opened_ms: int = 0
    ended_ms: int | None = None
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    media_ms: int = 0
    code: str = ""
    detail: str = ""
    output: Output | None = None
    output_node: str = ""
    url: str = ""
    job: Job | None = None
    files_removed: bool = False

    @property
    def id(self) -> str:
        """`TaskId/speaker/n`: the subject of its messages and the owner of its jobs and deadlines."""
        return f"{self.task_id}/{self.speaker}/{self.n}"

    @property
    def attempt(self) -> int:
        """The contract's `Attempt`: 1 for the first, one more for each replay."""
        return self.replays + 1

    @property
    def capture(self) -> str:
        """none, waiting, queued or leased: the third part of the table's key."""
        job = self.job
        return job.state if job and job.kind == states.CAPTURE and job.state != states.ENDED else states.NONE

    @property
    def final(self) -> bool:
        """Whether nothing moves it any more but a replay."""
        return self.state in states.FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One accepted start. `idle_from_ms` is the time from which idleness counts: the last media of all, or the opening."""

    task_id: str
    request: requests.StartRequest
    state: str = states.OPEN
    version: int = 1
    opened_ms: int = 0
    closing_ms: int | None = None
    finished_ms: int | None = None
    end_reason: str = ""
    revision: int = 0
    idle_from_ms: int = 0
    published: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of one revision of the result. `state` is pending, delivered, failed or cancelled."""

    task_id: str
    revision: int
    url: str = field(repr=False)
    body: str = field(repr=False)
    state: str = "pending"
    version: int = 1
    epoch: int = 0
    failures: int = 0
    detail: str = ""
    job: Job | None = None

    @property
    def id(self) -> str:
        """`TaskId#revision`: the owner of its jobs and deadlines."""
        return f"{self.task_id}#{self.revision}"


def split_id(recording_id: str) -> tuple[str, str, int]:
    """`TaskId/speaker/n` into its parts; the speaker may hold slashes of its own."""
    task_id, rest = recording_id.split("/", 1)
    speaker, n = rest.rsplit("/", 1)
    return task_id, speaker, int(n)


Value = TypeVar("Value", Recording, Session, Delivery)
# dataclasses.replace goes through the constructor; on these wide values, which every decision rewrites several times, copying
# slot by slot takes a third of that. None of them has a __post_init__ that would be passed by.
_SLOTS: dict[type, tuple[tuple[Any, Any], ...]] = {
    kind: tuple((vars(kind)[f.name].__get__, vars(kind)[f.name].__set__) for f in fields(kind))
    for kind in (Recording, Session, Delivery)
}
_SETTERS = {kind: {f.name: vars(kind)[f.name].__set__ for f in fields(kind)} for kind in _SLOTS}


def changed(value: Value, **changes: Any) -> Value:
    """`value` with these fields changed, as dataclasses.replace. Raises TypeError for a field that it does not have."""
    kind = type(value)
    made: Value = object.__new__(kind)
    for read, write in _SLOTS[kind]:
        write(made, read(value))
    setters = _SETTERS[kind]
    for name, new in changes.items():
        if name not in setters:
            raise TypeError(f"{kind.__name__} has no field {name!r}")
        setters[name](made, new)
    return made
