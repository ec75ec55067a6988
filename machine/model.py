"""Values that decisions read and write: policy, session, recording, delivery, job. All frozen; times are Unix ms."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from events import requests
from machine import alignment, job_key, published, segments, states

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

EVENTS_FROM = 1_000_000
"""Deliveries of events are numbered above this, and those of results by their Revision."""
MOST_EVENTS = 7_999_999
MANIFESTS_FROM = 9_000_000
"""Deliveries of manifests to the bucket are numbered by their Revision above this. A number has seven digits at most."""
EXTENDED_BY_DOWNTIME = ("join", "idle", "linger")
"""Deadlines that downtime extends: while no node sent a heartbeat, no node could have tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller of a request, as the audit names it."""

    name: str  # the key's name, or how the caller got in
    key_id: str = ""  # the id of its API key; "": a key from the settings, or none
    quota: int = 0  # Open sessions that the key may have at a time; 0: any number
    operates: bool = True  # it may act on sessions that another key began


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareCapacity:
    """A worker's capacity for more captures, as its heartbeat reports it."""

    free_bytes: int | None  # free space of its spool; None: the spool is unreadable, and `busy` has the reason
    needed_bytes: int  # free space that one more capture requires
    busy: str = ""  # the reason to take no capture now, whatever the spool has free; "": it takes one


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The figures that decisions depend on. Sources of the defaults: TRTC's MaxIdleTime for `linger_ms`, the replaced service for
    `idle_timeout_ms` and `join_timeout_ms`, Standard Webhooks for `delivery_backoff_ms`."""

    # A speaker who comes back within this time continues the same recording.
    linger_ms: int = 30 * SECOND
    # Time without media after which a recording stops and a session closes.
    idle_timeout_ms: int = 300 * SECOND
    # Time after which a session closes if nobody has published.
    join_timeout_ms: int = 300 * SECOND
    # Time after which a session closes in any case.
    max_duration_ms: int = 24 * HOUR
    # Time after closing in which the first result waits for uploads.
    result_wait_ms: int = 15 * MINUTE
    # Time in Uploading after which an upload is not retried any more.
    upload_retry_for_ms: int = 72 * HOUR
    # Time for which the files and secrets of a failed recording stay.
    keep_failed_ms: int = 7 * 24 * HOUR
    # Time for which sent messages and the ids of handled events stay.
    keep_messages_ms: int = 7 * 24 * HOUR
    # Time for which finished sessions stay.
    keep_sessions_ms: int = 90 * 24 * HOUR
    # Time for which a transcode waits for segments on a node that is away.
    node_return_ms: int = 30 * MINUTE
    # Lifetime of a lease without a renewal.
    lease_ms: int = 30 * SECOND
    # Backoff of captures by the number of failures in a row; the last value repeats.
    capture_backoff_ms: tuple[int, ...] = (1_000, 2_000, 4_000, 8_000, 10_000)
    # The same for applications whose callbacks were never seen, so that retries alone find the speaker.
    blind_capture_backoff_ms: tuple[int, ...] = (1_000, 2_000, 4_000, 8_000, 16_000, 30_000)
    # Backoff of transcodes; its length is the number of retries.
    transcode_backoff_ms: tuple[int, ...] = (2_000, 10_000)
    # Backoff of uploads; the last value repeats until `upload_retry_for_ms` is over.
    upload_backoff_ms: tuple[int, ...] = (2_000, 5_000, 15_000, MINUTE, 5 * MINUTE, 15 * MINUTE)
    # Backoff of deliveries; its length is the number of retries.
    delivery_backoff_ms: tuple[int, ...] = tuple(
        s * SECOND for s in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
    # Backoff of deliveries whose workers are lost, by the number of losses before; the last value repeats.
    delivery_lost_backoff_ms: tuple[int, ...] = (0, 5_000, 30_000, 5 * MINUTE)
    # Pause of a transcode between two checks for a node that is away.
    node_away_backoff_ms: int = 5_000
    # Time between two revisions of a result while uploads are pending.
    revise_every_ms: int = 5 * SECOND
    # The types of machine/progress.py that are published.
    progress_events: tuple[str, ...] = ()
    # Time between two `recording-progress` of a recording.
    progress_every_ms: int = MINUTE
    # Workers that may end in a row without an outcome before a transcode fails.
    lost_limit: int = 5
    # Every session has a manifest, not only those whose start asks for one.
    manifest: bool = False

    @property
    def presence_kept_ms(self) -> int:
        """Time for which a speaker of whom nothing was heard counts as present: longer than any session, and a day more."""
        return self.max_duration_ms + 24 * HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt at a capture, transcode, upload or delivery."""

    kind: str  # states.CAPTURE, TRANSCODE, UPLOAD or DELIVERY
    state: str  # waiting, queued, leased or ended
    node: str = ""  # leased: the holder; before: the only node the job is for, because its files are there ("": any)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A verified file of a transcode."""

    duration_ms: int  # media in the file
    size_bytes: int  # the size of the file
    crc64: str = ""  # CRC-64/XZ, decimal
    start_ms: int | None = None  # when its first media was live
    end_ms: int | None = None  # when its last media was live
    gaps: tuple[tuple[int, int], ...] = ()  # (position in the file, wall time missing), both in ms
    missing: int = 0  # segments that no node could reach
    epoch: int = 0  # the transcode's epoch, which is part of the file's name
    anchors: alignment.Anchors = alignment.NO_ANCHORS  # position in the file → when its media was live
    error_ms: int = 0  # bounds the error of the anchors
    live: tuple[tuple[int, int], ...] = ()  # when its media was live: (from, to), in order
    unreadable: tuple[str, ...] = ()  # codecs of tracks that ffmpeg cannot read, so that the file lacks them
    pulls: tuple[segments.Pause, ...] = ()  # the longest times without media, and why
    lost_ms: int = 0  # media that was captured and that damaged or deleted segments no longer have
    lost_segments: int = 0  # these segments
    remade: int = 0  # how often the transcode was repeated because the file was damaged or gone
    window: tuple[int, int] | None = None  # the time (Unix ms) of which the file tells what is missing; None: all
    earlier: tuple[DeliveredFile, ...] = ()  # files with what came before: a bounded spool could not continue them

    @property
    def whole(self) -> bool:
        """Whether the file has all media of all segments, so that nothing needs these any more."""
        return not (self.missing or self.lost_segments)

    def to_json(self) -> dict[str, Any]:
        """The form in events and in the database."""
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
            "Anchors": self.anchors.to_json(),
            "ErrorMs": self.error_ms,
            "Live": [list(span) for span in self.live],
            "Pulls": [{"FromMs": p.from_ms, "ToMs": p.to_ms, "Reason": p.reason} for p in self.pulls],
            "Unreadable": list(self.unreadable),
            "LostMs": self.lost_ms,
            "LostSegments": self.lost_segments,
            "Remade": self.remade,
            # Only where they are needed: nodes of an earlier release know neither.
            **({"Window": list(self.window)} if self.window else {}),
            **({"Earlier": [file.to_json() for file in self.earlier]} if self.earlier else {}),
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
            anchors=alignment.Anchors.from_json(body.get("Anchors", ())),
            error_ms=body.get("ErrorMs", 0),
            live=tuple((from_ms, to_ms) for from_ms, to_ms in body.get("Live", ())),
            pulls=tuple(segments.Pause(p["FromMs"], p["ToMs"], p["Reason"]) for p in body.get("Pulls", ())),
            unreadable=tuple(body.get("Unreadable", ())),
            lost_ms=body.get("LostMs", 0),
            lost_segments=body.get("LostSegments", 0),
            remade=body.get("Remade", 0),
            window=(window[0], window[1]) if (window := body.get("Window")) else None,
            earlier=tuple(DeliveredFile.from_json(file) for file in body.get("Earlier", ())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredFile:
    """A file that was delivered before a replay began, or beside the recording's last one. Neither its object nor its entry in
    the result changes any more."""

    n: int  # the number in its object key; 0: it is `earlier` than the recording's last file
    url: str  # the address of its object
    code: str  # the result's Code
    detail: str  # the result's Detail
    output: Output  # the file

    def to_json(self) -> dict[str, Any]:
        """The form in the database."""
        return {"N": self.n, "Url": self.url, "Code": self.code, "Detail": self.detail, "Output": self.output.to_json()}

    @staticmethod
    def from_json(body: dict[str, Any]) -> DeliveredFile:
        """The opposite of `to_json`."""
        output = Output.from_json(body["Output"])
        return DeliveredFile(n=body["N"], url=body["Url"], code=body["Code"], detail=body["Detail"], output=output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One appearance of one speaker in a session, until it ends: the persisted state machine."""

    task_id: str  # the session
    speaker: str  # the speaker's UserId
    n: int  # the number among the speaker's recordings of the session, from 1
    mode: str = "00"  # the session's Mode
    state: str = states.JOINING  # one of states.RECORDING_STATES
    version: int = 1  # raised by each write; guards against concurrent updates
    stop_requested: bool = False  # the capture is to end, and no other follows
    epoch: int = 0  # the number of the current job; outcomes of older epochs are stale
    replays: int = 0  # replays that left a final state
    failures: int = 0  # failures of the current stage in a row
    present: bool | None = None  # the speaker's presence by TRTC's callbacks; None: unknown
    never_seen: bool = False  # a subscribed speaker without media or callback so far: no entry in `Files`
    last_pull: bool = False  # the current capture is the last one, at the end of LINGER
    publish_pending: bool = False  # a track was switched on while a run was active that may have been too early for it
    idle_from_ms: int = 0  # idleness counts from here: the last media, or the opening
    stage_started_ms: int = 0  # when Transcoding or Uploading began
    opened_ms: int = 0  # when it opened
    ended_ms: int | None = None  # when it became final
    first_packet_ms: int | None = None  # when its first packet arrived
    last_packet_ms: int | None = None  # when its last packet arrived, as far as is known
    media_ms: int = 0  # media of all segments
    code: str = ""  # the result's Code once it is final
    detail: str = ""  # the result's Detail, or the last failure
    output: Output | None = None  # the verified file
    output_node: str = ""  # the node that holds the output; "": any node can reach it
    url: str = ""  # the address of the uploaded object
    job: Job | None = None  # the current job; None: nothing is due
    files_removed: bool = False  # KEEP_FAILED is over: the janitor deletes its files, and no replay uses them
    evicted: int = 0  # runs that ended just as a pull for another speaker of the session began
    published: published.Published = published.UNKNOWN  # when the speaker was known to publish
    interrupted: bool = False  # in Recording: the last run ended, and no media came since
    object_n: int = 0  # the number in the object key, if it is not `n` because that object was delivered
    delivered: tuple[DeliveredFile, ...] = ()  # the files that were delivered before a replay began

    @property
    def key(self) -> job_key.RecordingKey:
        """The owner of its jobs, deadlines and messages."""
        return job_key.recording(self.task_id, self.speaker, self.n)

    @property
    def attempt(self) -> int:
        """The contract's `Attempt`: 1, plus one for each replay."""
        return self.replays + 1

    @property
    def object_number(self) -> int:
        """The number in its object key."""
        return self.object_n or self.n

    @property
    def capture(self) -> str:
        """The capture's part of the table's key: none, waiting, queued or leased."""
        job = self.job
        return job.state if job and job.kind == states.CAPTURE and job.state != states.ENDED else states.NONE

    @property
    def final(self) -> bool:
        """Whether only a replay can move it."""
        return self.state in states.FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One accepted start request: the recording user is in one room."""

    task_id: str  # a ULID, the contract's TaskId
    request: requests.StartRequest  # the start without its secrets
    state: str = states.OPEN  # one of states.SESSION_STATES
    version: int = 1  # raised by each write; guards against concurrent updates
    opened_ms: int = 0  # when it opened
    closing_ms: int | None = None  # when it closed
    finished_ms: int | None = None  # when it first finished
    end_reason: str = ""  # the contract's EndReason; "": it is Open
    revision: int = 0  # the last result's Revision; 0: none yet
    idle_from_ms: int = 0  # idleness counts from here: the last media of any speaker, or the opening
    published: bool = False  # some speaker has published
    warnings: tuple[str, ...] = ()  # the warnings of its start
    key_id: str = ""  # the API key that started it; "": another caller
    user_pulls: str = ""  # PULL_USER=per-speaker: the recording that the UserId itself pulls, as text; "": none
    events_posted: int = 0  # events of progress that were handed to its callback
    live: int = 0  # recordings that are not final
    uploading: int = 0  # those of them in Uploading
    present: int = 0  # those of them whose speaker callbacks report as present

    @property
    def key(self) -> job_key.SessionKey:
        """The owner of its deadlines and messages."""
        return job_key.SessionKey(self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of one revision of a session's result, or of one event of progress, to its callback URL; or that of the
    manifest of one revision to the bucket."""

    task_id: str  # the session
    revision: int  # the result's Revision; above EVENTS_FROM an event's number, above MANIFESTS_FROM that of a manifest
    url: str = field(repr=False)  # the callback URL, which may hold secrets; of a manifest the object's
    body: str = field(repr=False)  # the result or event as JSON, posted byte for byte; "" for a manifest, which the worker makes
    state: str = "pending"  # pending, delivered, failed or cancelled
    version: int = 1  # raised by each write; guards against concurrent updates
    epoch: int = 0  # the number of the current job; outcomes of older epochs are stale
    failures: int = 0  # failed posts since it was sent, or sent again
    posts: int = 0  # all posts that ended
    tried_ms: int | None = None  # when the last post ended
    detail: str = ""  # the last failure, or the reason of its end
    job: Job | None = None  # the current job; None: nothing is due

    @property
    def key(self) -> job_key.DeliveryKey:
        """The owner of its jobs, deadlines and messages."""
        return job_key.DeliveryKey(self.task_id, self.revision)

    @property
    def is_manifest(self) -> bool:
        """Whether it writes a manifest."""
        return self.revision > MANIFESTS_FROM

    @property
    def is_leased(self) -> bool:
        """Whether a worker delivers it at this moment."""
        return self.job is not None and self.job.state == states.LEASED


COUNTS = ("live", "uploading", "present")
"""The counts of recordings on a session's row, so that no decision counts them."""


def counted(recording: Recording | None) -> tuple[int, int, int]:
    """A recording's part of COUNTS."""
    if recording is None or recording.final:
        return 0, 0, 0
    return 1, int(recording.state == states.UPLOADING), int(recording.present is True)


Value = TypeVar("Value", Recording, Session, Delivery)
# dataclasses.replace calls the constructor. Every decision rewrites these wide values several times, and copying slot by slot
# takes a third of that time. None of them has a __post_init__, which a copy would skip.
_SLOTS: dict[type, tuple[tuple[Any, Any], ...]] = {
    kind: tuple((vars(kind)[f.name].__get__, vars(kind)[f.name].__set__) for f in fields(kind))
    for kind in (Recording, Session, Delivery)
}
_SETTERS = {kind: {f.name: vars(kind)[f.name].__set__ for f in fields(kind)} for kind in _SLOTS}


def copied(value: Value) -> Value:
    """A copy of its own, which `put` may change until it is handed on."""
    kind = type(value)
    made: Value = object.__new__(kind)
    for read, write in _SLOTS[kind]:
        write(made, read(value))
    return made


def put(value: Value, **changes: Any) -> None:
    """Change fields of a fresh copy in place. Raises TypeError for an unknown field."""
    setters = _SETTERS[type(value)]
    for name, new in changes.items():
        if name not in setters:
            raise TypeError(f"{type(value).__name__} has no field {name!r}")
        setters[name](value, new)


def changed(value: Value, **changes: Any) -> Value:
    """Return `value` with these fields changed, as dataclasses.replace does. Raises TypeError for an unknown field."""
    made = copied(value)
    put(made, **changes)
    return made
