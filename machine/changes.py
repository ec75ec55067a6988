"""Changes: everything that one decision writes, as values. The store writes them in one go, after the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from events import codec, requests
from machine import job_key, model, presence


class JournalEntry(NamedTuple):
    """One line of a session's timeline."""

    owner: job_key.OwnerKey
    event_id: str
    event_type: str
    from_state: str
    to_state: str
    note: str


class OutgoingMessage(NamedTuple):
    """A message for the outbox: `channel` is event, command or result, `node` the only node it is for ("": any)."""

    channel: str
    event: codec.Event
    task_id: str = ""
    node: str = ""


class AuditNote(NamedTuple):
    """A row of the audit; `outcome` is ok, or the Code of a refusal."""

    by: model.Caller
    action: str
    subject: str
    outcome: str = "ok"


class Armed(NamedTuple):
    """A deadline to arm. `serial` identifies this arming. `once`: a deadline of the same kind that is armed already stays."""

    at_ms: int
    serial: str
    once: bool = False


Presence = dict[tuple[requests.Room, str], presence.Known]


@dataclass(slots=True)
class Changes:
    """The writes of one decision. A pair holds the row as it was loaded (None: it is new) and its new version."""

    sessions: dict[str, tuple[model.Session | None, model.Session]] = field(default_factory=dict)
    recordings: dict[job_key.RecordingKey, tuple[model.Recording | None, model.Recording]] = field(default_factory=dict)
    deliveries: dict[job_key.DeliveryKey, tuple[model.Delivery | None, model.Delivery]] = field(default_factory=dict)
    # Closed segments: (recording, epoch, the columns of the row that are set). Values only grow.
    segments: list[tuple[job_key.RecordingKey, int, Mapping[str, Any]]] = field(default_factory=list)
    # By TaskId; None wipes them.
    secrets: dict[str, requests.Secrets | None] = field(default_factory=dict)
    # (TaskId, revision, body)
    results: list[tuple[str, int, str]] = field(default_factory=list)
    # By owner and kind; None disarms it.
    deadlines: dict[tuple[job_key.OwnerKey, str], Armed | None] = field(default_factory=dict)
    journal: list[JournalEntry] = field(default_factory=list)
    messages: list[OutgoingMessage] = field(default_factory=list)
    # By room and user; merged with what is known.
    presence: Presence = field(default_factory=dict)
    # Applications from which a verified callback came.
    applications: set[int] = field(default_factory=set)
    audit: list[AuditNote] = field(default_factory=list)

    @property
    def moves(self) -> bool:
        """Whether anything but the timeline, the audit and segments (whose values only grow) is written."""
        rows = (self.sessions, self.recordings, self.deliveries, self.secrets, self.results, self.deadlines)
        return any((*rows, self.messages, self.presence, self.applications))

    def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Put a message into the outbox; it is delivered after the commit."""
        self.messages.append(OutgoingMessage(channel, event, task_id, node))

    def trace(self, traceparent: str) -> None:
        """Let all messages follow from a span; "" for none."""
        if traceparent:
            self.messages = [m._replace(event=replace(m.event, traceparent=traceparent)) for m in self.messages]

    def add(self, later: Changes) -> None:
        """Add the changes of a later decision, made after these. Written at once, both leave the same as one after the other."""
        _add_pairs(self.sessions, later.sessions)
        _add_pairs(self.recordings, later.recordings)
        _add_pairs(self.deliveries, later.deliveries)
        self.segments += later.segments
        self.secrets |= later.secrets
        self.results += later.results
        for place, armed in later.deadlines.items():
            kept = armed is not None and armed.once and place in self.deadlines
            # A deadline that is armed here stays. One that is disarmed here must not stay in the database either.
            self.deadlines[place] = (self.deadlines[place] or armed._replace(once=False)) if armed and kept else armed
        self.journal += later.journal
        self.messages += later.messages
        for about, known in later.presence.items():
            self.presence[about] = presence.merged(self.presence.get(about, presence.ABSENT), known)
        self.applications |= later.applications
        self.audit += later.audit


def _add_pairs(pairs: dict[Any, tuple[Any, Any]], later: Mapping[Any, tuple[Any, Any]]) -> None:
    for key, (old, new) in later.items():
        pairs[key] = (pairs[key][0] if key in pairs else old, new)
